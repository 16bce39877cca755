// SPDX-License-Identifier: GPL-2.0-only
// The awaiter is the operation, and stays in the frame that awaits.
// room: io
// error: use of deleted function
#include <utility>

#include "io/op.h"

bool moves() {
  auto awaiter = netblk::io::await([](netblk::io::Op& op) { return op.finish_now(0); });
#ifdef FAULT
  auto other = std::move(awaiter);
#else
  auto& other = awaiter;
#endif
  return other.await_ready();
}
