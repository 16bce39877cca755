// SPDX-License-Identifier: GPL-2.0-only
// attach by the kernel's nbd: a helper process connects, hands the sockets to the kernel, and replaces those that die.
// The disk does without the helper as long as its connections live.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "netblk_source.h"
#include "netblk_state.h"

namespace netblk::tools {

struct NbdOptions {
  std::optional<uint32_t> number;  // of /dev/nbdN; otherwise the kernel picks one
  AttachOptions disk;
};

// The node. What is attached already, in the same way, is the answer, and gets another helper if its own has died.
Result<std::string> nbd_attach(const Source& source, const NbdOptions& options);

// False: it is not attached. EBUSY: it is, but not by us.
Result<bool> nbd_detach(uint32_t number, bool force);

// Whether the kernel has the disk of the record, with a helper or without.
bool nbd_is_there(const Record& record);

}  // namespace netblk::tools
