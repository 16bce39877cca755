// SPDX-License-Identifier: GPL-2.0-only
// What `netblk status` shows.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "netblk_latency.h"

namespace netblk::tools {

// As the kernel counts for every disk, whichever way it was made: what has ended, and how long it took all together,
// from the kernel's taking to the end.
struct KernelCounts {
  uint64_t reads = 0, writes = 0;
  uint64_t read_bytes = 0, write_bytes = 0;
  uint64_t read_wait_ms = 0, write_wait_ms = 0;
};

// What one kind of requests did between two looks.
struct Rate {
  double per_s = 0, mib_per_s = 0;
  std::optional<double> latency_us{};  // of those that ended; nothing: none did
};
struct Rates {
  Rate read{}, write{};
};

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
  std::string leaving_failed{};  // why a lazy detach came to nothing
  uint64_t in_flight = 0;
  std::optional<uint64_t> oldest_ms{};  // the age of the oldest request; nothing: nobody who could say sees it
  std::optional<Latencies> latencies{};
  KernelCounts kernel{};
  Rates rates{};  // as of the last look
};

std::vector<StatusRow> status_rows();
// And of what was detached lazily, and failed.
void add_failed_leaves(std::vector<StatusRow>& rows);
// Looks at the kernel's counts once more, a moment after the rows were made, for their rates.
void add_rates(std::vector<StatusRow>& rows);

Rates rates_of(const KernelCounts& before, const KernelCounts& now, double period_s);
void add_rates(nlohmann::json& object, const Rates& rates);
nlohmann::json oldest_json(const StatusRow& row);
std::optional<double> oldest_us(const StatusRow& row);

std::string status_json(const std::vector<StatusRow>& rows);
// split: also where the time of requests went.
std::string status_table(const std::vector<StatusRow>& rows, bool split);

// Columns of equal width; the first line is the titles.
std::string aligned(const std::vector<std::vector<std::string>>& lines);

}  // namespace netblk::tools
