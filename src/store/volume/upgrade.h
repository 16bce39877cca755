// SPDX-License-Identifier: GPL-2.0-only
// Brings the file of a volume to the present format version (docs/volume-format.md, "Versions").
#pragma once

#include <cstdint>

#include "base/result.h"
#include "coro/task.h"
#include "io/file.h"
#include "io/loop.h"

namespace netblk::store::volume {

inline constexpr uint32_t kOldestVersion = 1;

// In place; nobody else has the file. The version that it had: the present one, if nothing was to be done. Stopped at any
// moment it leaves a volume that upgrade_volume() brings there. EBADMSG: no volume, or one that is damaged beyond use;
// EPROTONOSUPPORT: of a newer version, or with an unknown feature.
coro::Task<Result<uint32_t>> upgrade_volume(io::Loop& loop, io::File& file);

}  // namespace netblk::store::volume
