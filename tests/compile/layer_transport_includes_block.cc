// SPDX-License-Identifier: GPL-2.0-only
// transport may not know block (DESIGN 3).
// room: transport
// error: fatal error: block/device\.h: No such file
#include "io/stream.h"
#ifdef FAULT
#include "block/device.h"
#endif
