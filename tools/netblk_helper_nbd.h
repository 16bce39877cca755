// SPDX-License-Identifier: GPL-2.0-only
// The helper process of a disk of the kernel's nbd.
#pragma once

#include <string>

#include "netblk_attach_nbd.h"
#include "netblk_helper_process.h"
#include "netblk_source.h"

namespace netblk::tools {

// What /sys/block/nbdN/backend has for a disk of ours.
std::string nbd_backend_of(const std::string& source);

// Attaches, or takes over the disk of a helper that has died (orphan), and serves until the disk has gone. The exit
// status.
int run_nbd_helper(const Source& source, const NbdOptions& options, const Record* orphan, HelperParent& parent);

}  // namespace netblk::tools
