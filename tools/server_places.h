// SPDX-License-Identifier: GPL-2.0-only
// Where a server listens: the transports behind server::Place.
#pragma once

#include <memory>

#include "server/server.h"

namespace netblk::tools {

Result<std::unique_ptr<server::Place>> take_place(const server::ListenConfig& where);

}  // namespace netblk::tools
