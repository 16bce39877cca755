// SPDX-License-Identifier: GPL-2.0-only
// `netblk replay`: asks a disk for what a trace of another one has.
#pragma once

#include <string>

namespace netblk::tools {

struct ReplayArguments {
  std::string trace;
  std::string target;
  std::string disk;  // of the trace; empty: its only one
  double speed = 1;
  bool as_fast_as_possible = false;
  unsigned connections = 1;
  bool yes = false;
  bool json = false;
};

int run_replay(const ReplayArguments& arguments);

}  // namespace netblk::tools
