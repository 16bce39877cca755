// SPDX-License-Identifier: GPL-2.0-only
// attach by the kernel's ublk: a helper process serves the disk over io_uring. When it dies the requests wait in the kernel
// for its successor.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "netblk_attach.h"
#include "netblk_source.h"

namespace netblk::tools {

struct UblkOptions {
  std::optional<uint32_t> number;  // of /dev/ublkbN; otherwise the first that is free
  AttachOptions disk;
};

// The node. What is attached already, in the same way, is the answer, and gets another helper if its own has died.
Result<std::string> ublk_attach(const Source& source, const UblkOptions& options);

// False: it is not attached. EBUSY: it is in use, or not ours.
Result<bool> ublk_detach(uint32_t number, bool force);

// The owner has taken note of a loss. ENODEV: it is not attached. EINVAL: nothing was lost.
Status ublk_reset(uint32_t number);

// Whether the kernel has the disk of the record, with a helper or without.
bool ublk_is_there(const Record& record);

// Takes away what a helper left that ended before its disk was there. The caller holds lock_attachments().
void ublk_sweep(const Record& record);

// Starts helpers for those disks that have lost theirs, and takes away what is left of disks that have gone; says so on
// stderr. Without root, nothing.
void ublk_mend();

}  // namespace netblk::tools
