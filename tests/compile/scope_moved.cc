// SPDX-License-Identifier: GPL-2.0-only
// Running tasks point at their scope.
// room: coro
// error: use of deleted function
#include <utility>

#include "coro/scope.h"

void moves(netblk::coro::Scope& scope) {
#ifdef FAULT
  netblk::coro::Scope other = std::move(scope);
#else
  netblk::coro::Scope& other = scope;
#endif
  (void)other;
}
