// SPDX-License-Identifier: GPL-2.0-only
// store may not know server (DESIGN 3).
// room: store
// error: fatal error: server/server\.h: No such file
#include "block/device.h"
#ifdef FAULT
#include "server/server.h"
#endif
