// SPDX-License-Identifier: GPL-2.0-only
// coro may not know io (DESIGN 3).
// room: coro
// error: fatal error: io/op\.h: No such file
#include "base/check.h"
#ifdef FAULT
#include "io/op.h"
#endif
