// SPDX-License-Identifier: GPL-2.0-only
#include "client/state.h"

namespace netblk::client {

const char* state_text(State state) {
  switch (state) {
    case State::kConnecting: return "connecting";
    case State::kConnected: return "connected";
    case State::kError: return "error";
  }
  return "unknown";
}

}  // namespace netblk::client
