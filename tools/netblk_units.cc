// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_units.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <optional>
#include <string_view>

#include "base/parse.h"
#include "netblk_names.h"
#include "volume_store.h"

namespace netblk::tools {
namespace {

constexpr const char* kGenerated = "# Made by netblk-generator of {}; lost at the next boot or `systemctl daemon-reload`.\n";
// systemd's own patience with a device that does not appear.
constexpr double kDeviceSeconds = 90;

struct FstabLine {
  unsigned number = 0;
  std::string device;  // what is mounted, or swapped to
  std::string unit;    // of the mount, or of the swap
  bool on_network = false;
  bool automatic = true;
};

bool has_option(const std::string& options, std::string_view option) {
  for (size_t begin = 0; begin <= options.size();) {
    const size_t end = std::min(options.find(',', begin), options.size());
    if (std::string_view(options).substr(begin, end - begin) == option) return true;
    begin = end + 1;
  }
  return false;
}

std::vector<FstabLine> lines_of_fstab(const std::string& fstab) {
  std::vector<FstabLine> lines;
  unsigned number = 0;
  for (size_t begin = 0; begin < fstab.size();) {
    const size_t end = std::min(fstab.find('\n', begin), fstab.size());
    const auto words = words_of_line(fstab.substr(begin, end - begin));
    begin = end + 1;
    ++number;
    if (!words || words->size() < 2) continue;
    const bool is_swap = words->size() > 2 && (*words)[2] == "swap";
    const std::string options = words->size() > 3 ? (*words)[3] : "";
    lines.push_back({.number = number,
                     .device = (*words)[0],
                     .unit = is_swap ? unit_name_of_path((*words)[0]) + ".swap" : unit_name_of_path((*words)[1]) + ".mount",
                     .on_network = has_option(options, "_netdev"),
                     .automatic = !has_option(options, "noauto")});
  }
  return lines;
}

// Whether it is the disk of that name, or one of its partitions.
bool is_of_disk(const std::string& device, const std::string& disk) {
  if (device == disk) return true;
  const std::string part = disk + "-part";
  return device.starts_with(part) && device.size() > part.size() &&
         std::all_of(device.begin() + static_cast<std::ptrdiff_t>(part.size()), device.end(), [](char c) { return c >= '0' && c <= '9'; });
}

// What stands for itself in a unit file.
std::string specifiers_escaped(const std::string& text) {
  std::string escaped;
  for (const char c : text) escaped += c == '%' ? std::string("%%") : std::string(1, c);
  return escaped;
}

// The file or folder of a STORE: what it is on is mounted first.
std::string path_of_store(const Source& source) {
  const std::string_view place = std::string_view(source.text).substr(0, source.text.find('?'));
  if (!source.is_store()) return "";
  if (place.starts_with("file:")) return percent_decoded_loosely(place.substr(5));
  if (!place.starts_with("vol:")) return "";
  const auto name = parse_volume_name(place.substr(4));
  return name ? name.value().folder : "";
}

// A path among the words of a unit file; nothing: it cannot stand in one.
std::string quoted(const std::string& path) {
  std::string word = "\"";
  for (const char c : specifiers_escaped(path)) {
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) return "";
    if (c == '"' || c == '\\') word += '\\';
    word += c;
  }
  return word + '"';
}

struct Users {
  std::vector<std::string> devices;  // the disk, and those of its partitions that are mounted
  std::vector<std::string> units;    // of the mounts
};

std::string service_text(const TableEntry& entry, const std::string& table_file, const Users& users) {
  std::string text = fmt::format(kGenerated, table_file);
  text += "[Unit]\n";
  text += fmt::format("SourcePath={}\n", specifiers_escaped(table_file));
  if (entry.on_network) {
    text += "Wants=network-online.target\nAfter=network-online.target network.target\n";
    if (!entry.may_fail) {
      // Also for what is mounted by UUID or label, as long as it says _netdev: after this at boot, before it at shutdown.
      // Not of a store: the file system that it is on may be one of those.
      if (!entry.source.is_store()) text += "Wants=remote-fs-pre.target\nBefore=remote-fs-pre.target\n";
      if (entry.automatic) text += "Before=remote-fs.target\n";
    }
  }
  if (const std::string path = path_of_store(entry.source); !path.empty())
    if (const std::string word = quoted(path); !word.empty()) text += fmt::format("RequiresMountsFor={}\n", word);
  for (const std::string& unit : users.units) text += fmt::format("Before={}\n", unit);
  for (const std::string& device : users.devices) {
    const std::string name = unit_name_of_path(device);
    text += fmt::format("Wants=blockdev@{0}.target\nBefore=blockdev@{0}.target\n", name);
  }
  return text;
}

}  // namespace

std::string unit_name_of_path(const std::string& path) {
  std::string name;
  size_t end = path.size();
  while (end > 1 && path[end - 1] == '/') --end;
  if (end <= 1) return "-";
  for (size_t i = 1; i < end; ++i) {
    const char c = path[i];
    if (c == '/' && path[i - 1] == '/') continue;
    if (c == '/') {
      name += '-';
    } else if (std::isalnum(static_cast<unsigned char>(c)) != 0 || c == ':' || c == '_' || (c == '.' && i > 1)) {
      name += c;
    } else {
      name += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    }
  }
  return name;
}

Units make_units(const Table& table, const std::string& table_file, const std::string& fstab, const std::string& fstab_file) {
  Units units;
  const std::vector<FstabLine> mounts = lines_of_fstab(fstab);
  for (const TableEntry& entry : table.entries) {
    // What the initramfs attached carries the root: nobody takes it away.
    if (entry.in_initramfs) continue;
    const std::string service = fmt::format("netblk@{}.service", entry.name());
    const std::string disk = std::string(kByName) + "/" + entry.name();
    Users users{.devices = {disk}, .units = {}};
    std::vector<std::string>& devices = users.devices;
    for (const FstabLine& mount : mounts) {
      if (!is_of_disk(mount.device, disk)) continue;
      if (std::find(devices.begin(), devices.end(), mount.device) == devices.end()) devices.push_back(mount.device);
      users.units.push_back(mount.unit);
      if (entry.on_network && mount.automatic && !mount.on_network)
        units.warnings.push_back(fmt::format("{}:{}: {} is on the network: write _netdev among the options, or the boot waits for "
                                             "it before there is a network", fstab_file, mount.number, mount.device));
    }
    units.files.push_back({fmt::format("{}.d/50-netblktab.conf", service), service_text(entry, table_file, users)});
    const std::string unit = std::string("../") + service;
    if (entry.automatic) {
      // As mounts: without nofail, remote-fs.target fails where the disk does. local-fs.target would end in the emergency
      // mode, which is for the mount to decide.
      const char* const wanted_by = !entry.on_network   ? "local-fs.target.wants"
                                    : entry.may_fail ? "remote-fs.target.wants"
                                                     : "remote-fs.target.requires";
      units.files.push_back({fmt::format("{}/{}", wanted_by, service), unit, true});
    }
    for (const std::string& device : devices) {
      // Whoever mounts it, at whatever time, has it attached.
      const std::string name = unit_name_of_path(device);
      units.files.push_back({fmt::format("{}.device.requires/{}", name, service), unit, true});
      // The device is waited for while its server is; x-systemd.device-timeout= in fstab, which sorts later, is stronger.
      units.files.push_back({fmt::format("{}.device.d/40-netblktab.conf", name),
                             fmt::format(kGenerated, table_file) +
                                 fmt::format("[Unit]\nJobRunningTimeoutSec={:g}\n", entry.wait_s + kDeviceSeconds)});
    }
  }
  return units;
}

}  // namespace netblk::tools
