// SPDX-License-Identifier: GPL-2.0-only
// What a user of an NBD client chooses and sees (the public protocol text). Times are in milliseconds, sizes in bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "client/state.h"
#include "proto/nbd/client_greeting.h"

namespace netblk::client {

inline constexpr unsigned kMaxNbdConnections = 16;
inline constexpr uint32_t kMaxNbdSlots = 4096;

struct NbdOptions {
  std::string name = "server";  // for the log
  std::string export_name{};    // empty: the server's default

  bool read_only = false;  // refuses changes here, whatever the server allows

  // 1 to 16; more than one only where the server says that it may be (NBD_FLAG_CAN_MULTI_CONN).
  unsigned connections = 1;
  uint32_t slots = 256;  // requests in flight, all connections together, 1 to 4096

  // What is asked for; it is in force if the server agrees.
  bool structured = true, extended = true, allocation = true;

  // NBD cannot tell whether a server that came back still has the writes that it had acknowledged. Without trust, a
  // reconnect while some of them were not flushed sets lost(), as netblk/2 does when it knows of a loss.
  bool trust_reconnect = false;

  // Of one request, from submit(); 0: none. Then it ends with ETIMEDOUT, and its connection is made anew. NBD has no fence:
  // a change that ended so may still take effect later. Longer than dead_time_ms, or it does not see an outage through.
  uint64_t request_timeout_ms = 180'000;
  uint64_t connect_timeout_ms = 5'000;     // of one connection, to its establishment
  uint64_t handshake_timeout_ms = 15'000;  // of the negotiation
  // Between two attempts: grows from the first to the second, each time a random part of it.
  uint64_t min_backoff_ms = 100, max_backoff_ms = 5'000;
  // While requests wait and no connection serves them: then all of them end with EIO, and the state is kError.
  uint64_t dead_time_ms = 120'000;
  bool retry_after_error = true;      // go on trying, and recover
  uint64_t close_timeout_ms = 5'000;  // for what is in flight at close(), and again for the goodbye

  // Called on the thread of the client's loop; they return soon and do not destroy the client.
  std::function<void(uint64_t size_bytes)> on_resize{};
  std::function<void(State)> on_state{};
  std::function<void(const std::string& why)> on_lost{};
};

// What open() found, and what is in force. Constant but for its size_bytes.
struct NbdInfo {
  proto::NbdExport found{};
  unsigned connections = 1;  // that the client makes

  bool read_only() const { return found.read_only(); }
  bool can(unsigned flag) const { return found.has(flag); }
};

}  // namespace netblk::client
