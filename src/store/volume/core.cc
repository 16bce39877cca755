// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/core.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.h"

namespace netblk::store::volume {

void Core::poison(const std::string& why) {
  if (poisoned.load(std::memory_order_acquire)) return;
  // First: whoever sees the flag may answer with an error.
  if (options.on_poison) options.on_poison();
  if (poisoned.exchange(true, std::memory_order_acq_rel)) return;
  log_error("{}: {}; every later change and flush fails until the volume is opened again", options.name, why);
}

coro::Task<void> Core::look_for_another(io::Loop& loop) {
  looked_at_ms.store(loop.now_ms(), std::memory_order_relaxed);
  const int another = co_await slots.look_for_another(loop);
  if (another == 0) co_return;
  poison(another == ESTALE ? "another process has opened it for writing since"
                           : fmt::format("its superblocks cannot be read: {}", errno_text(another)));
}

coro::Task<bool> Core::may_write(io::Loop& loop) {
  constexpr uint64_t kLookPeriodMs = 50;
  if (!poisoned.load(std::memory_order_acquire) && loop.now_ms() - looked_at_ms.load(std::memory_order_relaxed) >= kLookPeriodMs)
    co_await look_for_another(loop);
  co_return !poisoned.load(std::memory_order_acquire);
}

void Core::use_settings(const std::vector<Setting>& list) {
  settings = parse_settings(list);
  compression.store(options.compression.value_or(settings.compression), std::memory_order_relaxed);
}

void Core::set_points(Points points) {
  freed = std::max(freed, points.freed_since(index->points()));
  use_settings(points.settings());
  history_from = points.history_from();
  if (history_from == kForever) history.forget();
  else history.begin_at(history_from);
  index->set_points(std::move(points));
}

}  // namespace netblk::store::volume
