// SPDX-License-Identifier: GPL-2.0-only
// attach by FUSE and a loop device: a helper process that holds the connection and serves the disk.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "netblk_state.h"
#include "netblk_source.h"

namespace netblk::tools {

struct AttachOptions {
  uint64_t size_bytes = 0;  // 0: the server has to tell it (netblk/2)
  uint64_t timeout_ms = 5000;
  bool timeout_given = false;  // otherwise netblk/2 has deadlines of its own
  unsigned connections = 1;
  bool read_only = false;
  bool shared = false;
  bool takeover = false;
  bool trust_reconnect = false;  // NBD: a server that came back still has what it acknowledged
};

// How long a detach waits for a helper: its release of a healthy connection, or the time-out of one attempt that hangs.
inline constexpr uint64_t kHelperEndMs = 20'000;

// What is attached in this way; nothing when it is not attached. An error when it is, and not as it is asked for.
Result<std::optional<Record>> attached_already(const std::string& server, const std::string& way,
                                               const AttachOptions& options);

// Takes away what helpers left that ended before their disk was there. The caller holds lock_attachments().
void sweep_unfinished();

// Starts the helper and waits until the disk is there: its node. What is attached already, in the same way, is the
// answer.
Result<std::string> fuse_attach(const Source& source, const AttachOptions& options);

// Takes the device away and waits for its helper to end. `force`: also while it is in use; its users get EIO then.
// False: it is not attached.
Result<bool> fuse_detach(const std::string& device, bool force);

// The owner has taken note of a loss. ENODEV: it is not attached. EINVAL: nothing was lost.
Status fuse_reset(const std::string& device);

}  // namespace netblk::tools
