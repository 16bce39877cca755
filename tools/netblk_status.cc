// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_status.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/limits.h"
#include "base/parse.h"
#include "netblk_attach_nbd.h"
#include "netblk_attach_ublk.h"
#include "netblk_driver.h"
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

// The kernel counts what goes to its nbd, with a helper or without: sectors read and written are words 3 and 7.
void ask_kernel(const Record& record, StatusRow& row) {
  std::istringstream words(read_text("/sys/block/" + record.device.substr(5) + "/stat"));
  std::array<uint64_t, 7> counts{};
  for (uint64_t& count : counts) words >> count;
  row.read_bytes = counts[2] * limits::kSectorBytes;
  row.write_bytes = counts[6] * limits::kSectorBytes;
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
  if (nbd) {
    row.protocol = "nbd";
    ask_kernel(record, row);
  }
  const bool ublk = record.way == "ublk";
  if (ublk) ask_kernel(record, row);
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
  row.uses = uses_of(record.device);
  row.name = name_of_node(record.device);
  return row;
}

StatusRow driver_row(const DriverState& disk) {
  return {.device = disk.node,
          .way = "netblk",
          .state = disk.state,
          .server = disk.server,
          .protocol = disk.protocol,
          .name = name_of_node(disk.node),
          .size_bytes = disk.size_bytes,
          .read_only = disk.read_only,
          .lost = disk.lost,
          .lost_why = disk.lost_why,
          .generation = disk.generation,
          .read_bytes = disk.read_bytes,
          .write_bytes = disk.write_bytes,
          .errors = disk.errors,
          .reconnects = disk.reconnects,
          .last_error = disk.last_error,
          .uses = uses_of(disk.node)};
}

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
                    {"uses", row.uses}});
  }
  return list.dump(2);
}

std::string status_table(const std::vector<StatusRow>& rows) {
  if (rows.empty()) return "nothing is attached";
  std::vector<std::vector<std::string>> lines = {
      {"DEVICE", "STATE", "SERVER", "SIZE", "READ", "WRITTEN", "ERRORS", "RECONNECTS", "WAY", "USE"}};
  for (const StatusRow& row : rows)
    lines.push_back({row.device, row.lost ? "lost" : row.state, row.server, size_text(row.size_bytes) + (row.read_only ? " ro" : ""),
                     size_text(row.read_bytes), size_text(row.write_bytes), std::to_string(row.errors),
                     std::to_string(row.reconnects), row.way, fmt::format("{}", fmt::join(row.uses, ", "))});
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
  for (const StatusRow& row : rows)
    if (row.lost)
      text += fmt::format("\n{}: LOST: {}; every flush fails until `netblk reset {}`", row.device, row.lost_why,
                          row.device);
  for (const StatusRow& row : rows)
    if (!row.last_error.empty() && row.state != "connected")
      text += fmt::format("\n{}: {}", row.device, row.last_error);
  return text;
}

}  // namespace netblk::tools
