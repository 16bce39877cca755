// SPDX-License-Identifier: GPL-2.0-only
// The words of commands of branches, points, sizes and settings.
#include <fmt/format.h>

#include <array>
#include <cerrno>

#include "base/limits.h"
#include "base/parse.h"
#include "command_line.h"
#include "netblk_volume_words.h"
#include "store/volume/settings.h"

namespace netblk::tools {
namespace {

using Point = VolumeWords::Point;

constexpr const char* kMomentText =
    "PATH@POINT: the folder, and a snapshot, a clone, a moment (-10m, 2026-11-21T10:00:00Z) or a record (lsn:123)";

void declare_of(CLI::App& one, VolumeArguments& arguments) {
  one.add_option("--of", arguments.of, "The clone that is meant, instead of the volume itself");
}

// --- clone ----------------------------------------------------------------------------------------------------------

void declare_clone(CLI::App& one, VolumeArguments& arguments) {
  one.add_option("NAME", arguments.name, "Name of the clone")->required();
  declare_of(one, arguments);
}

Result<Json> asked_clone(const VolumeName& name, const VolumeArguments& arguments) {
  if (!store::volume::is_name(arguments.name))
    return make_error(EINVAL, "bad name '{}': it begins with a letter or _, and has up to 64 letters, digits, '.', '_' and '-'", arguments.name);
  return Json{{"point", name.snapshot}, {"name", arguments.name}, {"of", arguments.of}};
}

std::string said_clone(const VolumeName& name, const Json& answer) {
  return fmt::format("{}@{}", printable(name.folder), printable(answer.at("name")));
}

// --- rollback, rewind -----------------------------------------------------------------------------------------------

void declare_rollback(CLI::App& one, VolumeArguments& arguments) {
  declare_of(one, arguments);
  one.add_flag("--disconnect", arguments.disconnect, "Though clients are connected to it: their connections end");
}

void declare_rewind(CLI::App& one, VolumeArguments& arguments) {
  declare_rollback(one, arguments);
  one.add_flag("--undo", arguments.undo, "Back to where it was before the last rewind or rollback");
}

Result<Json> asked_rewind(const VolumeName& name, const VolumeArguments& arguments) {
  if (arguments.undo != name.snapshot.empty())
    return make_error(EINVAL, "name the point, as in {}@-10m, or write --undo: one of the two", name.folder);
  return Json{{"point", name.snapshot}, {"of", arguments.of}, {"undo", arguments.undo}, {"disconnect", arguments.disconnect}};
}

Result<Json> asked_rollback(const VolumeName& name, const VolumeArguments& arguments) {
  if (!store::volume::is_name(name.snapshot))
    return make_error(EINVAL, "'{}' is no snapshot's name: `netblk volume rewind` goes to a moment", name.snapshot);
  return Json{{"point", name.snapshot}, {"of", arguments.of}, {"disconnect", arguments.disconnect}};
}

std::string said_rewind(const VolumeName& name, const Json& answer) {
  std::string said = fmt::format("what it was until now is {}@{}", printable(name.folder), printable(answer.at("before")));
  if (const auto missing = answer.find("not_served"); missing != answer.end())
    for (const Json& each : *missing) said += fmt::format("\n{}", printable(each));
  return said;
}

// --- resize ---------------------------------------------------------------------------------------------------------

void declare_resize(CLI::App& one, VolumeArguments& arguments) {
  one.add_option("SIZE", arguments.size, "Size of the disk from now on: bytes, or K, M, G, T")->required();
}

Result<Json> asked_resize(const VolumeName& name, const VolumeArguments& arguments) {
  const auto size = parse_size(arguments.size);
  if (!size || *size < limits::kSectorBytes || *size % limits::kSectorBytes != 0)
    return make_error(EINVAL, "bad size '{}': use bytes or K, M, G, T, a multiple of 512", arguments.size);
  return Json{{"size_bytes", *size}, {"of", name.snapshot}};
}

// --- set ------------------------------------------------------------------------------------------------------------

void declare_set(CLI::App& one, VolumeArguments& arguments) {
  one.add_option("KEY=VALUE", arguments.setting, "history=24h|10G|none, space-factor=1.3, when-full=shrink-history|refuse-writes")->required();
}

Result<Json> asked_set(const VolumeName&, const VolumeArguments& arguments) {
  const size_t at = arguments.setting.find('=');
  if (at == std::string::npos || at == 0) return make_error(EINVAL, "bad setting '{}': write KEY=VALUE", arguments.setting);
  const std::string key = arguments.setting.substr(0, at), value = arguments.setting.substr(at + 1);
  std::vector<store::volume::Setting> tried;
  if (const Status put = store::volume::put_setting(tried, key, value); !put) return put.error();
  return Json{{"key", key}, {"value", value}};
}

// --- get ------------------------------------------------------------------------------------------------------------

void declare_get(CLI::App& one, VolumeArguments& arguments) { one.add_option("KEY", arguments.setting, "Only this one"); }

Result<Json> asked_get(const VolumeName&, const VolumeArguments& arguments) { return Json{{"key", arguments.setting}}; }

std::string said_get(const VolumeName&, const Json& answer) {
  std::string text;
  for (const auto& [key, value] : answer.items()) text += fmt::format("{}{}={}", text.empty() ? "" : "\n", printable(key), printable(value.get<std::string>()));
  return text;
}

// --- The commands ---------------------------------------------------------------------------------------------------

constexpr std::array kWords = {
    VolumeWords{.name = "clone", .text = "Make a writable branch that begins as a point is", .what = "PATH@POINT", .what_text = kMomentText,
                .point = Point::kMay, .json = true, .declare = declare_clone, .asked = asked_clone, .said = said_clone},
    VolumeWords{.name = "rollback", .text = "Make a snapshot current; can be undone", .what = "PATH@SNAPSHOT",
                .what_text = "PATH@SNAPSHOT: the folder, and a snapshot", .point = Point::kMust, .json = true, .declare = declare_rollback,
                .asked = asked_rollback, .said = said_rewind},
    VolumeWords{.name = "rewind", .text = "Make any moment that is kept current; can be undone", .what = "PATH@POINT", .what_text = kMomentText,
                .point = Point::kMay, .json = true, .declare = declare_rewind, .asked = asked_rewind, .said = said_rewind},
    VolumeWords{.name = "resize", .text = "Make the disk larger or smaller, while it is in use too", .what = "PATH",
                .what_text = "PATH, or PATH@CLONE: the folder, and a clone", .point = Point::kMay, .json = false, .declare = declare_resize,
                .asked = asked_resize},
    VolumeWords{.name = "get", .text = "Tell the settings of a volume", .what = "PATH", .what_text = "The folder of the volume",
                .point = Point::kNone, .json = true, .declare = declare_get, .asked = asked_get, .said = said_get},
    VolumeWords{.name = "set", .text = "Change a setting of a volume, which is kept in it", .what = "PATH",
                .what_text = "The folder of the volume", .point = Point::kNone, .json = false, .declare = declare_set, .asked = asked_set},
};

}  // namespace

std::span<const VolumeWords> volume_point_words() { return kWords; }

}  // namespace netblk::tools
