// SPDX-License-Identifier: GPL-2.0-only
// The ways to make a disk of a source, and which of them this machine has.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "netblk_source.h"

namespace netblk::tools {

// The best first: what `--via auto` takes, if the machine has it and it knows the source. The driver needs no process; ublk
// and the kernel's nbd go on with another helper where one died, and ublk tells more of what a disk can; FUSE does not.
enum class Way { kNetblk, kUblk, kNbd, kFuse };

const char* way_text(Way way);

struct WayFacts {
  Way way = Way::kFuse;
  bool knows_source = true;
  bool usable = false;
  std::string why;     // it is usable, or is not
  std::string enable;  // the command that would make it usable; empty: there is none, or it is
};

// Of this machine and, if there is one, for the source; the best first.
std::vector<WayFacts> look_at_ways(const std::optional<Source>& source);

struct Explained {
  std::string kernel;  // release
  bool root = false;
  std::vector<WayFacts> ways;
};
Explained explain_ways(const std::optional<Source>& source);
std::string explained_text(const Explained& explained, const std::optional<Source>& source);
std::string explained_json(const Explained& explained, const std::optional<Source>& source);

}  // namespace netblk::tools
