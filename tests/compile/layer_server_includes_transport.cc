// SPDX-License-Identifier: GPL-2.0-only
// server may not know transport (DESIGN 3): main gives it what listens.
// room: server
// error: fatal error: transport/tcp\.h: No such file
#include "server/config.h"
#ifdef FAULT
#include "transport/tcp.h"
#endif
