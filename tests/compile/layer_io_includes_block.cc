// SPDX-License-Identifier: GPL-2.0-only
// io may not know block (DESIGN 3).
// room: io
// error: fatal error: block/request\.h: No such file
#include "coro/task.h"
#ifdef FAULT
#include "block/request.h"
#endif
