// SPDX-License-Identifier: GPL-2.0-only
// server may not know store (DESIGN 3).
// room: server
// error: fatal error: store/file_store\.h: No such file
#include "block/device.h"
#ifdef FAULT
#include "store/file_store.h"
#endif
