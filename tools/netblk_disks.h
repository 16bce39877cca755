// SPDX-License-Identifier: GPL-2.0-only
// `netblk attach`, `detach`, `status` and `reset`: by the driver, or with a helper process.
#pragma once

#include <optional>
#include <string>

namespace netblk::tools {

struct AttachArguments {
  std::string source;
  std::string size;
  std::string via = "auto";
  std::string device;
  std::string name;
  double timeout_s = 0;  // 0: not given
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
};

// Exit statuses.
int run_attach(const AttachArguments& arguments);
int run_detach(const DetachArguments& arguments);
int run_reset(const std::string& device);
// Of all disks, again and again; once: after one interval, and no more.
int run_top(double interval_s, bool once, bool json);
// device: empty for all
int run_status(const std::string& device, bool json);

}  // namespace netblk::tools
