// SPDX-License-Identifier: GPL-2.0-only
// attach by FUSE and a loop device: a helper process that holds the connection and serves the disk.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "netblk_uri.h"

namespace netblk::tools {

struct AttachOptions {
  uint64_t size_bytes = 0;
  uint64_t timeout_ms = 5000;
  bool read_only = false;
};

// Starts the helper and waits until the disk is there: its node.
Result<std::string> fuse_attach(const ServerUri& uri, const AttachOptions& options);

// Takes the device away and waits for its helper to end. `force`: also while it is in use; its users get EIO then.
// False: it is not attached.
Result<bool> fuse_detach(const std::string& device, bool force);

}  // namespace netblk::tools
