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

// Where the time of the answered requests of one kind went, all together, since the client was made. A long request
// counts for each part that went to the server.
struct Latency {
  uint64_t requests = 0;
  uint64_t queue_ns = 0;  // in the client: from the user to the first byte sent
  uint64_t trip_ns = 0;   // from there to the last byte of the answer
  // Of so many of them the server has told what it took; the rest of their trip is the wire's.
  uint64_t told = 0;
  uint64_t told_trip_ns = 0;
  uint64_t server_ns = 0;  // in the server, and not in the store
  uint64_t store_ns = 0;

  uint64_t wire_ns() const { return told_trip_ns - server_ns - store_ns; }
  bool operator==(const Latency&) const = default;
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
  // For how long the oldest request has been waiting, as of a tenth of a second ago; 0: none, or none as old as that.
  uint64_t oldest_ms = 0;
  Latency reads{}, writes{}, flushes{}, trims{};  // trims: and write-zeroes
  std::string last_error;   // why the last connection or attempt ended; empty at first
};

// Randomness for backoff and for where numbers begin: any 64 bits a call.
using Random = std::function<uint64_t()>;

// "connecting", "connected", "error"
const char* state_text(State state);

}  // namespace netblk::client
