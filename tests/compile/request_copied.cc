// SPDX-License-Identifier: GPL-2.0-only
// A device holds the address of a request.
// room: block
// error: use of deleted function
#include "block/request.h"

void copies(netblk::block::Request& request) {
#ifdef FAULT
  netblk::block::Request other = request;
#else
  netblk::block::Request& other = request;
#endif
  (void)other;
}
