// SPDX-License-Identifier: GPL-2.0-only
// `netblk info` and `netblk list`.
#pragma once

#include <cstdint>
#include <string>

namespace netblk::tools {

// Exit statuses. An unreachable server is told within `timeout_ms`.
int run_info(const std::string& uri, bool json, uint64_t timeout_ms);
int run_list(const std::string& uri, bool json, uint64_t timeout_ms);

}  // namespace netblk::tools
