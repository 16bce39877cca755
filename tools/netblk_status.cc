// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_status.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "base/limits.h"
#include "base/parse.h"
#include "netblk_attach_nbd.h"
#include "netblk_attach_ublk.h"
#include "netblk_driver.h"
#include "netblk_leave.h"
#include "netblk_names.h"
#include "netblk_state.h"

namespace netblk::tools {
namespace {

using nlohmann::json;

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
}

// The kernel counts for every disk: words of `stat` are reads, merged, sectors, ms; writes, merged, sectors, ms.
void ask_kernel(StatusRow& row) {
  const std::string disk = "/sys/block/" + row.device.substr(row.device.rfind('/') + 1);
  std::istringstream words(read_text(disk + "/stat"));
  std::array<uint64_t, 8> counts{};
  for (uint64_t& count : counts) words >> count;
  row.reads = counts[0];
  row.read_wait_ms = counts[3];
  row.writes = counts[4];
  row.write_wait_ms = counts[7];
  if (row.way == "nbd" || row.way == "ublk") {  // the others count for themselves, from the attach on
    row.read_bytes = counts[2] * limits::kSectorBytes;
    row.write_bytes = counts[6] * limits::kSectorBytes;
  }
  std::istringstream flying(read_text(disk + "/inflight"));
  uint64_t reading = 0, writing = 0;
  flying >> reading >> writing;
  row.in_flight = reading + writing;
}

void add_place(StatusRow& row) {
  row.uses = uses_of(row.device);
  row.name = name_of_node(row.device);
  row.leaving = is_leaving(row.device);
}

StatusRow helper_row(const Record& record) {
  StatusRow row{.device = record.device,
                .way = record.way,
                .state = "dead",
                .server = record.server,
                .size_bytes = record.size_bytes,
                .read_only = record.read_only,
                .pid = record.pid};
  const bool nbd = record.way == "nbd";
  if (nbd) row.protocol = "nbd";
  const bool ublk = record.way == "ublk";
  ask_kernel(row);
  if (is_alive(record)) {
    ask_live(record, row);
  } else if (nbd) {
    row.last_error = nbd_is_there(record)
                         ? "its helper has died, so a connection that is lost stays lost: `netblk status` as root, or the "
                           "same `netblk attach`, starts another"
                         : "it is disconnected, and its helper has died: `netblk detach` forgets it";
  }
  if (ublk && row.state == "dead")
    row.last_error = ublk_is_there(record)
                         ? "its helper has died, so requests wait: `netblk status` as root, or the same `netblk attach`, starts "
                           "another; `netblk detach --force` gives the disk up"
                         : "it is stopped, and its helper has died: `netblk detach` forgets it";
  if (row.protocol == "2") row.owner = record.read_only ? "read-only" : record.nbd.shared ? "shared" : "exclusive";
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
  ask_kernel(row);
  add_place(row);
  return row;
}

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

// What one kind of requests did between two looks; a disk that was attached anew meanwhile began at zero.
struct Rate {
  double per_s = 0, mib_per_s = 0;
  std::optional<double> latency_us;  // of those that ended; nothing: none did
};
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

struct Activity {
  Rate read, write;
};
Activity activity(const std::vector<StatusRow>& before, const StatusRow& now, double period_s) {
  const auto was = std::find_if(before.begin(), before.end(), [&](const StatusRow& row) {
    return row.device == now.device && row.server == now.server;
  });
  if (was == before.end()) return {};
  return {.read = rate_of(was->reads, now.reads, was->read_bytes, now.read_bytes, was->read_wait_ms, now.read_wait_ms, period_s),
          .write = rate_of(was->writes, now.writes, was->write_bytes, now.write_bytes, was->write_wait_ms, now.write_wait_ms,
                           period_s)};
}

std::string latency_text(const Rate& rate) { return rate.latency_us ? fmt::format("{:.1f} ms", *rate.latency_us / 1000) : "-"; }

}  // namespace

std::vector<StatusRow> status_rows() {
  std::vector<StatusRow> rows;
  for (const DriverState& disk : driver_disks()) rows.push_back(driver_row(disk));
  for (const Record& record : read_records())
    if (!record.device.empty()) rows.push_back(helper_row(record));
  return rows;
}

std::string status_json(const std::vector<StatusRow>& rows) {
  json list = json::array();
  for (const StatusRow& row : rows) {
    list.push_back({{"device", row.device},
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
                    {"owner", row.owner},
                    {"in_flight", row.in_flight},
                    {"reads", row.reads},
                    {"writes", row.writes},
                    {"read_wait_ms", row.read_wait_ms},
                    {"write_wait_ms", row.write_wait_ms}});
  }
  return list.dump(2);
}

std::string status_table(const std::vector<StatusRow>& rows) {
  if (rows.empty()) return "nothing is attached";
  std::vector<std::vector<std::string>> lines = {
      {"DEVICE", "STATE", "SERVER", "SIZE", "READ", "WRITTEN", "ERRORS", "RECONNECTS", "WAY", "NAME", "USE"}};
  for (const StatusRow& row : rows) {
    std::vector<std::string> uses = row.uses;
    if (row.leaving) uses.push_back("detached at its last close");
    lines.push_back({row.device, row.lost ? "lost" : row.state, row.server, size_text(row.size_bytes) + (row.read_only ? " ro" : ""),
                     size_text(row.read_bytes), size_text(row.write_bytes), std::to_string(row.errors),
                     std::to_string(row.reconnects), row.way, row.name.empty() ? "-" : row.name, fmt::format("{}", fmt::join(uses, ", "))});
  }
  std::string text = aligned(lines);
  for (const StatusRow& row : rows)
    if (row.lost)
      text += fmt::format("\n{}: LOST: {}; every flush fails until `netblk reset {}`", row.device, row.lost_why,
                          row.device);
  for (const StatusRow& row : rows)
    if (!row.last_error.empty() && row.state != "connected")
      text += fmt::format("\n{}: {}", row.device, row.last_error);
  return text;
}

std::string top_json(const std::vector<StatusRow>& before, const std::vector<StatusRow>& now, double period_s) {
  const auto latency = [](const Rate& rate) { return rate.latency_us ? json(*rate.latency_us) : json(nullptr); };
  json list = json::array();
  for (const StatusRow& row : now) {
    const Activity done = activity(before, row, period_s);
    list.push_back({{"device", row.device},
                    {"name", row.name},
                    {"way", row.way},
                    {"server", row.server},
                    {"state", row.state},
                    {"lost", row.lost},
                    {"in_flight", row.in_flight},
                    {"reads_per_s", done.read.per_s},
                    {"writes_per_s", done.write.per_s},
                    {"read_mib_per_s", done.read.mib_per_s},
                    {"write_mib_per_s", done.write.mib_per_s},
                    {"read_latency_us", latency(done.read)},
                    {"write_latency_us", latency(done.write)},
                    {"errors", row.errors},
                    {"reconnects", row.reconnects}});
  }
  return list.dump(2);
}

std::string top_table(const std::vector<StatusRow>& before, const std::vector<StatusRow>& now, double period_s) {
  if (now.empty()) return "nothing is attached";
  std::vector<std::vector<std::string>> lines = {{"DEVICE", "NAME", "WAY", "STATE", "READS/S", "MIB/S", "LATENCY", "WRITES/S",
                                                  "MIB/S", "LATENCY", "IN FLIGHT", "ERRORS", "RECONNECTS", "SERVER"}};
  for (const StatusRow& row : now) {
    const Activity done = activity(before, row, period_s);
    lines.push_back({row.device, row.name.empty() ? "-" : row.name, row.way, row.lost ? "lost" : row.state,
                     fmt::format("{:.0f}", done.read.per_s), fmt::format("{:.1f}", done.read.mib_per_s), latency_text(done.read),
                     fmt::format("{:.0f}", done.write.per_s), fmt::format("{:.1f}", done.write.mib_per_s), latency_text(done.write),
                     std::to_string(row.in_flight), std::to_string(row.errors), std::to_string(row.reconnects), row.server});
  }
  return aligned(lines);
}

}  // namespace netblk::tools
