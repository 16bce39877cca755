// SPDX-License-Identifier: GPL-2.0-only
// An error that nobody looks at is lost.
// room: base
// error: ignoring return
#include "base/result.h"

netblk::Status works();

void calls() {
#ifdef FAULT
  works();
#else
  if (!works()) return;
#endif
}
