// SPDX-License-Identifier: GPL-2.0-only
// Programmer errors abort; errors that operation can cause are values (result.h).
#pragma once

namespace netblk {

// Prints "file:line: check failed: what" on stderr and aborts.
[[noreturn]] void check_failed(const char* file, int line, const char* what);

}  // namespace netblk

// Stays on in every build: a broken invariant must not go on to touch data.
#define NETBLK_CHECK(condition, what)                                \
  do {                                                               \
    if (!(condition)) [[unlikely]]                                   \
      ::netblk::check_failed(__FILE__, __LINE__, what);              \
  } while (0)
