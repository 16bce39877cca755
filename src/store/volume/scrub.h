// SPDX-License-Identifier: GPL-2.0-only
// Reads what a volume keeps, and compares it with its sums: `check` and `scrub`.
#pragma once

#include "base/result.h"
#include "coro/task.h"
#include "io/loop.h"
#include "store/volume/core.h"
#include "store/volume/volume.h"

namespace netblk::store::volume {

// Beside requests, checkpoints and changes of names. ECANCELED: it was stopped. is_settled: nothing has changed since the last
// checkpoint, so that its counts can be compared.
coro::Task<Result<CheckReport>> scrub(io::Loop& loop, Core& core, const CheckOptions& options, bool is_settled);

}  // namespace netblk::store::volume
