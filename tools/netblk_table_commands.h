// SPDX-License-Identifier: GPL-2.0-only
// What `netblk` does with /etc/netblktab: `attach NAME`, `attach --all`, `detach --all`, `table`.
#pragma once

#include <string>

#include "netblk_disks.h"

namespace netblk::tools {

// Whether a SOURCE of the command line is a name of the table: no URI and no STORE is a legal name.
bool names_table_entry(const std::string& source);

// Exit statuses. table: a file.
int run_attach_entry(const std::string& name, const std::string& table);
int run_attach_all(const std::string& table);
int run_detach_all(const std::string& table, const DetachArguments& how);

struct TableArguments {
  std::string table;
  bool initramfs = false;  // the lines for the initramfs
  bool json = false;
};
int run_table(const TableArguments& arguments);

}  // namespace netblk::tools
