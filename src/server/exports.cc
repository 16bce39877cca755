// SPDX-License-Identifier: GPL-2.0-only
#include "server/exports.h"

#include <algorithm>

namespace netblk::server {

namespace {

// Who may open a unix socket is a matter of its mode: `allow` speaks of internet addresses.
bool lets_in(const ExportConfig& config, const io::Address& peer) {
  return config.allow.empty() || peer.is_unix() || std::any_of(config.allow.begin(), config.allow.end(),
                                             [&](const Cidr& range) { return range.contains(peer); });
}

}  // namespace

bool Export::allows(const io::Address& peer) const {
  const std::lock_guard lock(mutex_);
  return lets_in(config_, peer);
}

void Export::close(std::string why) {
  const std::lock_guard lock(mutex_);
  why_closed_ = std::move(why);
  closed_.store(true, std::memory_order_release);
}

uint32_t Export::close_unless_used(const std::string& why) {
  const std::lock_guard lock(mutex_);
  const uint32_t used = connections_.load(std::memory_order_relaxed);
  if (used != 0) return used;
  why_closed_ = why;
  closed_.store(true, std::memory_order_release);
  return 0;
}

void Export::open_again() {
  const std::lock_guard lock(mutex_);
  closed_.store(false, std::memory_order_release);
}

std::string Export::why_closed() const {
  const std::lock_guard lock(mutex_);
  return why_closed_;
}

std::string Export::enter(const io::Address& peer) {
  const std::lock_guard lock(mutex_);
  if (closed()) return why_closed_;
  if (!lets_in(config_, peer)) return "the address is not in allow=";
  // The count and the limit are looked at under one lock: two that arrive together do not both take the last place.
  if (config_.max_connections != 0 && connections_.load(std::memory_order_relaxed) >= config_.max_connections)
    return fmt::format("max-conns={} is reached", config_.max_connections);
  connections_.fetch_add(1, std::memory_order_relaxed);
  return {};
}

std::string Export::description() const {
  const std::lock_guard lock(mutex_);
  return config_.description;
}

void Export::change_rules(const ExportConfig& config) {
  const std::lock_guard lock(mutex_);
  config_.store = config.store;
  config_.allow = config.allow;
  config_.max_connections = config.max_connections;
  config_.description = config.description;
}

std::shared_ptr<Export> ExportTable::first() const {
  const std::lock_guard lock(mutex_);
  return exports_.empty() ? nullptr : exports_.front();
}

std::shared_ptr<Export> ExportTable::find(const std::string& name) const {
  if (name.empty()) return first();
  const std::lock_guard lock(mutex_);
  for (const auto& entry : exports_)
    if (entry != nullptr && entry->config().name == name) return entry;
  return nullptr;
}

std::vector<std::shared_ptr<Export>> ExportTable::all() const {
  const std::lock_guard lock(mutex_);
  return exports_;
}

void ExportTable::replace(std::vector<std::shared_ptr<Export>> exports, std::vector<std::string> away) {
  const std::lock_guard lock(mutex_);
  exports_ = std::move(exports);
  away_ = std::move(away);
}

bool ExportTable::is_away(const std::string& name) const {
  const std::lock_guard lock(mutex_);
  if (name.empty()) return !away_.empty() && !exports_.empty() && exports_.front() == nullptr;
  return std::find(away_.begin(), away_.end(), name) != away_.end();
}

}  // namespace netblk::server
