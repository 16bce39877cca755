// SPDX-License-Identifier: GPL-2.0-only
#include "server/shard.h"

#include <utility>

#include "base/log.h"
#include "io/address.h"

namespace netblk::server {

// Messages from other threads. Each owns itself and ends when it has run.
struct Shard::Adoption : io::Posted {
  Adoption(Shard& to, io::UniqueFd socket, uint64_t serial, Protocol spoken)
      : Posted([](coro::Runnable& self) {
          const std::unique_ptr<Adoption> message(&static_cast<Adoption&>(static_cast<Posted&>(self)));
          Shard& target = message->shard;
          ++target.live_;
          target.scope_.spawn(target.connection(std::move(message->fd), message->number, message->protocol));
        }),
        shard(to), fd(std::move(socket)), number(serial), protocol(spoken) {}
  Shard& shard;
  io::UniqueFd fd;
  uint64_t number;
  Protocol protocol;
};

struct Shard::Order : io::Posted {
  Order(Shard& to, std::function<void(Shard&)> what)
      : Posted([](coro::Runnable& self) {
          const std::unique_ptr<Order> message(&static_cast<Order&>(static_cast<Posted&>(self)));
          message->action(message->shard);
        }),
        shard(to), action(std::move(what)) {}
  Shard& shard;
  std::function<void(Shard&)> action;
};

Shard::Sweep::Sweep(Shard& owner)
    : Timer(owner.loop(), [](coro::Runnable& self) { static_cast<Sweep&>(self).shard.sweep(); }), shard(owner) {}

Shard::Shard(std::unique_ptr<io::Loop> loop, ShardContext& shared, const Timeouts& timeouts)
    : loop_(std::move(loop)),
      shared_(shared),
      context_{*loop_, {}, {}, timeouts.request_ms, timeouts.send_ms, timeouts.handshake_ms},
      sweep_(*this) {}

void Shard::order(std::function<void(Shard&)> what) { loop_->post(*std::make_unique<Order>(*this, std::move(what)).release()); }

void Shard::adopt(io::UniqueFd fd, uint64_t number, Protocol protocol) {
  loop_->post(*std::make_unique<Adoption>(*this, std::move(fd), number, protocol).release());
}

void Shard::shed(uint64_t number) {
  order([number](Shard& shard) {
    const auto found = shard.open_.find(number);
    if (found != shard.open_.end()) found->second->shed();
  });
}

void Shard::set_timeouts(const Timeouts& timeouts) {
  order([timeouts](Shard& shard) {
    shard.context_.request_timeout_ms = timeouts.request_ms;
    shard.context_.send_timeout_ms = timeouts.send_ms;
    shard.context_.handshake_timeout_ms = timeouts.handshake_ms;
  });
}

void Shard::set_busy_poll_us(uint32_t microseconds) {
  order([microseconds](Shard& shard) { shard.loop_->set_busy_poll_us(microseconds); });
}

void Shard::drain() {
  order([](Shard& shard) {
    shard.draining_ = true;
    for (const auto& [number, open] : shard.open_) open->drain("the server stops");
    shard.drained_if_empty();
  });
}

void Shard::look_at_exports() {
  order([](Shard& shard) { shard.sweep(); });
}

void Shard::stop() {
  order([](Shard& shard) { shard.stop_event_.set(); });
}

void Shard::drained_if_empty() {
  if (!draining_ || live_ != 0 || !on_drained_) return;
  std::exchange(on_drained_, nullptr)();
}

void Shard::sweep() {
  const uint64_t now = loop_->now_ms();
  for (const auto& [number, open] : open_) open->sweep(now);
  const bool worth_trimming = context_.buffers.taken() == 0 && context_.buffers.cached_bytes() > limits::kIdleCacheBytes;
  quiet_sweeps_ = worth_trimming ? quiet_sweeps_ + 1 : 0;
  if (quiet_sweeps_ >= limits::kIdleSweeps) {
    context_.buffers.trim();
    quiet_sweeps_ = 0;
  }
  if (!open_.empty() || context_.buffers.cached_bytes() > limits::kIdleCacheBytes)
    sweep_.arm(now + limits::kSweepPeriodMs);
}

coro::Task<void> Shard::serve(std::function<void()> on_drained) {
  on_drained_ = std::move(on_drained);
  co_await stop_event_.wait();
  co_await scope_.join();
  sweep_.cancel();
}

coro::Task<void> Shard::connection(io::UniqueFd fd, uint64_t number, Protocol protocol) {
  const auto peer = io::peer_address(fd.get());
  const std::string name =
      fmt::format("connection {} from {}", number, peer ? peer.value().text() : std::string("a peer that is gone"));
  std::string refusal;
  if (draining_) refusal = "the server stops";
  if (refusal.empty() && !peer) refusal = peer.error().message;
  if (!refusal.empty()) {
    shared_.refusals.line(LogLevel::kInfo, fmt::format("{} refused: {}", name, refusal));
  } else {
    if (shared_.prepare_socket != nullptr && !peer.value().is_unix()) shared_.prepare_socket(fd.get());
    Connection open(context_, shared_.exports, protocol, loop_->make_stream(std::move(fd)), peer.value(), name);
    open.on_opened([this, number] { shared_.gate.opened(number); });
    open_.emplace(number, &open);
    if (!sweep_.armed() && !sweep_.queued) sweep_.arm(loop_->now_ms() + limits::kSweepPeriodMs);
    co_await open.run();
    open_.erase(number);
    const std::string line = fmt::format("{} {}", name, open.summary());
    if (open.is_open()) {
      log_line(LogLevel::kInfo, line);
    } else {
      shared_.refusals.line(LogLevel::kInfo, line);
    }
  }
  fd.reset();
  shared_.gate.leave(number);
  --live_;
  if (shared_.on_end) shared_.on_end();
  drained_if_empty();
}

}  // namespace netblk::server
