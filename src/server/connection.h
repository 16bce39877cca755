// SPDX-License-Identifier: GPL-2.0-only
// Connection: an accepted connection from its first byte on, whichever version of the protocol its client speaks.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "coro/task.h"
#include "io/address.h"
#include "server/exports.h"
#include "server/link.h"
#include "server/nbd_session.h"
#include "server/session1.h"
#include "server/session2.h"

namespace netblk::server {

class Connection {
 public:
  // name: for the log. context and exports outlive the connection.
  Connection(SessionContext& context, const ExportTable& exports, Protocol protocol, std::unique_ptr<io::Stream> stream,
             const io::Address& peer, const std::string& name);

  // Ends when the connection is over and every request that it submitted has ended.
  coro::Task<void> run();

  // Stops reading; what was accepted is answered, then the connection closes. `reason` is for the log.
  void drain(const std::string& reason) { link_.drain(reason); }

  // Its place is given to another, unless its handshake is over.
  void shed() {
    if (!link_.is_open()) link_.abort("others came, and its handshake was not over");
  }
  void on_opened(std::function<void()> call) { link_.on_opened(std::move(call)); }
  bool is_open() const { return link_.is_open(); }

  // Every limits::kSweepPeriodMs.
  void sweep(uint64_t now_ms);

  // For the log, after run(): how it ended, and its requests.
  std::string summary() const;

 private:
  coro::Task<void> speak();

  coro::Task<void> speak_netblk();

  const ExportTable& exports_;
  const Protocol protocol_;
  const io::Address peer_;
  std::shared_ptr<Export> first_;  // entered: what a netblk/1 client gets
  bool refused_ = false;
  Link link_;
  std::unique_ptr<Session1> session1_;
  std::unique_ptr<Session2> session2_;
  std::unique_ptr<NbdSession> nbd_;
};

}  // namespace netblk::server
