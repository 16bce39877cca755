// SPDX-License-Identifier: GPL-2.0-only
// The guard of a disk whose requests wait in the kernel when its helper has died, without a limit of the kernel's own: a
// small process, in memory for good, that waits for the helper's end and starts another. If none can be started within the
// disk's dead time, it stops the disk, so that the requests end.
#pragma once

#include "io/fd.h"
#include "netblk_state.h"

namespace netblk::tools {

// Starts the guard of a disk that is there, unless it has one, or needs none.
void start_guard(const Record& record);

// The disk is taken away on purpose: its guard leaves it alone, and ends with the helper. The result is the guard's process
// (a pidfd), invalid where there is none.
io::UniqueFd call_off_guard(const Record& record);

// After the helper's end. A few seconds at the most: what ends with a service must not stay behind it.
void wait_for_guard(const io::UniqueFd& process);

}  // namespace netblk::tools
