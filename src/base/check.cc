// SPDX-License-Identifier: GPL-2.0-only
#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace netblk {

void check_failed(const char* file, int line, const char* what) {
  std::fprintf(stderr, "%s:%d: check failed: %s\n", file, line, what);
  std::abort();
}

}  // namespace netblk
