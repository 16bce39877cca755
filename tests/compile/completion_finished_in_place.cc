// SPDX-License-Identifier: GPL-2.0-only
// finish() consumes the duty: a second call stands out.
// room: block
// error: discards qualifiers|passing
#include <utility>

#include "block/request.h"

void finishes(netblk::block::Completion completion) {
#ifdef FAULT
  completion.finish(0);
#else
  std::move(completion).finish(0);
#endif
}
