// SPDX-License-Identifier: GPL-2.0-only
// `netblk attach`, `detach`, `status` and `reset`: by the driver, or with a helper process.
#pragma once

#include <optional>
#include <string>

#include "base/result.h"

namespace netblk::tools {

// Of --timeout.
inline constexpr double kMinTimeoutSeconds = 0.001;
inline constexpr double kMaxTimeoutSeconds = 3600;

struct AttachArguments {
  std::string source;
  std::string size;
  std::string via = "auto";
  std::string device;
  std::string name;
  std::optional<double> timeout_s;  // 0: for ever
  std::optional<unsigned> connections;
  std::string reconnect;  // "lost", "trust"; empty: not given
  bool read_only = false;
  bool shared = false;
  bool takeover = false;
  bool explain = false;  // instead of attaching
  bool json = false;
};

struct DetachArguments {
  std::string device;
  bool force = false;
  bool lazy = false;
  double wait_s = 0;  // for its users
};

// The node of the disk, attached now or before. EINVAL: the arguments are malformed.
Result<std::string> attach_disk(const AttachArguments& arguments);

// Exit statuses.
int run_attach(const AttachArguments& arguments);
int run_detach(const DetachArguments& arguments);
int run_reset(const std::string& device);
// device: empty for all
int run_status(const std::string& device, bool json);

}  // namespace netblk::tools
