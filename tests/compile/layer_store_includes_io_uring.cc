// SPDX-License-Identifier: GPL-2.0-only
// store may not know io/uring (DESIGN 3).
// room: store
// error: fatal error: io/uring/uring_backend\.h: No such file
#include "io/file.h"
#ifdef FAULT
#include "io/uring/uring_backend.h"
#endif
