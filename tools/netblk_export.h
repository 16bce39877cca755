// SPDX-License-Identifier: GPL-2.0-only
// An export of a server as a Device on a loop of the caller, for the commands that copy and measure.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "base/id.h"
#include "base/result.h"
#include "client/netblk2_client.h"
#include "coro/task.h"
#include "io/dialer.h"
#include "io/fd.h"
#include "io/loop.h"
#include "netblk_uri.h"

namespace netblk::tools {

struct ExportOptions {
  bool read_only = false;
  bool takeover = false;
  unsigned connections = 1;
  uint32_t slots = 256;
  uint64_t timeout_ms = 120'000;  // without a server, until requests fail
  std::string purpose;            // "copy", "bench": the same client at each start on this machine
};

class Export {
 public:
  Export(io::UniqueFd holder, std::unique_ptr<io::Dialer> dialer, std::unique_ptr<client::Netblk2Client> client)
      : holder_(std::move(holder)), dialer_(std::move(dialer)), client_(std::move(client)) {}

  block::Device& device() { return *client_; }
  client::Session2Info info() const { return client_->info(); }
  client::Status2 status() const { return client_->status(); }
  bool is_connected() const { return client_->state() == client::State::kConnected; }
  // Why the last request may have failed, for the end of a message; empty: nothing is known.
  std::string reason() const;

  // Before it is destroyed.
  coro::Task<void> close() { return client_->close(); }

 private:
  io::UniqueFd holder_;
  std::unique_ptr<io::Dialer> dialer_;
  std::unique_ptr<client::Netblk2Client> client_;
};

// Errors in words, with what to do.
coro::Task<Result<std::unique_ptr<Export>>> open_export(io::Loop& loop, ServerUri uri, ExportOptions options);

// The same for this machine and these words at each start, and different elsewhere.
Id client_id_for(const std::string& words);

}  // namespace netblk::tools
