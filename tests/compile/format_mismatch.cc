// SPDX-License-Identifier: GPL-2.0-only
// Messages are checked when they are compiled.
// room: base
// error: call to (consteval|immediate) function|not a constant expression|call to non-.constexpr
#include "base/log.h"

void logs() {
#ifdef FAULT
  netblk::log_info("{:d}", "text");
#else
  netblk::log_info("{}", "text");
#endif
}
