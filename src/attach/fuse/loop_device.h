// SPDX-License-Identifier: GPL-2.0-only
// A loop device over a file: the block device that the kernel shows.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"

namespace netblk::attach {

struct LoopOptions {
  bool read_only = false;
  bool can_trim = false;  // otherwise the device says that it cannot, instead of failing each try
  uint32_t block_bytes = 512;  // a power of two, up to a page
};

// Takes a free loop device: its node ("/dev/loop3"). Direct I/O, with partitions;
// gone only by loop_detach().
Result<std::string> loop_attach(const std::string& file, const LoopOptions& options);

// Gives the device back. Where somebody still has it open, that happens at the last close. ENXIO: it had no file.
Status loop_detach(const std::string& device);

// The path of the file behind it, as the kernel tells it; nothing when it has none.
std::optional<std::string> loop_backing_file(const std::string& device);

}  // namespace netblk::attach
