// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_info.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "base/parse.h"
#include "command_line.h"
#include "nbd_info.h"
#include "netblk_greet.h"

namespace netblk::tools {
namespace {

using nlohmann::ordered_json;

// Names are a peer's bytes: what is no UTF-8 gets a replacement character.
std::string dumped(const ordered_json& object) {
  return object.dump(2, ' ', false, ordered_json::error_handler_t::replace);
}

ordered_json info_json(const ServerUri& uri, const ExportInfo& info) {
  ordered_json object = {{"uri", uri.text()},
                         {"server", uri.address()},
                         {"export", uri.export_name},
                         {"protocol", info.welcome ? 2 : 1},
                         {"round_trip_us", info.round_trip_us}};
  if (!info.welcome) return object;
  const proto::Welcome2& welcome = *info.welcome;
  object["size_bytes"] = welcome.size_bytes;
  object["read_only"] = (welcome.flags & NETBLK2_WELCOME_READ_ONLY) != 0;
  object["can_trim"] = (welcome.flags & NETBLK2_WELCOME_TRIM) != 0;
  object["rotational"] = (welcome.flags & NETBLK2_WELCOME_ROTATIONAL) != 0;
  object["block_bytes"] = welcome.block_bytes;
  object["preferred_bytes"] = welcome.preferred_bytes;
  object["max_payload_bytes"] = welcome.max_payload_bytes;
  object["slots"] = welcome.slots;
  object["max_connections"] = welcome.max_connections;
  object["features"] = ordered_json::array();
  for (const proto::Feature2& feature : welcome.features) object["features"].push_back(feature.name);
  const proto::Feature2* heartbeat = proto::find_feature(welcome.features, NETBLK2_FEATURE_HEARTBEAT);
  if (heartbeat != nullptr) object["max_heartbeat_ms"] = heartbeat->value;
  object["store_uuid"] = id_text(welcome.store_uuid);
  object["generation"] = welcome.generation;
  return object;
}

std::string rows_text(const InfoRows& rows) {
  std::string text;
  for (const auto& [name, value] : rows) text += fmt::format("{}{:<11} {}", text.empty() ? "" : "\n", name, value);
  return text;
}

std::string info_text(const ServerUri& uri, const ExportInfo& info) {
  InfoRows rows = {{"server", uri.address()}};
  if (!info.welcome) {
    rows.emplace_back("protocol", "netblk/1 only: it tells neither size nor exports, has no flush, trim or sessions");
    rows.emplace_back("round trip", milliseconds(info.round_trip_us));
  } else {
    const proto::Welcome2& welcome = *info.welcome;
    std::string features;
    for (const proto::Feature2& feature : welcome.features) features += (features.empty() ? "" : ", ") + feature.name;
    rows.emplace_back("export", uri.export_name.empty() ? "(the first)" : printable(uri.export_name));
    rows.emplace_back("protocol", "netblk/2");
    rows.emplace_back("size", exact_size(welcome.size_bytes));
    rows.emplace_back("access", (welcome.flags & NETBLK2_WELCOME_READ_ONLY) != 0 ? "read-only" : "read and write");
    rows.emplace_back("trim", (welcome.flags & NETBLK2_WELCOME_TRIM) != 0 ? "yes" : "no");
    rows.emplace_back("medium", (welcome.flags & NETBLK2_WELCOME_ROTATIONAL) != 0 ? "rotational" : "not rotational");
    rows.emplace_back("blocks", fmt::format("{} (preferred: {}; at most {} a request)", size_text(welcome.block_bytes),
                                            size_text(welcome.preferred_bytes), size_text(welcome.max_payload_bytes)));
    rows.emplace_back("in flight", fmt::format("up to {} requests over up to {} connections", welcome.slots,
                                               welcome.max_connections));
    rows.emplace_back("features", features.empty() ? "none" : printable(features));
    rows.emplace_back("store", id_text(welcome.store_uuid));
    rows.emplace_back("generation", std::to_string(welcome.generation));
    rows.emplace_back("round trip", milliseconds(info.round_trip_us));
  }
  return rows_text(rows);
}

std::string list_json(const ServerUri& server, const std::vector<proto::Export2>& exports) {
  ordered_json list = ordered_json::array();
  for (const proto::Export2& entry : exports) {
    const ServerUri uri{.host = server.host, .port = server.port, .export_name = entry.name};
    list.push_back({{"name", entry.name},
                    {"size_bytes", entry.size_bytes},
                    {"read_only", (entry.flags & NETBLK2_WELCOME_READ_ONLY) != 0},
                    {"uri", uri.text()}});
  }
  return dumped(list);
}

std::string list_text(const std::vector<proto::Export2>& exports) {
  std::vector<std::array<std::string, 2>> rows = {{"NAME", "SIZE"}};
  for (const proto::Export2& entry : exports)
    rows.push_back({entry.name.empty() ? "(no name)" : printable(entry.name), exact_size(entry.size_bytes)});
  size_t name_width = 0, size_width = 0;
  for (const auto& row : rows) {
    name_width = std::max(name_width, row[0].size());
    size_width = std::max(size_width, row[1].size());
  }
  std::string text;
  for (size_t i = 0; i < rows.size(); ++i) {
    const bool read_only = i > 0 && (exports[i - 1].flags & NETBLK2_WELCOME_READ_ONLY) != 0;
    text += fmt::format("{}{:<{}}  {:<{}}  {}", i == 0 ? "" : "\n", rows[i][0], name_width, rows[i][1], size_width,
                        i == 0 ? "ACCESS" : read_only ? "read-only" : "read and write");
  }
  return text;
}

}  // namespace

int run_info(const std::string& text, bool json, uint64_t timeout_ms) {
  const auto uri = parse_server_uri(text);
  if (!uri) return fail(kMalformed, uri.error().message);
  if (uri.value().is_nbd()) {
    const auto told = ask_nbd_info(uri.value(), timeout_ms);
    if (!told) return fail(kFailed, told.error().message);
    return print(json ? dumped(nbd_info_json(uri.value(), told.value())) : rows_text(nbd_info_rows(uri.value(), told.value())));
  }
  const auto info = ask_info(uri.value(), timeout_ms);
  if (!info) return fail(kFailed, info.error().message);
  if (!info.value().welcome && !uri.value().export_name.empty())
    note(fmt::format("netblk/1 cannot name an export; \"{}\" may not be what the server gives", uri.value().export_name));
  return print(json ? dumped(info_json(uri.value(), info.value())) : info_text(uri.value(), info.value()));
}

int run_list(const std::string& text, bool json, uint64_t timeout_ms) {
  const auto uri = parse_server_uri(text);
  if (!uri) return fail(kMalformed, uri.error().message);
  ServerUri server = uri.value();
  server.export_name.clear();
  if (!uri.value().export_name.empty())
    return fail(kMalformed, fmt::format("\"{}\" names an export; `list` takes a server, {}", text, server.text()));
  if (uri.value().is_nbd()) {
    const auto told = ask_nbd_list(server, timeout_ms);
    if (!told) return fail(kFailed, told.error().message);
    return print(json ? dumped(nbd_list_json(server, told.value())) : nbd_list_text(told.value()));
  }
  const auto exports = ask_list(uri.value(), timeout_ms);
  if (!exports) return fail(kFailed, exports.error().message);
  return print(json ? list_json(uri.value(), exports.value()) : list_text(exports.value()));
}

}  // namespace netblk::tools
