// SPDX-License-Identifier: GPL-2.0-only
// Where systemd counts a process that a disk needs.
#pragma once

namespace netblk::tools {

// At the end of a login session, or at shutdown, systemd ends all that was started in it: first with a signal that a disk
// in use does not heed, and a minute and a half later without asking. So a command that leaves a process behind runs in a
// scope of its own, outside the session, which nobody stops; at the end of a shutdown systemd passes over a helper. It returns where there is no systemd, or no
// session; the program is started anew otherwise.
void leave_login_session(char** argv);

}  // namespace netblk::tools
