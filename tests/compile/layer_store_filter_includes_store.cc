// SPDX-License-Identifier: GPL-2.0-only
// store/filter may not know store (DESIGN 3).
// room: store/filter
// error: fatal error: store/memory_store\.h: No such file
#include "block/device.h"
#ifdef FAULT
#include "store/memory_store.h"
#endif
