// SPDX-License-Identifier: GPL-2.0-only
// The kernel driver, by its attributes in /sys/block/netblk.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "netblk_uri.h"

namespace netblk::tools {

inline constexpr const char* kDriverNode = "/dev/netblk";

bool driver_is_loaded();

struct DriverState {
  std::string state;
  std::string server;  // "netblk://192.168.1.22:10809"
  uint64_t size_bytes = 0;
  bool read_only = false;
  uint64_t read_bytes = 0;
  uint64_t write_bytes = 0;
  uint64_t errors = 0;
};
Result<DriverState> read_driver_state();

struct DriverOptions {
  std::optional<uint64_t> size_bytes;  // must be the driver's own
  std::optional<uint64_t> timeout_ms;
  bool read_only = false;
};
// Connects; the node on success.
Result<std::string> driver_attach(const ServerUri& uri, const DriverOptions& options);
// False: it was not connected.
Result<bool> driver_detach();

}  // namespace netblk::tools
