// SPDX-License-Identifier: GPL-2.0-only
// Where a partition lies on a disk: MBR with its logical partitions, and GPT.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>

#include "base/result.h"

namespace netblk::store {

struct Partition {
  uint64_t offset_bytes = 0;
  uint64_t size_bytes = 0;
  bool operator==(const Partition&) const = default;
};

// Fills `into` with the disk's bytes at `offset`, inside the disk.
using ReadDisk = std::function<Status(uint64_t offset, std::span<std::byte> into)>;

// number: from 1, as the kernel counts them: 1 to 4 primary and from 5 logical in an MBR; the entry's number in a GPT.
// A table is read as bytes of a stranger: what it names lies inside the disk, or is refused. ENOENT: no such partition, or no
// table; ENOTBLK: it only holds others; EBADMSG: the table is damaged.
Result<Partition> find_partition(const ReadDisk& read, uint64_t disk_bytes, uint64_t number);

}  // namespace netblk::store
