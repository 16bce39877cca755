// SPDX-License-Identifier: GPL-2.0-only
// An export of a server as a Device on a loop of the caller, for the commands that copy and measure.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/id.h"
#include "base/result.h"
#include "block/device.h"
#include "client/nbd_client.h"
#include "client/state.h"
#include "coro/task.h"
#include "io/dialer.h"
#include "io/loop.h"
#include "netblk_uri.h"

namespace netblk::tools {

struct ExportOptions {
  bool read_only = false;
  bool takeover = false;
  unsigned connections = 1;
  uint32_t slots = 256;
  uint64_t timeout_ms = 120'000;  // without a server, until requests fail
  bool trust_reconnect = false;   // NBD: a server that came back still has what it acknowledged
  std::string purpose;            // "copy", "bench": the same client at each start on this machine
};

// What the commands need to know of it.
struct ExportFacts {
  uint64_t size_bytes = 0;
  uint32_t block_bytes = 1;  // offsets and lengths are multiples of it
  uint32_t slots = 0;        // requests in flight
  unsigned connections = 1;
  bool read_only = false;
  bool can_flush = true;
  // The same at each start, as far as the protocol tells it: what is behind the name; and what changes when somebody else
  // writes to it.
  std::string identity;
  std::string version;
};

class Export {
 public:
  virtual ~Export() = default;
  virtual block::Device& device() = 0;
  virtual ExportFacts facts() const = 0;
  virtual client::ClientStatus status() const = 0;
  // Before it is destroyed.
  virtual coro::Task<void> close() = 0;

  bool is_connected() const { return status().state == client::State::kConnected; }
  // Why the last request may have failed, for the end of a message; empty: nothing is known.
  std::string reason() const;
};

// How a server is reached.
std::unique_ptr<io::Dialer> make_dialer(const ServerUri& uri);
// What our client is to be for it, deadlines and retries aside.
client::NbdOptions nbd_options_of(const ServerUri& uri, bool read_only, unsigned connections, bool trust_reconnect);

// Errors in words, with what to do.
coro::Task<Result<std::unique_ptr<Export>>> open_export(io::Loop& loop, ServerUri uri, ExportOptions options);

// The same for this machine and these words at each start, and different elsewhere.
Id client_id_for(const std::string& words);

}  // namespace netblk::tools
