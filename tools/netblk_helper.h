// SPDX-License-Identifier: GPL-2.0-only
// The helper process of one attachment.
#pragma once

#include "io/fd.h"
#include "netblk_attach.h"

namespace netblk::tools {

// Called in a fresh child of one thread; becomes a daemon, attaches, tells the node ("/dev/loop0\n") or "!" and the
// reason to `parent`, and serves until the loop device is gone. The exit status.
int run_helper(const ServerUri& uri, const AttachOptions& options, io::UniqueFd parent);

}  // namespace netblk::tools
