// SPDX-License-Identifier: GPL-2.0-only
// Commands of branches, points, sizes and settings.
#include <fmt/format.h>

#include <cerrno>
#include <memory>
#include <utility>
#include <vector>

#include "volume_commands.h"

namespace netblk::tools {
namespace {

namespace volume = store::volume;

// A member "point": a name, lsn:N, -10m or a time; none: as it is now.
Result<volume::PointName> point_in(const Json& asked, const char* member) {
  const auto text = text_in(asked, member, "");
  if (!text.ok()) return text.error();
  if (text.value().empty()) return volume::PointName();
  return volume::parse_point_name(text.value());
}

// A client keeps what it has read, and goes on with it: an NBD client cannot even be told.
Error not_given(const std::string& branch, bool disconnect, const Error& why) {
  if (why.code != EBUSY && why.code != ETIMEDOUT) return why;
  const std::string what = branch.empty() ? "the volume itself" : fmt::format("'{}'", branch);
  if (disconnect || why.code == ETIMEDOUT) return make_error(EBUSY, "{} is in use: {}; nothing was changed, try again", what, why.message);
  return make_error(EBUSY,
                    "{} is in use: {}; unmount it there and detach it, and try again, or say --disconnect, which ends the connections",
                    what, why.message);
}

}  // namespace

coro::Task<Result<Json>> volume_clone(VolumeWork& on, const Json& asked) {
  auto point = point_in(asked, "point");
  if (!point.ok()) co_return point.error();
  const auto name = text_in(asked, "name");
  if (!name.ok()) co_return name.error();
  if (Status free = not_reserved(name.value()); !free.ok()) co_return std::move(free).error();
  auto of = text_in(asked, "of", "");
  if (!of.ok()) co_return of.error();
  volume::PointName from = std::move(point).value();
  std::string called = name.value(), branch = std::move(of).value();
  const Result<uint64_t> made = co_await on.volume.clone(std::move(from), std::move(called), std::move(branch));
  if (!made.ok()) co_return made.error();
  Json answer = {{"name", name.value()}, {"lsn", made.value()}};
  co_return answer;
}

coro::Task<Result<Json>> volume_rollback(VolumeWork& on, const Json& asked) {
  const auto point = point_in(asked, "point");
  if (!point.ok()) co_return point.error();
  if (point.value().kind != volume::PointName::Kind::kName) co_return make_error(EINVAL, "a rollback is to a snapshot: `netblk volume rewind` goes to a moment");
  Result<Json> answer = co_await volume_rewind(on, asked);
  co_return answer;
}

coro::Task<Result<Json>> volume_rewind(VolumeWork& on, const Json& asked) {
  auto point = point_in(asked, "point");
  if (!point.ok()) co_return point.error();
  const auto undo = flag_in(asked, "undo", false);
  if (!undo.ok()) co_return undo.error();
  auto of = text_in(asked, "of", "");
  if (!of.ok()) co_return of.error();
  const auto disconnect = flag_in(asked, "disconnect", false);
  if (!disconnect.ok()) co_return disconnect.error();
  volume::PointName to = std::move(point).value();
  std::string branch = std::move(of).value();
  BranchTurn turn(on.running, branch);
  co_await turn.come();
  if (on.stopped && on.stopped()) co_return make_error(ECANCELED, "it was stopped");
  // Nobody is disconnected for what cannot be.
  if (const auto receiving = on.volume.receiving(); receiving && branch.empty())
    co_return make_error(EBUSY, "a receive of '{}' is unfinished there: go on with it, or give it up with `netblk volume receive --abort {}`",
                         receiving->what.to_name, on.folder);
  const Status can = undo.value() ? on.volume.can_undo_rewind(branch) : on.volume.can_rewind(to, branch);
  if (!can.ok()) co_return can.error();
  std::shared_ptr<VolumeUsers::Given> given;
  if (on.users != nullptr) {
    auto freed = co_await on.users->give(branch, disconnect.value());
    if (!freed.ok()) co_return not_given(branch, disconnect.value(), freed.error());
    given = std::move(freed).value();
  }
  Result<uint64_t> made = uint64_t{0};
  if (undo.value()) {
    made = co_await on.volume.undo_rewind(std::move(branch));
  } else {
    made = co_await on.volume.rewind(std::move(to), std::move(branch));
  }
  std::vector<std::string> missing;
  if (given != nullptr) missing = co_await on.users->take(std::move(given));
  if (!made.ok()) co_return made.error();
  Json answer = {{"lsn", made.value()}, {"before", std::string(kBeforeRewind) + std::to_string(made.value())}, {"generation", on.volume.info().generation}};
  if (!missing.empty()) answer["not_served"] = missing;
  co_return answer;
}

coro::Task<Result<Json>> volume_resize(VolumeWork& on, const Json& asked) {
  const auto size = number_in(asked, "size_bytes");
  if (!size.ok()) co_return size.error();
  auto of = text_in(asked, "of", "");
  if (!of.ok()) co_return of.error();
  const uint64_t bytes = size.value();
  std::string branch = std::move(of).value();
  BranchTurn turn(on.running, branch);
  co_await turn.come();
  const Status done = co_await on.volume.resize(bytes, std::move(branch));
  if (!done.ok()) co_return done.error();
  Json answer = {{"size_bytes", size.value()}};
  co_return answer;
}

// All of them, or the one that is named.
coro::Task<Result<Json>> volume_get(VolumeWork& on, const Json& asked) {
  const auto key = text_in(asked, "key", "");
  if (!key.ok()) co_return key.error();
  Json settings = Json::object();
  std::string known;
  for (const volume::Setting& each : on.volume.settings()) {
    known += (known.empty() ? "" : ", ") + each.key;
    if (key.value().empty() || each.key == key.value()) settings[each.key] = each.value;
  }
  if (settings.empty()) co_return make_error(EINVAL, "there is no setting '{}': there are {}", key.value(), known);
  co_return settings;
}

coro::Task<Result<Json>> volume_set(VolumeWork& on, const Json& asked) {
  const auto key = text_in(asked, "key");
  if (!key.ok()) co_return key.error();
  const auto value = text_in(asked, "value");
  if (!value.ok()) co_return value.error();
  std::string which = key.value(), to = value.value();
  const Status done = co_await on.volume.set(std::move(which), std::move(to));
  if (!done.ok()) co_return done.error();
  Json answer = {{"key", key.value()}, {"value", value.value()}};
  co_return answer;
}

}  // namespace netblk::tools
