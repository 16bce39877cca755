// SPDX-License-Identifier: GPL-2.0-only
// State: what a client says about itself, whichever protocol it speaks.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

namespace netblk::client {

enum class State : uint8_t {
  kConnecting,  // no connection now; requests wait
  kConnected,
  kError,  // given up: requests end with EIO at once
};

// The client at one moment.
struct ClientStatus {
  State state = State::kConnecting;
  unsigned connections = 0;  // that serve requests now
  uint64_t reconnects = 0;   // connections made again after a loss
  uint64_t replayed = 0;     // requests that were sent again
  uint64_t timed_out = 0;    // requests that ended with ETIMEDOUT
  // Changes that were acknowledged and are not covered by a successful flush.
  uint64_t unflushed = 0;
  // Some of them may be gone: every flush and FUA ends with EIO until reset_lost().
  bool lost = false;
  std::string lost_reason;  // empty unless lost
  std::string last_error;   // why the last connection or attempt ended; empty at first
};

// Randomness for backoff and for where numbers begin: any 64 bits a call.
using Random = std::function<uint64_t()>;

// "connecting", "connected", "error"
const char* state_text(State state);

}  // namespace netblk::client
