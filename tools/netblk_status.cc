// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_status.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <thread>
#include <utility>

#include "base/limits.h"
#include "base/parse.h"
#include "netblk_attach.h"
#include "netblk_driver.h"
#include "netblk_leave.h"
#include "netblk_names.h"
#include "netblk_state.h"

namespace netblk::tools {
namespace {

using nlohmann::json;

// What `netblk status` takes for now, as rates go.
constexpr auto kRatePeriod = std::chrono::milliseconds(100);

// What the helper says now.
void ask_live(const Record& record, StatusRow& row) {
  const json live = json::parse(ask_helper(record, "state"), nullptr, false);
  row.state = "error";
  row.last_error = "the helper process does not answer";
  if (!live.is_object()) return;
  row.state = live.value("state", "error");
  row.read_bytes = live.value("read_bytes", row.read_bytes);
  row.write_bytes = live.value("write_bytes", row.write_bytes);
  row.errors = live.value("errors", uint64_t{0});
  row.reconnects = live.value("reconnects", uint64_t{0});
  row.last_error = live.value("last_error", "");
  row.protocol = live.value("protocol", row.protocol);
  row.size_bytes = live.value("size_bytes", row.size_bytes);
  row.generation = live.value("generation", uint64_t{0});
  row.lost = live.value("lost", false);
  row.lost_why = live.value("lost_why", "");
  if (live.contains("oldest_ms")) row.oldest_ms = live.value("oldest_ms", uint64_t{0});
  row.latencies = latencies_told(live.value("latency", json()));
}

std::string sys_folder(const StatusRow& row) { return "/sys/block/" + row.device.substr(row.device.rfind('/') + 1); }

// Words of `stat` are reads, merged, sectors, ms; writes, merged, sectors, ms.
KernelCounts kernel_counts(const StatusRow& row) {
  std::istringstream words(read_text(sys_folder(row) + "/stat"));
  std::array<uint64_t, 8> counts{};
  for (uint64_t& count : counts) words >> count;
  return {.reads = counts[0],
          .writes = counts[4],
          .read_bytes = counts[2] * limits::kSectorBytes,
          .write_bytes = counts[6] * limits::kSectorBytes,
          .read_wait_ms = counts[3],
          .write_wait_ms = counts[7]};
}

void ask_kernel(StatusRow& row) {
  row.kernel = kernel_counts(row);
  if (row.way == "nbd" || row.way == "ublk") {  // the others count for themselves, from the attach on
    row.read_bytes = row.kernel.read_bytes;
    row.write_bytes = row.kernel.write_bytes;
  }
  std::istringstream flying(read_text(sys_folder(row) + "/inflight"));
  uint64_t reading = 0, writing = 0;
  flying >> reading >> writing;
  row.in_flight = reading + writing;
}

void add_place(StatusRow& row) {
  row.uses = uses_of(row.device);
  row.name = name_of_node(row.device);
  row.leaving = is_leaving(row.device);
}

// What a disk is without its helper.
std::string without_helper(const Record& record) {
  if (record.way == "fuse") return "";
  if (!is_there(record)) return "it has gone, and its helper has died: `netblk detach` forgets it";
  return fmt::format("its helper has died, so {}: `netblk status` as root, or the same `netblk attach`, starts another; `netblk "
                     "detach --force` gives the disk up",
                     record.way == "nbd" ? "a connection that is lost stays lost" : "requests wait");
}

StatusRow helper_row(const Record& record) {
  StatusRow row{.device = record.device,
                .way = record.way,
                .state = "dead",
                .server = record.server,
                .size_bytes = record.size_bytes,
                .read_only = record.given.read_only,
                .pid = record.pid};
  if (record.way == "nbd") row.protocol = "nbd";
  ask_kernel(row);
  if (is_alive(record)) {
    ask_live(record, row);
  } else {
    row.last_error = without_helper(record);
  }
  if (row.protocol == "2") row.owner = record.given.read_only ? "read-only" : record.given.shared ? "shared" : "exclusive";
  add_place(row);
  return row;
}

StatusRow driver_row(const DriverState& disk) {
  StatusRow row{.device = disk.node,
                .way = "netblk",
                .state = disk.state,
                .server = disk.server,
                .protocol = disk.protocol,
                .size_bytes = disk.size_bytes,
                .read_only = disk.read_only,
                .lost = disk.lost,
                .lost_why = disk.lost_why,
                .generation = disk.generation,
                .read_bytes = disk.read_bytes,
                .write_bytes = disk.write_bytes,
                .errors = disk.errors,
                .reconnects = disk.reconnects,
                .last_error = disk.last_error};
  if (disk.protocol == "2") row.owner = disk.access;
  row.oldest_ms = disk.oldest_ms;
  row.latencies = disk.latencies;
  ask_kernel(row);
  add_place(row);
  return row;
}

// A disk that was attached anew meanwhile began at zero.
Rate rate_of(uint64_t ended_before, uint64_t ended, uint64_t bytes_before, uint64_t bytes, uint64_t wait_before_ms,
             uint64_t wait_ms, double period_s) {
  Rate rate;
  if (ended < ended_before || bytes < bytes_before || wait_ms < wait_before_ms) return rate;
  const auto count = static_cast<double>(ended - ended_before);
  rate.per_s = count / period_s;
  rate.mib_per_s = static_cast<double>(bytes - bytes_before) / period_s / (1u << 20);
  if (ended > ended_before) rate.latency_us = static_cast<double>(wait_ms - wait_before_ms) * 1000 / count;
  return rate;
}

// "read: 1.2 ms = 10 us queue + 80 us wire + 20 us server + 1.1 ms media"
std::string split_text(const char* kind, const client::Latency& latency) {
  const Split split = split_of({}, latency);
  if (!split.queue_us) return "";
  std::string text = fmt::format("{}: {} = {} queue + ", kind, time_text(*split.queue_us + *split.round_trip_us),
                                 time_text(split.queue_us));
  if (!split.wire_us) return text + time_text(split.round_trip_us) + " round trip";
  return text + fmt::format("{} wire + {} server + {} media", time_text(split.wire_us), time_text(split.server_us),
                            time_text(split.media_us));
}

}  // namespace

std::string aligned(const std::vector<std::vector<std::string>>& lines) {
  std::vector<size_t> widths(lines.front().size(), 0);
  for (const auto& line : lines)
    for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  std::string text;
  for (const auto& line : lines) {
    std::string one;
    for (size_t i = 0; i < line.size(); ++i) one += fmt::format("{:<{}}  ", line[i], widths[i]);
    one.erase(one.find_last_not_of(' ') + 1);
    text += (text.empty() ? "" : "\n") + one;
  }
  return text;
}

std::vector<StatusRow> status_rows() {
  std::vector<StatusRow> rows;
  for (const DriverState& disk : driver_disks()) rows.push_back(driver_row(disk));
  for (const Record& record : read_records())
    if (!record.device.empty()) rows.push_back(helper_row(record));
  return rows;
}

void add_failed_leaves(std::vector<StatusRow>& rows) {
  for (FailedLeave& failed : failed_leaves()) {
    const auto row = std::find_if(rows.begin(), rows.end(), [&](const StatusRow& one) {
      return one.device == failed.node && one.server == failed.source;
    });
    // The disk may have gone, and what was written to it with it; the node may be another's.
    if (row != rows.end())
      row->leaving_failed = std::move(failed.why);
    else
      rows.push_back({.device = failed.node, .way = "", .state = "gone", .server = failed.source, .leaving_failed = std::move(failed.why)});
  }
}

Rates rates_of(const KernelCounts& before, const KernelCounts& now, double period_s) {
  return {.read = rate_of(before.reads, now.reads, before.read_bytes, now.read_bytes, before.read_wait_ms, now.read_wait_ms,
                          period_s),
          .write = rate_of(before.writes, now.writes, before.write_bytes, now.write_bytes, before.write_wait_ms,
                           now.write_wait_ms, period_s)};
}

void add_rates(std::vector<StatusRow>& rows) {
  using std::chrono::steady_clock;
  if (rows.empty()) return;
  for (StatusRow& row : rows) row.kernel = kernel_counts(row);
  const auto began = steady_clock::now();
  std::this_thread::sleep_for(kRatePeriod);
  for (StatusRow& row : rows) {
    const KernelCounts now = kernel_counts(row);
    row.rates = rates_of(row.kernel, now, std::chrono::duration<double>(steady_clock::now() - began).count());
    row.kernel = now;
  }
}

void add_rates(json& object, const Rates& rates) {
  const auto latency = [](const Rate& rate) { return rate.latency_us ? json(*rate.latency_us) : json(nullptr); };
  object["reads_per_s"] = rates.read.per_s;
  object["writes_per_s"] = rates.write.per_s;
  object["read_mib_per_s"] = rates.read.mib_per_s;
  object["write_mib_per_s"] = rates.write.mib_per_s;
  object["read_latency_us"] = latency(rates.read);
  object["write_latency_us"] = latency(rates.write);
}

json oldest_json(const StatusRow& row) { return row.oldest_ms ? json(*row.oldest_ms) : json(nullptr); }

std::optional<double> oldest_us(const StatusRow& row) {
  if (!row.oldest_ms) return std::nullopt;
  return static_cast<double>(*row.oldest_ms) * 1000;
}

std::string status_json(const std::vector<StatusRow>& rows) {
  json list = json::array();
  for (const StatusRow& row : rows) {
    json object = {{"device", row.device},
                    {"way", row.way},
                    {"state", row.state},
                    {"server", row.server},
                    {"protocol", row.protocol},
                    {"name", row.name},
                    {"size_bytes", row.size_bytes},
                    {"read_only", row.read_only},
                    {"lost", row.lost},
                    {"lost_why", row.lost_why},
                    {"generation", row.generation},
                    {"read_bytes", row.read_bytes},
                    {"write_bytes", row.write_bytes},
                    {"errors", row.errors},
                    {"reconnects", row.reconnects},
                    {"last_error", row.last_error},
                    {"pid", row.pid},
                    {"uses", row.uses},
                    {"leaving", row.leaving},
                    {"leaving_failed", row.leaving_failed},
                    {"owner", row.owner},
                    {"in_flight", row.in_flight},
                    {"oldest_ms", oldest_json(row)},
                    {"reads", row.kernel.reads},
                    {"writes", row.kernel.writes},
                    {"read_wait_ms", row.kernel.read_wait_ms},
                    {"write_wait_ms", row.kernel.write_wait_ms}};
    add_rates(object, row.rates);
    const Latencies since_ever = row.latencies.value_or(Latencies{});
    object["latency"] = {{"read", split_json(split_of({}, since_ever.reads))},
                         {"write", split_json(split_of({}, since_ever.writes))},
                         {"flush", split_json(split_of({}, since_ever.flushes))}};
    list.push_back(std::move(object));
  }
  return list.dump(2);
}

std::string status_table(const std::vector<StatusRow>& rows, bool split) {
  if (rows.empty()) return "nothing is attached";
  std::vector<std::vector<std::string>> lines = {
      {"DEVICE", "STATE", "SERVER", "SIZE", "READ", "WRITTEN", "ERRORS", "RECONNECTS", "FLYING", "OLDEST", "MIB/S", "WAY", "NAME", "USE"}};
  for (const StatusRow& row : rows) {
    std::vector<std::string> uses = row.uses;
    if (row.leaving) uses.push_back("detached at its last close");
    lines.push_back({row.device, row.lost ? "lost" : row.state, row.server, size_text(row.size_bytes) + (row.read_only ? " ro" : ""),
                     size_text(row.read_bytes), size_text(row.write_bytes), std::to_string(row.errors),
                     std::to_string(row.reconnects), std::to_string(row.in_flight), time_text(oldest_us(row)),
                     fmt::format("{:.1f}", row.rates.read.mib_per_s + row.rates.write.mib_per_s), row.way, row.name.empty() ? "-" : row.name, fmt::format("{}", fmt::join(uses, ", "))});
  }
  std::string text = aligned(lines);
  for (const StatusRow& row : rows)
    if (row.lost)
      text += fmt::format("\n{}: LOST: {}; every flush fails until `netblk reset {}`", row.device, row.lost_why,
                          row.device);
  for (const StatusRow& row : rows)
    if (!row.last_error.empty() && row.state != "connected")
      text += fmt::format("\n{}: {}", row.device, row.last_error);
  for (const StatusRow& row : rows)
    if (!row.leaving_failed.empty())
      text += fmt::format("\n{}: its lazy detach failed: {}; `netblk reset {}` takes note of it", row.device, row.leaving_failed,
                          row.device);
  if (!split) return text;
  for (const StatusRow& row : rows) {
    if (!row.latencies) continue;
    for (const auto& [kind, latency] : {std::pair{"read", &row.latencies->reads}, std::pair{"write", &row.latencies->writes},
                                        std::pair{"flush", &row.latencies->flushes}})
      if (const std::string words = split_text(kind, *latency); !words.empty()) text += fmt::format("\n{}: {}", row.device, words);
  }
  return text;
}

}  // namespace netblk::tools
