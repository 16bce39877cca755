// SPDX-License-Identifier: GPL-2.0-only
// proto/netblk may not know io (DESIGN 3).
// room: proto/netblk
// error: fatal error: io/stream\.h: No such file
#include "protocol/netblk_wire.h"
#ifdef FAULT
#include "io/stream.h"
#endif
