// SPDX-License-Identifier: GPL-2.0-only
#include "server/gate.h"

#include <fmt/format.h>

namespace netblk::server {

void Gate::set_limits(const GateLimits& limits) {
  const std::lock_guard lock(mutex_);
  limits_ = limits;
}

Gate::Answer Gate::enter(uint64_t number, const io::Address& peer, bool has_handshake) {
  const std::lock_guard lock(mutex_);
  Answer answer;
  std::optional<Ip> ip;
  if (!peer.is_unix()) ip = peer.ip;
  // One goes at most. That of handshakes is a bound on memory, and may be passed by a few: the others hold.
  const auto address = ip ? addresses_.find(*ip) : addresses_.end();
  if (address != addresses_.end() && address->second.connections >= limits_.per_address) {
    if (address->second.half_open.empty()) {
      answer.refusal = fmt::format("its address has {} connections, the limit", address->second.connections);
      return answer;
    }
    answer.shed = address->second.half_open.front();
  } else if (entries_.size() >= limits_.connections) {
    if (half_open_.empty()) {
      answer.refusal = fmt::format("the server has {} connections, its limit", entries_.size());
      return answer;
    }
    answer.shed = half_open_.front();
  } else if (has_handshake && handshakes_.size() >= limits::kMaxHandshakes) {
    answer.shed = handshakes_.front();
  }
  if (answer.shed) forget(*answer.shed);

  Entry& entry = entries_[number];
  entry.ip = ip;
  entry.has_handshake = has_handshake;
  entry.age = half_open_.insert(half_open_.end(), number);
  if (has_handshake) entry.age_of_kind = handshakes_.insert(handshakes_.end(), number);
  if (ip) {
    Address& of = addresses_[*ip];
    ++of.connections;
    entry.age_of_ip = of.half_open.insert(of.half_open.end(), number);
  }
  return answer;
}

void Gate::opened(uint64_t number) {
  const std::lock_guard lock(mutex_);
  const auto found = entries_.find(number);
  if (found != entries_.end()) no_longer_half_open(found->second);
}

void Gate::leave(uint64_t number) {
  const std::lock_guard lock(mutex_);
  forget(number);
}

std::optional<uint64_t> Gate::shed() {
  const std::lock_guard lock(mutex_);
  if (half_open_.empty()) return std::nullopt;
  const uint64_t number = half_open_.front();
  forget(number);
  return number;
}

uint32_t Gate::connections() const {
  const std::lock_guard lock(mutex_);
  return static_cast<uint32_t>(entries_.size());
}

void Gate::no_longer_half_open(Entry& entry) {
  if (!entry.half_open) return;
  entry.half_open = false;
  half_open_.erase(entry.age);
  if (entry.has_handshake) handshakes_.erase(entry.age_of_kind);
  if (entry.ip) addresses_[*entry.ip].half_open.erase(entry.age_of_ip);
}

void Gate::forget(uint64_t number) {
  const auto found = entries_.find(number);
  if (found == entries_.end()) return;
  Entry& entry = found->second;
  no_longer_half_open(entry);
  if (entry.ip) {
    const auto address = addresses_.find(*entry.ip);
    if (--address->second.connections == 0) addresses_.erase(address);
  }
  entries_.erase(found);
}

}  // namespace netblk::server
