// SPDX-License-Identifier: GPL-2.0-only
// The common READ, of one whole block whose place is in memory: one move of header and block, without a coroutine.
#pragma once

#include "block/request.h"
#include "store/volume/core.h"
#include "store/volume/points.h"

namespace netblk::store::volume {

// The completion is in request.held, and the view outlives the request. False: it is for read_range(), which is asked as well
// where something is wrong: `otherwise` is called then, and answers.
bool quick_read(Core& core, const View& view, block::Request& request,
                void (*otherwise)(Core& core, const View& view, block::Request& request));

}  // namespace netblk::store::volume
