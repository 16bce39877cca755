// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_status.h"

#include <fmt/format.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/parse.h"
#include "netblk_driver.h"
#include "netblk_state.h"

namespace netblk::tools {
namespace {

using nlohmann::json;

constexpr timeval kControlTimeout{.tv_sec = 2, .tv_usec = 0};

// The live state from the helper; no object when it does not answer.
json ask_helper(const Record& record) {
  const io::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = record.control_socket();
  if (!fd.valid() || path.size() >= sizeof address.sun_path) return nullptr;
  std::memcpy(address.sun_path, path.c_str(), path.size());
  (void)::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &kControlTimeout, sizeof kControlTimeout);
  (void)::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &kControlTimeout, sizeof kControlTimeout);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return nullptr;
  std::string text;
  std::array<char, 4096> part{};
  ssize_t got;
  while ((got = ::recv(fd.get(), part.data(), part.size(), 0)) > 0) text.append(part.data(), static_cast<size_t>(got));
  return json::parse(text, nullptr, false);
}

StatusRow fuse_row(const Record& record) {
  StatusRow row{.device = record.device,
                .way = "fuse",
                .state = "dead",
                .server = record.server,
                .size_bytes = record.size_bytes,
                .read_only = record.read_only,
                .pid = record.pid};
  if (is_alive(record)) {
    const json live = ask_helper(record);
    row.state = "error";
    if (live.is_object()) {
      row.state = live.value("state", "error");
      row.read_bytes = live.value("read_bytes", uint64_t{0});
      row.write_bytes = live.value("write_bytes", uint64_t{0});
      row.errors = live.value("errors", uint64_t{0});
      row.reconnects = live.value("reconnects", uint64_t{0});
      row.last_error = live.value("last_error", "");
    } else {
      row.last_error = "the helper process does not answer";
    }
  }
  row.uses = uses_of(record.device);
  return row;
}

}  // namespace

std::vector<StatusRow> status_rows() {
  std::vector<StatusRow> rows;
  const auto driver = read_driver_state();
  if (driver) {
    const DriverState& state = driver.value();
    rows.push_back({.device = kDriverNode,
                    .way = "netblk",
                    .state = state.state,
                    .server = state.server,
                    .size_bytes = state.size_bytes,
                    .read_only = state.read_only,
                    .read_bytes = state.read_bytes,
                    .write_bytes = state.write_bytes,
                    .errors = state.errors,
                    .uses = uses_of(kDriverNode)});
  }
  for (const Record& record : read_records())
    if (!record.device.empty()) rows.push_back(fuse_row(record));
  return rows;
}

std::string status_json(const std::vector<StatusRow>& rows) {
  json list = json::array();
  for (const StatusRow& row : rows) {
    list.push_back({{"device", row.device},
                    {"way", row.way},
                    {"state", row.state},
                    {"server", row.server},
                    {"size_bytes", row.size_bytes},
                    {"read_only", row.read_only},
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
    lines.push_back({row.device, row.state, row.server, size_text(row.size_bytes) + (row.read_only ? " ro" : ""),
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
    if (!row.last_error.empty() && row.state != "connected")
      text += fmt::format("\n{}: {}", row.device, row.last_error);
  return text;
}

}  // namespace netblk::tools
