// SPDX-License-Identifier: GPL-2.0-only
// What must not be written to by mistake.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "block/device.h"
#include "coro/task.h"
#include "io/loop.h"

namespace netblk::tools {

// EBUSY, in words, when the block device at `path` is mounted, used as swap or held by something else, or when the file
// at `path` is under a loop device. What does not exist is free.
Status refuse_in_use(const std::string& path);

// Why a disk that begins with these bytes counts as one that holds data; empty: it looks empty. `first`: its first
// kLookedAtBytes, or all of it if it is shorter.
inline constexpr size_t kLookedAtBytes = 1u << 20;
std::string data_in(const std::string& first);

// EEXIST, in words, when the disk's beginning or end, where partition tables, file systems and arrays have their marks,
// look as if it held data. `act`: what would destroy it.
coro::Task<Status> refuse_data(io::Loop& loop, block::Device& device, uint32_t block_bytes, std::string name, std::string act);

}  // namespace netblk::tools
