// SPDX-License-Identifier: GPL-2.0-only
// The helper process of a FUSE file under a loop device.
#pragma once

#include "netblk_helper_process.h"
#include "netblk_source.h"

namespace netblk::tools {

// Attaches, and serves until the loop device is gone. The exit status.
int run_fuse_helper(const Source& source, const AttachOptions& options, HelperParent& parent);

}  // namespace netblk::tools
