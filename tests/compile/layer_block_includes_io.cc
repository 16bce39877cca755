// SPDX-License-Identifier: GPL-2.0-only
// block may not know io (DESIGN 3): a request knows its loop as a mailbox.
// room: block
// error: fatal error: io/loop\.h: No such file
#include "coro/mailbox.h"
#ifdef FAULT
#include "io/loop.h"
#endif
