// SPDX-License-Identifier: GPL-2.0-only
// The kernel holds the address of an operation.
// room: io
// error: use of deleted function
#include <utility>

#include "io/op.h"

struct SomeOp : netblk::io::Op {
  SomeOp() : Op([](netblk::coro::Runnable&) {}) {}
};

void moves(SomeOp& op) {
#ifdef FAULT
  SomeOp other = std::move(op);
#else
  SomeOp& other = op;
#endif
  (void)other;
}
