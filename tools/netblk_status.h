// SPDX-License-Identifier: GPL-2.0-only
// What `netblk status` shows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace netblk::tools {

struct StatusRow {
  std::string device;
  std::string way;    // "netblk" (the driver), "nbd", "ublk" or "fuse"
  std::string state;  // as in DESIGN 5, and "dead": the helper process has gone
  std::string server;
  std::string protocol{};  // "1", "2", "nbd"; empty: not known
  std::string name{};      // in /dev/netblk-by-name
  uint64_t size_bytes = 0;
  bool read_only = false;
  bool lost = false;  // acknowledged writes may be gone
  std::string lost_why{};
  uint64_t generation = 0;  // 0: netblk/1
  uint64_t read_bytes = 0;
  uint64_t write_bytes = 0;
  uint64_t errors = 0;
  uint64_t reconnects = 0;
  std::string last_error{};
  int64_t pid = 0;  // 0: no helper
  std::vector<std::string> uses{};
};

std::vector<StatusRow> status_rows();

std::string status_json(const std::vector<StatusRow>& rows);
std::string status_table(const std::vector<StatusRow>& rows);

}  // namespace netblk::tools
