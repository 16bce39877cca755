// SPDX-License-Identifier: GPL-2.0-only
#include "server/exports.h"

#include <algorithm>

namespace netblk::server {

std::string Export::enter(const io::Address& peer) {
  const std::lock_guard lock(mutex_);
  const auto allows = [&](const Cidr& range) { return range.contains(peer); };
  if (!config_.allow.empty() && std::none_of(config_.allow.begin(), config_.allow.end(), allows))
    return "the address is not in allow=";
  // The count and the limit are looked at under one lock: two that arrive together do not both take the last place.
  if (config_.max_connections != 0 && connections_.load(std::memory_order_relaxed) >= config_.max_connections)
    return fmt::format("max-conns={} is reached", config_.max_connections);
  connections_.fetch_add(1, std::memory_order_relaxed);
  return {};
}

void Export::change_rules(const ExportConfig& config) {
  const std::lock_guard lock(mutex_);
  config_.allow = config.allow;
  config_.max_connections = config.max_connections;
}

std::shared_ptr<Export> ExportTable::first() const {
  const std::lock_guard lock(mutex_);
  return exports_.empty() ? nullptr : exports_.front();
}

std::vector<std::shared_ptr<Export>> ExportTable::all() const {
  const std::lock_guard lock(mutex_);
  return exports_;
}

void ExportTable::replace(std::vector<std::shared_ptr<Export>> exports) {
  const std::lock_guard lock(mutex_);
  exports_ = std::move(exports);
}

}  // namespace netblk::server
