// SPDX-License-Identifier: GPL-2.0-only
// attach by FUSE and a loop device: a helper process that holds the connection and serves the disk.
#pragma once

#include <string>

#include "base/result.h"
#include "netblk_source.h"
#include "netblk_state.h"

namespace netblk::tools {

// The node. What is attached already, in the same way, is the answer.
Result<std::string> fuse_attach(const Source& source, const AttachOptions& options);

// Takes the device away and waits for its helper to end. `force`: also while it is in use; its users get EIO then.
// False: it is not attached.
Result<bool> fuse_detach(const std::string& device, bool force);

}  // namespace netblk::tools
