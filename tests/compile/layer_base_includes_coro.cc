// SPDX-License-Identifier: GPL-2.0-only
// base may not know coro (DESIGN 3).
// room: base
// error: fatal error: coro/task\.h: No such file
#include "base/check.h"
#ifdef FAULT
#include "coro/task.h"
#endif
