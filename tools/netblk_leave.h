// SPDX-License-Identifier: GPL-2.0-only
// `netblk detach --lazy`: a disk in use goes when its last user has closed it. A process waits for that, whose lock on
// /run/netblk/leaving/DISK says that it does; who takes the file away calls it off.
#pragma once

#include <functional>
#include <string>

#include "base/result.h"

namespace netblk::tools {

// Starts the process, unless there is one. `detach` fails with EBUSY as long as the disk is in use.
Status leave_lazily(const std::string& node, const std::function<Result<bool>()>& detach);

bool is_leaving(const std::string& node);

// The disk stays. The caller holds lock_attachments(), as the process does while it detaches.
void stay(const std::string& node);

}  // namespace netblk::tools
