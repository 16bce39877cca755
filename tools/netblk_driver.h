// SPDX-License-Identifier: GPL-2.0-only
// The kernel driver's disks: /sys/block/netblk, /sys/block/netblk-1, ... and its netlink family.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "netblk_latency.h"
#include "netblk_uri.h"

namespace netblk::tools {

bool driver_is_loaded();

struct DriverState {
  uint32_t number = 0;
  std::string node;    // "/dev/netblk-1"
  std::string state;   // as the driver says it
  std::string server;  // "netblk://192.168.1.22:10809/disk"
  std::string protocol;
  std::string access;  // "exclusive", "shared", "read-only"
  uint64_t size_bytes = 0;
  bool read_only = false;
  bool lost = false;
  std::string lost_why;
  uint64_t generation = 0;  // 0: netblk/1
  uint64_t read_bytes = 0;
  uint64_t write_bytes = 0;
  uint64_t errors = 0;
  uint64_t reconnects = 0;
  unsigned connections = 1;  // at most
  std::string last_error;  // why the last connection ended
  std::optional<uint64_t> oldest_ms;  // an older driver does not tell them
  std::optional<Latencies> latencies;

  bool attached() const { return state == "connected" || state == "connecting"; }
};
// In the order of their numbers.
std::vector<DriverState> driver_disks();
// "/dev/netblk-1": whether the node's name is one of the driver's, there or not.
std::optional<uint32_t> driver_number(const std::string& node);

struct DriverOptions {
  std::optional<uint64_t> size_bytes;
  std::optional<uint64_t> timeout_ms;
  bool for_ever = false;  // without timeout_ms: no request ends because of time
  std::optional<uint32_t> number;  // of the disk that it shall be
  std::optional<unsigned> connections;  // that a session may have, which a disk is made for
  bool read_only = false;
  bool shared = false;
  bool takeover = false;
};
// The node of the disk that is the server's export: the one that is attached already, or an idle one, or a new one.
Result<std::string> driver_attach(const ServerUri& uri, const DriverOptions& options);

// Disconnects; a disk that is not the first one goes. False: it was not attached. Without force not while it is in use,
// and what is in the page cache is written first.
Result<bool> driver_detach(uint32_t number, bool force);

// The owner has taken note of a loss. EINVAL: nothing was lost.
Status driver_reset(uint32_t number);

}  // namespace netblk::tools
