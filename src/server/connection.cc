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
  // Also of one that has said nothing yet: its place keeps the export open.
  if (first_ != nullptr && first_->closed()) link_.drain(first_->why_closed());
  if (session2_ != nullptr) session2_->sweep(now_ms);
  if (nbd_ != nullptr) nbd_->sweep();
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
  nbd_ = std::make_unique<NbdSession>(link_, exports_, peer_);
  co_await nbd_->run();
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
  if (!refusal.empty() && exports_.all().size() <= 1 && !exports_.is_away({})) {
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
  const std::string& why = link_.close_reason();
  if (refused_ || (session2_ != nullptr && session2_->refused()) || (nbd_ != nullptr && nbd_->refused()))
    return "refused: " + why;
  const auto counted = [&](const auto& session) {
    return fmt::format("closed: {}; {} requests, {} failed", why, session->requests(), session->failed_requests());
  };
  if (session1_ != nullptr) return counted(session1_);
  if (session2_ != nullptr) return counted(session2_);
  if (nbd_ != nullptr) return counted(nbd_);
  return "closed: " + why;
}

}  // namespace netblk::server
