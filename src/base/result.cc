// SPDX-License-Identifier: GPL-2.0-only
#include "base/result.h"

#include <system_error>

namespace netblk {

std::string errno_text(int code) { return std::generic_category().message(code); }

}  // namespace netblk
