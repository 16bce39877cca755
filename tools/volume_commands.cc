// SPDX-License-Identifier: GPL-2.0-only
#include "volume_commands.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>
#include <vector>

#include "base/id.h"
#include "base/log.h"

namespace netblk::tools {
namespace {

namespace volume = store::volume;

Result<std::string> name_in(const Json& asked) {
  auto name = text_in(asked, "name");
  if (name.ok() && !volume::is_name(name.value()))
    return make_error(EINVAL, "bad name '{}': it begins with a letter or _, and has up to 64 letters, digits, '.', '_' and '-'", name.value());
  return name;
}

coro::Task<Result<Json>> read_all(VolumeWork& on, uint64_t bytes_per_second, bool alone, const char* name) {
  const uint64_t begin_ms = on.loop.now_ms(), total_bytes = on.volume.info().live_bytes;
  Telling telling(on);
  volume::CheckOptions options{.bytes_per_second = bytes_per_second, .alone = alone, .stopped = on.stopped};
  options.progress = [&](const volume::CheckReport& so_far) {
    if (telling.is_due()) on.tell({{"done_bytes", so_far.blocks * volume::kBlockBytes}, {"total_bytes", total_bytes}, {"damaged", so_far.damaged}});
  };
  const auto report = co_await on.volume.check(options);
  if (on.served && report.ok() && report.value().damaged > 0)
    log_error("{}: {}: of {} blocks that were read, {} places are damaged", on.folder, name, report.value().blocks, report.value().damaged);
  if (on.served && report.ok() && report.value().damaged == 0)
    log_info("{}: {}: {} blocks were read, and all are as they were written", on.folder, name, report.value().blocks);
  if (!report.ok()) co_return report.error();
  Json answer = {{"blocks", report.value().blocks},
                 {"damaged", report.value().damaged},
                 {"damage", report.value().damage},
                 {"lost_bytes", report.value().lost_bytes},
                 {"seconds", static_cast<double>(on.loop.now_ms() - begin_ms) / 1000}};
  co_return answer;
}

}  // namespace

Status not_reserved(std::string_view name) {
  if (!name.starts_with(kBeforeRewind)) return Ok{};
  return make_error(EINVAL, "'{}' is a name that rollbacks and rewinds give: choose one that does not begin with {}", name, kBeforeRewind);
}

coro::Task<Result<Json>> volume_info(VolumeWork& on, const Json&) {
  // Of the process that has it open, if that is not the one that tells.
  const Json process = on.served ? Json(::getpid()) : Json();
  const volume::VolumeInfo info = on.volume.info();
  Json settings = Json::object();
  for (const volume::Setting& each : on.volume.settings()) settings[each.key] = each.value;
  const bool has_history = info.history_from_lsn != volume::HistoryInfo::kNone;
  Json answer = {{"size_bytes", info.size_bytes},
                 {"uuid", id_text(info.uuid)},
                 {"generation", info.generation},
                 {"snapshots", on.volume.snapshots().size()},
                 {"clones", on.volume.branches().size() - 1},
                 {"settings", settings},
                 {"history_from_lsn", has_history ? Json(info.history_from_lsn) : Json()},
                 {"history_from", has_history && info.history_from_ns != 0 ? Json(volume::time_text(info.history_from_ns)) : Json()},
                 {"used_bytes", info.used_bytes},
                 {"live_bytes", info.live_bytes},
                 {"index_bytes", info.index_bytes},
                 {"garbage_bytes", info.garbage_bytes},
                 {"file_bytes", info.file_bytes},
                 {"collected_bytes", info.collected_bytes},
                 {"space_percent", info.space_percent},
                 {"segment_bytes", info.segment_bytes},
                 {"segments", info.segments},
                 {"free_segments", info.free_segments},
                 {"index_entries", info.index_entries},
                 {"last_lsn", info.last_lsn},
                 {"closed_clean", info.was_clean},
                 {"replayed_records", info.replayed_records},
                 {"tail_cut", info.cut},
                 {"encrypted", info.encrypted},
                 {"damage", info.damage},
                 {"bad_blocks", info.bad_blocks},
                 {"process", process}};
  co_return answer;
}

coro::Task<Result<Json>> volume_list(VolumeWork& on, const Json&) {
  auto snapshots = on.volume.snapshots();
  const auto branches = on.volume.branches();
  const auto branch_name = [&](uint32_t number) {
    const auto found = std::find_if(branches.begin(), branches.end(), [&](const auto& each) { return each.number == number; });
    return found == branches.end() ? std::string() : found->name;
  };
  std::sort(snapshots.begin(), snapshots.end(), [](const auto& a, const auto& b) { return a.point.lsn < b.point.lsn; });
  Json answer = Json::array();
  for (const auto& each : snapshots)
    answer.push_back({{"name", each.name}, {"kind", "snapshot"}, {"of", branch_name(each.point.branch)}, {"lsn", each.point.lsn},
                      {"time", volume::time_text(each.time_ns)}, {"size_bytes", each.size_bytes}});
  for (const auto& each : branches)
    if (!each.name.empty())
      answer.push_back({{"name", each.name}, {"kind", "clone"}, {"of", branch_name(each.parent.branch)}, {"lsn", each.parent.lsn},
                        {"size_bytes", each.size_bytes}});
  co_return answer;
}

coro::Task<Result<Json>> volume_snapshot(VolumeWork& on, const Json& asked) {
  const auto name = name_in(asked);
  if (!name.ok()) co_return name.error();
  if (Status free = not_reserved(name.value()); !free.ok()) co_return std::move(free).error();
  const auto of = text_in(asked, "of", "");
  if (!of.ok()) co_return of.error();
  const Result<uint64_t> made = co_await on.volume.snapshot(name.value(), of.value());
  if (!made.ok()) co_return made.error();
  Json answer = {{"name", name.value()}, {"lsn", made.value()}};
  co_return answer;
}

coro::Task<Result<Json>> volume_delete(VolumeWork& on, const Json& asked) {
  const auto name = name_in(asked);
  if (!name.ok()) co_return name.error();
  BranchTurn turn(on.running, name.value());
  co_await turn.come();
  const Status deleted = co_await on.volume.remove(name.value());
  if (!deleted.ok()) co_return deleted.error();
  Json answer = {{"name", name.value()}};
  co_return answer;
}

// Both read everything; a check takes the machine for it, and looks at the whole file if the volume is nobody else's meanwhile.
coro::Task<Result<Json>> volume_check(VolumeWork& on, const Json&) {
  Result<Json> answer = co_await read_all(on, 0, !on.served, "check");
  co_return answer;
}

coro::Task<Result<Json>> volume_scrub(VolumeWork& on, const Json& asked) {
  const auto rate = number_in(asked, "bytes_per_second");
  if (!rate.ok()) co_return rate.error();
  Result<Json> answer = co_await read_all(on, rate.value(), false, "scrub");
  co_return answer;
}

}  // namespace netblk::tools
