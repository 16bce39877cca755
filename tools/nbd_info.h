// SPDX-License-Identifier: GPL-2.0-only
// What `netblk info` and `netblk list` say of an NBD server.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "netblk_greet.h"
#include "netblk_uri.h"

namespace netblk::tools {

using InfoRows = std::vector<std::pair<const char*, std::string>>;

nlohmann::ordered_json nbd_info_json(const ServerUri& uri, const NbdExportInfo& info);
InfoRows nbd_info_rows(const ServerUri& uri, const NbdExportInfo& info);
nlohmann::ordered_json nbd_list_json(const ServerUri& server, const std::vector<client::NbdListed>& exports);
std::string nbd_list_text(const std::vector<client::NbdListed>& exports);

// "1G (1073741824 bytes)"
std::string exact_size(uint64_t bytes);
std::string milliseconds(uint64_t us);

}  // namespace netblk::tools
