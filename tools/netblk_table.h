// SPDX-License-Identifier: GPL-2.0-only
// /etc/netblktab, netblktab(5): the disks that a machine attaches when it boots. Read by `netblk` and by the generator of
// units for systemd, and nowhere else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "netblk_disks.h"
#include "netblk_source.h"

namespace netblk::tools {

inline constexpr const char* kTablePath = "/etc/netblktab";
inline constexpr size_t kMaxTableBytes = 1u << 20;
// How long a boot waits for a server that is not there yet: after a power cut all machines start at once.
inline constexpr double kTableWaitSeconds = 60;

struct TableEntry {
  unsigned line = 0;
  AttachArguments attach;  // as the command line of `netblk attach` would have them, with --name
  Source source;
  bool automatic = true;  // noauto: only when somebody asks for it
  bool may_fail = false;  // nofail: the boot goes on without it
  bool on_network = true;  // the source says so, or _netdev
  bool in_initramfs = false;  // the initramfs attaches it, and nobody after it
  double wait_s = kTableWaitSeconds;

  const std::string& name() const { return attach.name; }
};

struct Table {
  std::vector<TableEntry> entries;
  std::vector<std::string> problems;  // "FILE:LINE: words", each a line that is not an entry

  const TableEntry* find(const std::string& name) const;
};

// `file` is for the words of the problems.
Table parse_table(const std::string& text, const std::string& file);
// A file that is not there is an empty table where that is no error: ENOENT.
Result<Table> read_table(const std::string& file);

// A line for the initramfs, NAME=netblk://...,OPTION...; an error says what the driver alone cannot do.
Result<std::string> initramfs_line(const TableEntry& entry);

// The words of a line, as netblktab and fstab have them; nothing when a quote is open.
std::optional<std::vector<std::string>> words_of_line(const std::string& line);

}  // namespace netblk::tools
