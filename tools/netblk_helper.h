// SPDX-License-Identifier: GPL-2.0-only
// The helper process of one attachment.
#pragma once

#include "netblk_attach.h"
#include "netblk_helper_process.h"

namespace netblk::tools {

// Of FUSE under a loop device: attaches, and serves until the loop device is gone. The exit status.
int run_helper(const Source& source, const AttachOptions& options, HelperParent& parent);

}  // namespace netblk::tools
