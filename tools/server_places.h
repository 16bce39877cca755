// SPDX-License-Identifier: GPL-2.0-only
// Where a server listens: the transports behind server::Place, and the sockets that it was given.
#pragma once

#include <memory>
#include <vector>

#include "server/server.h"

namespace netblk::tools {

Result<std::unique_ptr<server::Place>> take_place(const server::ListenConfig& where);

// Socket activation (sd_listen_fds(3)): the listening sockets that LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES say are
// there from descriptor 3 on. One whose name begins with "netblk" speaks netblk, every other one NBD: those who start a
// server for themselves (libnbd) speak that, and name nothing. What is no listening stream socket is an error that names it.
// Takes the variables out of the environment.
Result<std::vector<server::ListenConfig>> inherited_listens();

}  // namespace netblk::tools
