// SPDX-License-Identifier: GPL-2.0-only
// server may not know io/epoll (DESIGN 3).
// room: server
// error: fatal error: io/epoll/epoll_backend\.h: No such file
#include "io/loop.h"
#ifdef FAULT
#include "io/epoll/epoll_backend.h"
#endif
