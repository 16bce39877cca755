// SPDX-License-Identifier: GPL-2.0-only
// SIGINT and SIGTERM as a wish to end in order; the second one ends at once.
#pragma once

namespace netblk::tools {

void catch_interrupts();
bool interrupted();

}  // namespace netblk::tools
