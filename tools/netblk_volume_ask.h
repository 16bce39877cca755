// SPDX-License-Identifier: GPL-2.0-only
// Asks a volume: by the socket of the process that has it open, or by opening it here.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "base/result.h"
#include "volume_command.h"
#include "volume_store.h"

namespace netblk::tools {

struct VolumeQuestion {
  const VolumeName& name;
  const VolumeCommand& command;
  const Json& asked;
  // Of a command that reads or writes bytes: the file, or "" or "-".
  std::string file;
  KeyFiles keys = {};
  SharedKey key = nullptr;  // what they say, if it is known already
  // How long the volume is waited for, and whoever has it for a sign of life, or for what it gives and takes; none: the usual.
  std::optional<uint64_t> timeout_ms = {};
  // How far it is, now and then.
  std::function<void(const Json& progress)> tell = {};
};

// Waits a while for a process that has the volume and cannot be asked, and gives way to a server that wants it. Errors say what
// to do.
Result<Json> ask_volume(const VolumeQuestion& question);

}  // namespace netblk::tools
