// SPDX-License-Identifier: GPL-2.0-only
// Block status from the file system.
#pragma once

#include <cstdint>

#include "block/request.h"

namespace netblk::store {

// Adds what the file has of [from, until), which lies `shift` bytes further on in it. False: the answer is full.
// Each answer of the file system is about a moment, and the extents are of several: a write that comes meanwhile is in
// one or not, as if it had come before or after.
bool add_file_extents(int fd, uint64_t shift, uint64_t from, uint64_t until, block::Request& request);

}  // namespace netblk::store
