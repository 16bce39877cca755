// SPDX-License-Identifier: GPL-2.0-only
// Of the server: handovers. They and reloads come one after the other: both put exports in their places.
#include "server/handover.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "server/server.h"

namespace netblk::server {
namespace {

constexpr uint64_t kHungUpMs = 1'000;
constexpr uint64_t kGiveWaitMs = 60'000;
constexpr uint64_t kGivePollMs = 10;

// Whom nothing can be taken from without a word to their users. Empty: nobody, and all of them are closed.
std::string close_all(const std::vector<std::shared_ptr<Export>>& exports, const Handover& wanted) {
  if (wanted.disconnect) {
    for (const auto& each : exports) each->close(wanted.why);
    return {};
  }
  std::string users;
  std::vector<std::shared_ptr<Export>> closed;
  for (const auto& each : exports) {
    const uint32_t used = each->close_unless_used("the export is being changed: try again");
    if (used == 0) closed.push_back(each);
    else users += fmt::format("{}{} connection{} to export '{}'", users.empty() ? "" : ", ", used, used == 1 ? "" : "s", each->config().name);
  }
  if (!users.empty())
    for (const auto& each : closed) each->open_again();
  return users;
}

}  // namespace

void Server::hand_over(std::shared_ptr<Handover> wanted) {
  {
    const std::lock_guard lock(handovers_mutex_);
    if (takes_handovers_) {
      handovers_.push_back(std::move(wanted));
      on_main([this] { signalled_.set(); });
      return;
    }
  }
  wanted->on_given(make_error(ECANCELED, "the server stops"));
}

void Server::take_handovers() {
  const std::lock_guard lock(handovers_mutex_);
  takes_handovers_ = true;
}

void Server::refuse_handovers() {
  std::vector<std::shared_ptr<Handover>> refused;
  {
    const std::lock_guard lock(handovers_mutex_);
    takes_handovers_ = false;
    refused.swap(handovers_);
  }
  for (const auto& each : refused) each->on_given(make_error(ECANCELED, "the server stops"));
}

coro::Task<void> Server::obey_handovers() {
  for (;;) {
    std::shared_ptr<Handover> next;
    {
      const std::lock_guard lock(handovers_mutex_);
      if (handovers_.empty()) co_return;
      next = handovers_.front();
      handovers_.erase(handovers_.begin());
    }
    co_await obey(*next);
  }
}

coro::Task<void> Server::obey(Handover& wanted) {
  std::vector<std::shared_ptr<Export>> next = exports_.all();
  const std::shared_ptr<void> kept = wanted.keep();
  std::vector<std::string> wanted_names;
  if (kept != nullptr) wanted_names = wanted.names();
  std::vector<size_t> places;
  std::vector<std::shared_ptr<Export>> going;
  for (size_t i = 0; i < next.size(); ++i) {
    if (next[i] == nullptr || std::find(wanted_names.begin(), wanted_names.end(), next[i]->config().name) == wanted_names.end()) continue;
    places.push_back(i);
    going.push_back(next[i]);
  }
  // Who has hung up just now is still on the way out.
  const uint64_t refuse_at = clock_.now_ms() + kHungUpMs;
  const auto used = [](const std::shared_ptr<Export>& each) { return each->connections() != 0; };
  while (!wanted.disconnect && !stop_wanted_ && clock_.now_ms() < refuse_at && std::any_of(going.begin(), going.end(), used)) {
    io::SleepUntil pause(shards_[0]->loop(), clock_.now_ms() + kGivePollMs);
    co_await pause;
  }
  const std::string users = close_all(going, wanted);
  if (!users.empty()) {
    wanted.on_given(make_error(EBUSY, "{}", users));
    co_return;
  }
  std::vector<ExportConfig> configs;
  std::vector<std::string> names;
  std::vector<std::weak_ptr<block::Device>> devices;
  for (const size_t place : places) {
    configs.push_back(next[place]->config());
    names.push_back(next[place]->config().name);
    devices.push_back(next[place]->shared_device());
    next[place].reset();
    log_info("export '{}' is closed for a moment: {}", names.back(), wanted.why);
  }
  going.clear();
  exports_.replace(next, names);
  for (const auto& shard : shards_) shard->look_at_exports();
  const uint64_t give_up_at = clock_.now_ms() + kGiveWaitMs;
  const auto closed = [](const std::weak_ptr<block::Device>& device) { return device.expired(); };
  while (!stop_wanted_ && clock_.now_ms() < give_up_at && !std::all_of(devices.begin(), devices.end(), closed)) {
    io::SleepUntil pause(shards_[0]->loop(), clock_.now_ms() + kGivePollMs);
    co_await pause;
  }
  Status given = Ok{};
  if (!std::all_of(devices.begin(), devices.end(), closed))
    given = stop_wanted_ ? make_error(ECANCELED, "the server stops")
                         : make_error(ETIMEDOUT, "its connections did not end within {} s", kGiveWaitMs / 1000);
  coro::Event taken;
  if (given) wanted.take_back = [this, &taken] { on_main([&taken] { taken.set(); }); };
  const bool waits = given.ok();
  wanted.on_given(std::move(given));
  if (waits) co_await taken.wait();
  std::vector<std::string> missing;
  for (size_t i = 0; i < places.size(); ++i) {
    auto made = open_export(configs[i]);
    if (made) {
      next[places[i]] = std::move(made).value();
      log_info("export '{}' is open again", names[i]);
    } else {
      missing.push_back(fmt::format("export '{}' is not served any more: {}", names[i], made.error().message));
      log_error("{}", missing.back());
    }
  }
  exports_.replace(std::move(next));
  if (waits) wanted.on_taken_back(std::move(missing));
}

}  // namespace netblk::server
