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
  bool leaving = false;  // detached at its last close
  std::string owner{};   // how this machine has it: "exclusive", "shared", "read-only"; empty: the source has no owners
  // As the kernel counts for the disk, whichever way it was made.
  uint64_t in_flight = 0;
  uint64_t reads = 0, writes = 0;              // that have ended
  uint64_t read_wait_ms = 0, write_wait_ms = 0;  // all together, from the kernel's taking to the end
};

std::vector<StatusRow> status_rows();

// Two looks at the same disks, as what happened between them. period_s: above 0.
std::string top_json(const std::vector<StatusRow>& before, const std::vector<StatusRow>& now, double period_s);
std::string top_table(const std::vector<StatusRow>& before, const std::vector<StatusRow>& now, double period_s);

std::string status_json(const std::vector<StatusRow>& rows);
std::string status_table(const std::vector<StatusRow>& rows);

}  // namespace netblk::tools
