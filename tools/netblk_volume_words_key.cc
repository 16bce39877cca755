// SPDX-License-Identifier: GPL-2.0-only
// The words of commands of keys.
#include <fmt/format.h>

#include <array>
#include <cerrno>

#include "base/parse.h"
#include "command_line.h"
#include "netblk_volume_words.h"
#include "store/volume/point_name.h"
#include "volume_commands.h"

namespace netblk::tools {
namespace {

namespace volume = store::volume;
using Point = VolumeWords::Point;

constexpr const char* kPathText = "The folder of the volume";

void declare_new_key(CLI::App& one, VolumeArguments& arguments) {
  one.add_option("--new-key-file", arguments.new_keys.key_file, "The key file that is to open it");
  one.add_option("--new-passphrase-file", arguments.new_keys.passphrase_file, "A file with the passphrase that is to (without both: a terminal is asked)");
}

void declare_slot(CLI::App& one, VolumeArguments& arguments) {
  one.add_option("--slot", arguments.slot, "Number of its slot, as `key list` tells it")->required();
}

Result<Json> known(const VolumeName& name, const VolumeArguments& arguments) {
  const bool asks = arguments.keys.none();
  auto key = asks ? ask_passphrase(fmt::format("Passphrase of {}", printable(name.folder)), false) : read_key(arguments.keys);
  if (!key) return std::move(key).error();
  return Json{{"known", key_json(*key.value())}};
}

Result<Json> asked_new_key(const VolumeName& name, const VolumeArguments& arguments) {
  auto asked = known(name, arguments);
  if (!asked) return asked;
  const bool asks = arguments.new_keys.none();
  auto another = asks ? ask_passphrase(fmt::format("New passphrase of {}", printable(name.folder)), true) : read_key(arguments.new_keys);
  if (!another) return std::move(another).error();
  asked.value()["another"] = key_json(*another.value());
  return asked;
}

Result<Json> asked_remove(const VolumeName& name, const VolumeArguments& arguments) {
  const auto slot = parse_unsigned(arguments.slot, 0, volume::kKeySlotCount - 1);
  if (!slot) return make_error(EINVAL, "bad --slot '{}': use a number from 0 to {}", arguments.slot, volume::kKeySlotCount - 1);
  auto asked = known(name, arguments);
  if (asked.ok()) asked.value()["slot"] = *slot;
  return asked;
}

std::string said_slot(const VolumeName&, const Json& answer) { return fmt::format("slot {}", answer.at("slot").get<uint64_t>()); }

// From the superblocks: it takes no key to see which there are.
int list(const VolumeName& name, const VolumeArguments& arguments) {
  const auto slots = key_slots_in(name.folder);
  if (!slots) return fail(kFailed, slots.error().message);
  Json answer = Json::array();
  std::string text = "SLOT  KIND        SINCE";
  for (const volume::KeySlotInfo& each : slots.value()) {
    const char* const kind = each.kind == volume::UserKey::Kind::kFile ? "key file" : "passphrase";
    answer.push_back({{"slot", each.number}, {"kind", kind}, {"since", volume::time_text(each.time_ns)}});
    text += fmt::format("\n{:<4}  {:<10}  {}", each.number, kind, volume::time_text(each.time_ns));
  }
  return print(arguments.json ? answer.dump(2) : text);
}

constexpr std::array kWords = {
    VolumeWords{.name = "key list", .text = "List the keys of an encrypted volume", .what = "PATH", .what_text = kPathText,
                .point = Point::kNone, .json = true, .opens = false, .run = list},
    VolumeWords{.name = "key add", .text = "Let another key open it", .what = "PATH", .what_text = kPathText,
                .point = Point::kNone, .json = true, .declare = declare_new_key, .asked = asked_new_key, .said = said_slot},
    VolumeWords{.name = "key change", .text = "Put another key in the place of the one that is given", .what = "PATH", .what_text = kPathText,
                .point = Point::kNone, .json = true, .declare = declare_new_key, .asked = asked_new_key, .said = said_slot},
    VolumeWords{.name = "key remove", .text = "Let a key open it no more", .what = "PATH", .what_text = kPathText,
                .point = Point::kNone, .json = true, .declare = declare_slot, .asked = asked_remove, .said = said_slot},
};

}  // namespace

std::span<const VolumeWords> volume_key_words() { return kWords; }

}  // namespace netblk::tools
