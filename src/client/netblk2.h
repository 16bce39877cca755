// SPDX-License-Identifier: GPL-2.0-only
// What a user of a netblk/2 client chooses and sees (protocol/netblk.md). Times are in milliseconds, sizes in bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/id.h"
#include "block/device.h"
#include "client/state.h"

namespace netblk::client {

struct Options2 {
  std::string name = "server";  // for the log
  std::string export_name{};    // empty: the server's first

  // Who the client is, to the server: the same at each start, and different for each disk that is attached
  // (machine id + device). A new session of a client ends the older ones of the same client. Zero: random.
  Id client_id{};

  bool read_only = false;  // asks for no right to write
  bool shared = false;     // writes beside other shared writers; otherwise it is the only one, or EBUSY
  bool takeover = false;   // at open() only: from whoever writes now

  // How many changes an earlier process was told of that no flush has covered since: they count as this client's own, for
  // what a new generation means.
  uint64_t unflushed = 0;

  unsigned connections = 1;  // 1 to 16; the server may grant fewer
  uint32_t slots = 256;      // requests in flight, all connections together, 16 to 4096; the server may grant fewer

  // What is asked for; it is in force if the server agrees.
  bool crc32c = true;            // checksums of headers and payloads
  bool lz4 = false, zstd = false;  // payloads; with both, LZ4 is what the client sends
  uint32_t heartbeat_ms = 5'000;   // 100 to 600'000; 0: none. A server silent for three periods is gone.
  bool resize = true;              // to hear of changes of the size
  bool times = true;               // to hear how long requests take in the server and in its store
  // Without crc32c, or without compression, there shall be no session (EOPNOTSUPP).
  bool must_have_crc32c = false, must_have_compression = false;

  // Of one request, from submit(); 0: none. Then it ends with ETIMEDOUT, and nothing more is sent before the server has
  // confirmed that it will never take effect. Longer than dead_time_ms, or it does not see an outage through.
  uint64_t request_timeout_ms = 180'000;
  uint64_t connect_timeout_ms = 5'000;   // of one connection, to its establishment
  uint64_t welcome_timeout_ms = 15'000;  // from the hello to the welcome; a server may need 10 s for a fence
  uint64_t open_timeout_ms = 30'000;     // of open() while the server says EAGAIN
  // Between two attempts: grows from the first to the second, each time a random part of it.
  uint64_t min_backoff_ms = 100, max_backoff_ms = 5'000;
  // While requests wait and no connection serves them: then all of them end with EIO, and the state is kError.
  uint64_t dead_time_ms = 120'000;
  bool retry_after_error = true;      // go on trying, and recover
  uint64_t close_timeout_ms = 5'000;  // for what is in flight at close(), and again for the goodbye

  // auto (open_auto.h): how long a server of netblk/1 may be silent about a hello. 0: it is known to be netblk/2.
  uint64_t silence_is_netblk1_ms = 0;

  // Called on the thread of the client's loop; they return soon and do not destroy the client.
  std::function<void(uint64_t size_bytes)> on_resize{};
  std::function<void(State)> on_state{};
  std::function<void(const std::string& why)> on_lost{};
};

// What open() found, and what is in force. Constant but for size_bytes and generation.
struct Session2Info {
  Id session_id;
  block::Generation generation;
  uint64_t size_bytes = 0;
  uint32_t block_bytes = 0;  // offsets and lengths are multiples of it
  uint32_t preferred_bytes = 0;
  uint32_t max_payload_bytes = 0;  // longer requests are split
  uint32_t slots = 0;
  unsigned max_connections = 0;
  bool read_only = false, can_trim = false, rotational = false;
  bool crc32c = false, lz4 = false, zstd = false, resize = false, times = false;
  uint32_t heartbeat_ms = 0;  // 0: off
};

using Status2 = ClientStatus;

}  // namespace netblk::client
