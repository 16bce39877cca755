// SPDX-License-Identifier: GPL-2.0-only
// io may not know io/uring (DESIGN 3).
// room: io
// error: fatal error: io/uring/uring_backend\.h: No such file
#include "io/loop.h"
#ifdef FAULT
#include "io/uring/uring_backend.h"
#endif
