// SPDX-License-Identifier: GPL-2.0-only
// The words of `netblk volume`: how its commands are written, what each asks of a volume, and what it says of the answer.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "netblk_volume.h"
#include "progress.h"
#include "volume_command.h"
#include "volume_store.h"

namespace netblk::tools {

struct VolumeWords {
  // What may stand behind the path.
  // kRange: A..B too, in VolumeArguments::range.
  enum class Point : uint8_t { kNone, kMay, kMust, kRange };

  const char* name;
  const char* text;
  const char* what;       // how its path is called
  const char* what_text;
  Point point;
  bool json;              // has --json
  // Options of its own; none: it has none.
  void (*declare)(CLI::App& one, VolumeArguments& arguments) = nullptr;
  // What is asked, or what is wrong with the arguments; none: {"name": what stands behind the @}.
  Result<Json> (*asked)(const VolumeName& name, const VolumeArguments& arguments) = nullptr;
  // The answer for people; none: nothing. It may come from a program of another version: members are taken with at().
  std::string (*said)(const VolumeName& name, const Json& answer) = nullptr;
  // Why the status is 1 though it was done; none, or empty: it is 0.
  std::string (*trouble)(const VolumeName& name, const Json& answer) = nullptr;
  bool opens = true;  // has --key-file, --passphrase-file and --timeout
  // Of a command that is about no open volume; none: it is a VolumeCommand of the same name.
  int (*run)(const VolumeName& name, const VolumeArguments& arguments) = nullptr;
};

std::span<const VolumeWords> volume_words();

// --key-file and --passphrase-file.
void declare_keys(CLI::App& one, VolumeArguments& arguments);
// What a volume to be is like, but for its size; and what was said of it. EINVAL: the arguments are malformed.
void declare_creation(CLI::App& one, VolumeArguments& arguments);
Result<store::volume::CreateOptions> creation_options(const VolumeName& name, const VolumeArguments& arguments);
bool says_creation(const VolumeArguments& arguments);
int exit_status(const Error& error);  // of those: 2, or 1

// What --timeout says; none: it was not given.
std::optional<uint64_t> given_timeout_ms(const VolumeArguments& arguments);
// How far the command `name` is, at a terminal.
void show_progress(StatusLine& line, const char* name, const Json& progress);
// Those of keys.
std::span<const VolumeWords> volume_key_words();
// Those of them that are about branches, points, sizes and settings.
std::span<const VolumeWords> volume_point_words();
// Of what goes into volumes and out of them.
std::span<const VolumeWords> volume_move_words();

}  // namespace netblk::tools
