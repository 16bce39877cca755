// SPDX-License-Identifier: GPL-2.0-only
// `netblk attach`, `detach`, `status` and `reset`: by the driver, or with a helper process.
#pragma once

#include <string>

namespace netblk::tools {

struct AttachArguments {
  std::string uri;
  std::string size;
  std::string via = "auto";
  std::string device;
  std::string name;
  double timeout_s = 0;  // 0: not given
  unsigned connections = 1;
  bool read_only = false;
  bool shared = false;
  bool takeover = false;
};

// Exit statuses.
int run_attach(const AttachArguments& arguments);
int run_detach(const std::string& device, bool force);
int run_reset(const std::string& device);
// device: empty for all
int run_status(const std::string& device, bool json);

}  // namespace netblk::tools
