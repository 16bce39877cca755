// SPDX-License-Identifier: GPL-2.0-only
// The helper process of a disk of the kernel's ublk.
#pragma once

#include <string>

#include "attach/ublk/ublk_control.h"
#include "netblk_attach_ublk.h"
#include "netblk_helper_process.h"

namespace netblk::tools {

// Attaches, or takes over the disk of a helper that has died (orphan), and serves until the disk has gone. The exit
// status.
int run_ublk_helper(const Source& source, const UblkOptions& options, const Record* orphan, HelperParent& parent);

// Removes a disk that was stopped and that no helper has, as soon as nobody holds it. EBUSY: not within that time.
Status remove_ublk_disk(attach::UblkControl& control, uint32_t number, uint64_t timeout_ms);

}  // namespace netblk::tools
