// SPDX-License-Identifier: GPL-2.0-only
// Names that outlive a connection: who this machine is to a server, and /dev/netblk-by-name.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "base/id.h"
#include "base/result.h"

namespace netblk::tools {

inline constexpr const char* kByName = "/dev/netblk-by-name";

// The same at each start on this machine, for the same disk; another one for another disk (DESIGN 4.2). Without a
// machine id, random: then a server does not know us again after our restart, and an exclusive disk has to be taken over.
Id client_id_of(const std::string& disk);

// [A-Za-z0-9._-]{1,64}, not beginning with a dot, or with a dash, which would be an option of a command.
bool legal_name(const std::string& name);

// Which disk has a name: a file /run/netblk/names/DISK for each, as udev reads it too (packaging/udev). Who writes them
// holds lock_attachments().
struct Named {
  std::string name;
  std::string node;    // "/dev/netblk-1", which may have gone since
  std::string source;  // what was attached under that name
};
std::vector<Named> named_disks();
std::optional<Named> find_name(const std::string& name);
// Whether the name was given for this source.
bool is_source_of(const Named& named, const std::string& source);
// The name of a node, or empty.
std::string name_of_node(const std::string& node);
// The node that words mean: a name that was given, "netblk-1", a link, a node.
std::string node_of_words(const std::string& words);

// Writes the file, and the link in /dev/netblk-by-name, which udev makes where it runs. A name that the node had before is
// gone; so is what else had this name.
Status give_name(const Named& named);
void forget_names_of(const std::string& node);

}  // namespace netblk::tools
