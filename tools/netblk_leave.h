// SPDX-License-Identifier: GPL-2.0-only
// `netblk detach --lazy`: a disk in use goes when its last user has closed it. A process waits for that, whose lock on
// /run/netblk/leaving/DISK says that it does; who takes the file away calls it off.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/result.h"

namespace netblk::tools {

// Starts the process, unless there is one. `detach` fails with EBUSY as long as the disk is in use. source: what the disk
// is, for people: the node may be another's when something has failed.
Status leave_lazily(const std::string& node, const std::string& source, const std::function<Result<bool>()>& detach);

bool is_leaving(const std::string& node);

// Whose process came to no good end, and why: told until somebody takes note of it, or attaches the source again.
struct FailedLeave {
  std::string node;
  std::string source;
  std::string why;
};
std::vector<FailedLeave> failed_leaves();
// False: there was none.
bool forget_failed_leave(const std::string& node);

// The disk stays. The caller holds lock_attachments(), as the process does while it detaches.
void stay(const std::string& node);

}  // namespace netblk::tools
