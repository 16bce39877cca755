// SPDX-License-Identifier: GPL-2.0-only
// `netblk bench URI|DEVICE`.
#pragma once

#include <cstdint>
#include <string>

namespace netblk::tools {

struct BenchArguments {
  std::string target;
  std::string rw = "randread";
  std::string block_size = "4K";
  unsigned depth = 32;  // of each connection
  unsigned connections = 1;
  double seconds = 5;
  bool yes = false;
  bool json = false;
};

// An exit status.
int run_bench(const BenchArguments& arguments);

}  // namespace netblk::tools
