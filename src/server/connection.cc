// SPDX-License-Identifier: GPL-2.0-only
#include "server/connection.h"

#include <utility>

#include "base/log.h"
#include "protocol/netblk_wire.h"

namespace netblk::server {

Connection::Connection(SessionContext& context, const ExportTable& exports, Protocol protocol,
                       std::unique_ptr<io::Stream> stream, const io::Address& peer, const std::string& name)
    : exports_(exports), protocol_(protocol), peer_(peer), link_(context, std::move(stream), name) {}

void Connection::sweep(uint64_t now_ms) {
  if (session1_ != nullptr && first_->closed()) link_.drain("the export was removed or changed");
  if (session2_ != nullptr) session2_->sweep(now_ms);
  link_.sweep(now_ms);
}

coro::Task<void> Connection::run() {
  co_await speak();
  if (first_ != nullptr) first_->leave();
  co_await link_.finish();
}

coro::Task<void> Connection::speak() {
  if (protocol_ == Protocol::kNetblk) {
    co_await speak_netblk();
    co_return;
  }
  link_.begin_handshake();
  refused_ = true;
  link_.give_up("NBD is not served yet", false);
}

// Who has not said a byte yet may be a netblk/1 client, which is silent for as long as it likes, and counts as one: a
// place in the first export is its own until it asks for another.
coro::Task<void> Connection::speak_netblk() {
  std::string refusal;
  std::shared_ptr<Export> first = exports_.first();
  if (first == nullptr) {
    refusal = "nothing is exported";
  } else if (refusal = first->enter(peer_); refusal.empty()) {
    first_ = std::move(first);
  }
  if (!refusal.empty() && exports_.all().size() <= 1) {
    refused_ = true;
    link_.give_up(refusal, false);
    co_return;
  }
  const bool heard = co_await link_.receive(!refusal.empty(), link_.context().handshake_timeout_ms);
  if (!heard) {
    log_info("{} opened: it said nothing", link_.name());
    co_return;
  }
  if (link_.unread()[0] == std::byte{NETBLK2_MAGIC[0]}) {
    session2_ = std::make_unique<Session2>(link_, exports_, peer_, std::exchange(first_, nullptr));
    co_await session2_->run();
  } else if (!refusal.empty()) {
    refused_ = true;
    link_.give_up(refusal, false);
  } else {
    log_info("{} opened: export '{}', netblk/1", link_.name(), first_->config().name);
    link_.opened();
    session1_ = std::make_unique<Session1>(link_, first_);
    co_await session1_->run();
  }
}

std::string Connection::summary() const {
  if (refused_ || (session2_ != nullptr && session2_->refused())) return "refused: " + link_.close_reason();
  if (session1_ == nullptr && session2_ == nullptr) return "closed: " + link_.close_reason();
  return fmt::format("closed: {}; {} requests, {} failed", link_.close_reason(),
                     session1_ != nullptr ? session1_->requests() : session2_->requests(),
                     session1_ != nullptr ? session1_->failed_requests() : session2_->failed_requests());
}

}  // namespace netblk::server
