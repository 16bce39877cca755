// SPDX-License-Identifier: GPL-2.0-only
// Which contents a client is told of (DESIGN 4.2, "Generation"), and who owns them.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "base/id.h"
#include "store/volume/points.h"

namespace netblk::store::volume {

// A client that comes back and is told of another uuid gives its disk up; of the same one with another counter, it goes on if it
// has nothing unflushed, with all that it has cached. So a rewind makes another uuid of a head, and each branch and each point
// has its own; the volume's own disk has the volume's until it is rewound.
Id contents_of(const Id& volume, const BranchInfo& head);
Id contents_of(const Id& volume, Point point);

// The server's records of who owns which contents, as the manifest has them: for each, uuid, u32 length and that many bytes.
// Empty: none.
std::vector<std::byte> owners_of(std::span<const std::byte> records, const Id& contents);
// What a record of owners says: the uuid, and the rest is the server's.
std::vector<std::byte> owners_change(const Id& contents, std::span<const std::byte> record);
// With what it says. Contents that no branch has any more have no owners.
std::vector<std::byte> with_owners(std::span<const std::byte> records, std::span<const std::byte> change, const Id& volume,
                                   const Points& points);

}  // namespace netblk::store::volume
