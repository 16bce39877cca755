// SPDX-License-Identifier: GPL-2.0-only
#include "nbd_info.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/parse.h"
#include "command_line.h"

namespace netblk::tools {
namespace {

using nlohmann::ordered_json;

struct Flag {
  uint16_t bit;
  const char* name;
};
// As the public text calls them.
constexpr Flag kFlags[] = {
    {NBD_FLAG_READ_ONLY, "READ_ONLY"},         {NBD_FLAG_SEND_FLUSH, "SEND_FLUSH"},
    {NBD_FLAG_SEND_FUA, "SEND_FUA"},           {NBD_FLAG_ROTATIONAL, "ROTATIONAL"},
    {NBD_FLAG_SEND_TRIM, "SEND_TRIM"},         {NBD_FLAG_SEND_WRITE_ZEROES, "SEND_WRITE_ZEROES"},
    {NBD_FLAG_SEND_DF, "SEND_DF"},             {NBD_FLAG_CAN_MULTI_CONN, "CAN_MULTI_CONN"},
    {NBD_FLAG_SEND_RESIZE, "SEND_RESIZE"},     {NBD_FLAG_SEND_CACHE, "SEND_CACHE"},
    {NBD_FLAG_SEND_FAST_ZERO, "SEND_FAST_ZERO"}, {NBD_FLAG_BLOCK_STATUS_PAYLOAD, "BLOCK_STATUS_PAYLOAD"},
};

std::vector<std::string> flag_names(const client::NbdExport& found) {
  std::vector<std::string> names;
  for (const Flag& flag : kFlags)
    if (found.has(flag.bit)) names.emplace_back(flag.name);
  return names;
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
  return text.empty() ? "none" : printable(text);
}

}  // namespace

std::string exact_size(uint64_t bytes) {
  return bytes < 1024 ? size_text(bytes) : fmt::format("{} ({} bytes)", size_text(bytes), bytes);
}

std::string milliseconds(uint64_t us) { return fmt::format("{:.3f} ms", static_cast<double>(us) / 1000); }

ordered_json nbd_info_json(const ServerUri& uri, const NbdExportInfo& info) {
  const client::NbdExport& found = info.found;
  return {{"uri", uri.text()},
          {"server", uri.address()},
          {"export", found.name},
          {"description", found.description},
          {"protocol", "nbd"},
          {"handshake_us", info.handshake_us},
          {"size_bytes", found.size_bytes},
          {"read_only", found.read_only()},
          {"can_flush", found.has(NBD_FLAG_SEND_FLUSH)},
          {"can_fua", found.has(NBD_FLAG_SEND_FUA)},
          {"can_trim", found.has(NBD_FLAG_SEND_TRIM)},
          {"can_zero", found.has(NBD_FLAG_SEND_WRITE_ZEROES)},
          {"can_fast_zero", found.has(NBD_FLAG_SEND_FAST_ZERO)},
          {"can_cache", found.has(NBD_FLAG_SEND_CACHE)},
          {"can_df", found.has(NBD_FLAG_SEND_DF)},
          {"can_multi_conn", found.has(NBD_FLAG_CAN_MULTI_CONN)},
          {"rotational", found.has(NBD_FLAG_ROTATIONAL)},
          {"flags", flag_names(found)},
          {"block_bytes", found.min_block_bytes},
          {"preferred_bytes", found.preferred_block_bytes},
          {"max_payload_bytes", found.max_payload_bytes},
          {"block_sizes_told", found.constraints_told},
          {"contexts", found.contexts},
          {"structured_replies", found.structured},
          {"extended_headers", found.extended},
          {"tls", false}};
}

InfoRows nbd_info_rows(const ServerUri& uri, const NbdExportInfo& info) {
  const client::NbdExport& found = info.found;
  InfoRows rows = {{"server", uri.address()}, {"export", found.name.empty() ? "(the default)" : printable(found.name)}};
  if (!found.description.empty()) rows.emplace_back("description", printable(found.description));
  rows.emplace_back("protocol", fmt::format("NBD, {}", found.extended     ? "extended headers"
                                                       : found.structured ? "structured replies"
                                                                          : "simple replies"));
  rows.emplace_back("size", exact_size(found.size_bytes));
  rows.emplace_back("access", found.read_only() ? "read-only" : "read and write");
  rows.emplace_back("flush", found.has(NBD_FLAG_SEND_FLUSH) ? "yes" : "no: what is written cannot be made safe");
  rows.emplace_back("trim", found.has(NBD_FLAG_SEND_TRIM) ? "yes" : "no");
  rows.emplace_back("medium", found.has(NBD_FLAG_ROTATIONAL) ? "rotational" : "not rotational");
  rows.emplace_back("connections", found.has(NBD_FLAG_CAN_MULTI_CONN) ? "several" : "one");
  rows.emplace_back("blocks", fmt::format("{} (preferred: {}; at most {} a request){}", size_text(found.min_block_bytes),
                                          size_text(found.preferred_block_bytes), size_text(found.max_payload_bytes),
                                          found.constraints_told ? "" : "; assumed, the server does not say"));
  rows.emplace_back("flags", joined(flag_names(found)));
  rows.emplace_back("contexts", joined(found.contexts));
  rows.emplace_back("handshake", milliseconds(info.handshake_us));
  return rows;
}

ordered_json nbd_list_json(const ServerUri& server, const std::vector<client::NbdListed>& exports) {
  ordered_json list = ordered_json::array();
  for (const client::NbdListed& entry : exports) {
    ServerUri uri = server;
    uri.export_name = entry.name;
    ordered_json object = {{"name", entry.name}, {"description", entry.description}};
    object["size_bytes"] = entry.about ? ordered_json(entry.about->size_bytes) : ordered_json();
    object["read_only"] = entry.about ? ordered_json(entry.about->read_only()) : ordered_json();
    object["uri"] = uri.text();
    list.push_back(std::move(object));
  }
  return list;
}

std::string nbd_list_text(const std::vector<client::NbdListed>& exports) {
  std::vector<std::array<std::string, 4>> rows = {{"NAME", "SIZE", "ACCESS", "DESCRIPTION"}};
  for (const client::NbdListed& entry : exports)
    rows.push_back({entry.name.empty() ? "(no name)" : printable(entry.name),
                    entry.about ? exact_size(entry.about->size_bytes) : "(not told)",
                    !entry.about ? "(not told)" : entry.about->read_only() ? "read-only" : "read and write",
                    printable(entry.description)});
  std::array<size_t, 3> widths{};
  for (const auto& row : rows)
    for (size_t i = 0; i < widths.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < widths.size(); ++i) line += fmt::format("{:<{}}  ", row[i], widths[i]);
    line += row[3];
    line.erase(line.find_last_not_of(' ') + 1);
    text += (text.empty() ? "" : "\n") + line;
  }
  return text;
}

}  // namespace netblk::tools
