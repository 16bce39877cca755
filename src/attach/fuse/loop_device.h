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
  uint32_t block_bytes = 512;  // a power of two, up to a page
};

// Takes a free loop device: its node ("/dev/loop3"). Direct I/O, with partitions; gone only by loop_detach(). Where the file
// refuses to have holes punched, the kernel fails discards with EOPNOTSUPP, newer ones but the first without asking. Limits
// in /sys are left alone: the kernel keeps them for whoever has the number next.
Result<std::string> loop_attach(const std::string& file, const LoopOptions& options);

// Gives the device back. Where somebody still has it open, that happens at the last close. ENXIO: it had no file.
Status loop_detach(const std::string& device);

// It shows the size that its file has by now.
Status loop_resize(const std::string& device);

// The path of the file behind it, as the kernel tells it; nothing when it has none.
std::optional<std::string> loop_backing_file(const std::string& device);

}  // namespace netblk::attach
