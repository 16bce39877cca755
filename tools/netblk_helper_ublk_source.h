// SPDX-License-Identifier: GPL-2.0-only
// What a disk of ublk is served from, in its helper process.
#pragma once

#include <memory>

#include "attach/ublk/ublk_control.h"
#include "base/result.h"
#include "netblk_helper_disk.h"

namespace netblk::tools {

attach::UblkTraits ublk_traits(HelperDisk& disk);

// Opens what `source` names, unless no disk of ublk can be like that. `backend`, whose loops take commands, and `clock`
// outlive the result. unflushed: open_helper_disk()'s.
Result<std::unique_ptr<HelperDisk>> open_ublk_source(io::Backend& backend, const io::Clock& clock, const Source& source,
                                                     const AttachOptions& options, uint64_t unflushed);

}  // namespace netblk::tools
