// SPDX-License-Identifier: GPL-2.0-only
// block may not know store (DESIGN 3).
// room: block
// error: fatal error: store/file_store\.h: No such file
#include "coro/mailbox.h"
#ifdef FAULT
#include "store/file_store.h"
#endif
