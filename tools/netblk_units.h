// SPDX-License-Identifier: GPL-2.0-only
// What systemd gets to know of /etc/netblktab: drop-ins of netblk@NAME.service and of device units, and who wants them.
// netblk-generator(8) has the reasons.
#pragma once

#include <string>
#include <vector>

#include "netblk_table.h"

namespace netblk::tools {

struct UnitFile {
  std::string path;  // below the folder of the generator
  std::string text;
  bool is_link = false;  // to `text`
};

struct Units {
  std::vector<UnitFile> files;
  std::vector<std::string> warnings;  // one line each
};

// fstab, named as fstab_file in warnings, tells which partitions are mounted.
Units make_units(const Table& table, const std::string& table_file, const std::string& fstab, const std::string& fstab_file);

// "/dev/netblk-by-name/a-b" -> "dev-netblk\x2dby\x2dname-a\x2db", as systemd-escape(1) --path.
std::string unit_name_of_path(const std::string& path);

}  // namespace netblk::tools
