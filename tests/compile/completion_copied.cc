// SPDX-License-Identifier: GPL-2.0-only
// One request has one duty to answer it.
// room: block
// error: use of deleted function
#include <utility>

#include "block/request.h"

void copies(netblk::block::Completion completion) {
#ifdef FAULT
  netblk::block::Completion other = completion;
#else
  netblk::block::Completion other = std::move(completion);
#endif
  std::move(other).finish(0);
}
