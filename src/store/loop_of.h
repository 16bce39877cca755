// SPDX-License-Identifier: GPL-2.0-only
#pragma once

#include "block/request.h"
#include "io/loop.h"

namespace netblk::store {

// The loop that a request came from. The seam knows it only as a mailbox; every mailbox of this process is a loop.
inline io::Loop& loop_of(const block::Request& request) { return static_cast<io::Loop&>(*request.loop); }

}  // namespace netblk::store
