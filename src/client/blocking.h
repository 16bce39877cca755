// SPDX-License-Identifier: GPL-2.0-only
// Blocking calls to a client's Device, for callers without a loop. Thread-safe; each call waits for its own end.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/result.h"
#include "block/device.h"

namespace netblk::client {

// Bytes; offsets and lengths are multiples of the block size. An error names what was asked, and has the errno value.
// Not on a loop's own thread: it would wait for itself.
Status read(block::Device& device, uint64_t offset, std::span<std::byte> into);
Status write(block::Device& device, uint64_t offset, std::span<const std::byte> from, bool fua = false);
Status flush(block::Device& device);
Status trim(block::Device& device, uint64_t offset, uint64_t length);
Status write_zeroes(block::Device& device, uint64_t offset, uint64_t length, bool fua = false);

}  // namespace netblk::client
