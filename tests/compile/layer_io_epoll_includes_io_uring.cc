// SPDX-License-Identifier: GPL-2.0-only
// io/epoll may not know io/uring (DESIGN 3).
// room: io/epoll
// error: fatal error: io/uring/uring_loop\.h: No such file
#include "io/loop.h"
#ifdef FAULT
#include "io/uring/uring_loop.h"
#endif
