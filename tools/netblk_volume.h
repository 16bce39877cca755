// SPDX-License-Identifier: GPL-2.0-only
// netblk volume: makes volumes, tells about them, and changes them (docs/volumes.md).
#pragma once

#include <cstdint>
#include <string>

#include <CLI/CLI.hpp>

#include "volume_keys.h"

namespace netblk::tools {

struct VolumeArguments {
  std::string path;
  std::string size;
  std::string segment_size;
  std::string history;
  std::string name;  // of a clone to be
  std::string of;    // a clone
  std::string setting;
  std::string compress;
  bool encrypt = false;
  KeyFiles keys;      // what opens it
  KeyFiles new_keys;  // what is to
  std::string slot;
  bool undo = false;
  bool disconnect = false;
  uint64_t rate_mb = 32;  // MB a second
  std::string file;  // of a command that reads or writes bytes; "" and "-": the standard input, or output
  std::string range;  // of send: what stands behind the @
  std::string token;
  double timeout_s = 0;  // 0: not given
  bool status = false;
  bool abort = false;
  bool json = false;
};

// The command with its own commands, as `arguments` will have them.
CLI::App* add_volume_commands(CLI::App& app, VolumeArguments& arguments);
// After the parsing, if it is that command.
int run_volume(const CLI::App& command, const VolumeArguments& arguments);

}  // namespace netblk::tools
