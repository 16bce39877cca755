// SPDX-License-Identifier: GPL-2.0-only
// attach by the kernel's ublk: a helper process serves the disk over io_uring. When it dies the requests wait in the kernel
// for its successor.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "netblk_source.h"
#include "netblk_state.h"

namespace netblk::tools {

struct UblkOptions {
  std::optional<uint32_t> number;  // of /dev/ublkbN; otherwise the first that is free
  AttachOptions disk;
};

// The node. What is attached already, in the same way, is the answer, and gets another helper if its own has died.
Result<std::string> ublk_attach(const Source& source, const UblkOptions& options);

// False: it is not attached. EBUSY: it is in use, or not ours.
Result<bool> ublk_detach(uint32_t number, bool force);

// Whether the kernel has the disk of the record, with a helper or for another.
bool ublk_is_there(const Record& record);

// Ends the disk of a helper that has gone: its requests fail. Nothing when there is none.
Status ublk_stop(const Record& record);
// The same, and takes it away when nobody holds it any more. EBUSY: somebody still does after that time.
Status ublk_remove(const Record& record, uint64_t timeout_ms);

}  // namespace netblk::tools
