// SPDX-License-Identifier: GPL-2.0-only
// `netblk top`: what the attached disks do, again and again.
#pragma once

#include <string>
#include <vector>

#include "netblk_status.h"

namespace netblk::tools {

struct TopArguments {
  std::vector<std::string> devices;  // or names; empty: all
  double interval_s = 1;
  bool once = false;  // one interval, and no more
  bool json = false;
};

// The exit status. An interrupt ends it in order.
int run_top(const TopArguments& arguments);

// Two looks at the same disks, as what happened between them, the busiest first. period_s: above 0.
std::string top_json(const std::vector<StatusRow>& before, const std::vector<StatusRow>& now, double period_s);
// width: columns of the terminal, in which what matters less is left out; 0: no limit.
std::string top_table(const std::vector<StatusRow>& before, const std::vector<StatusRow>& now, double period_s, size_t width);

}  // namespace netblk::tools
