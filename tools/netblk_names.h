// SPDX-License-Identifier: GPL-2.0-only
// Names that outlive a connection: who this machine is to a server, and /dev/netblk-by-name.
#pragma once

#include <string>

#include "base/id.h"
#include "base/result.h"

namespace netblk::tools {

inline constexpr const char* kByName = "/dev/netblk-by-name";

// The same at each start on this machine, for the same disk; another one for another disk (DESIGN 4.2). Without a
// machine id, random: then a server does not know us again after our restart, and an exclusive disk has to be taken over.
Id client_id_of(const std::string& disk);

// [A-Za-z0-9._-]{1,64}, not beginning with a dot.
bool legal_name(const std::string& name);

// Where the name leads ("/dev/netblk-1"); empty when nobody has it, or what had it is gone.
std::string node_of_name(const std::string& name);
// The name of a node, or empty.
std::string name_of_node(const std::string& node);

// udev makes the same link where it runs; here it is made by hand.
Status give_name(const std::string& name, const std::string& node);
void forget_names_of(const std::string& node);

}  // namespace netblk::tools
