// SPDX-License-Identifier: GPL-2.0-only
// State: what a client says about itself, whichever protocol it speaks.
#pragma once

#include <cstdint>

namespace netblk::client {

enum class State : uint8_t {
  kConnecting,  // no connection now; requests wait
  kConnected,
  kError,  // given up: requests end with EIO at once
};

// "connecting", "connected", "error"
const char* state_text(State state);

}  // namespace netblk::client
