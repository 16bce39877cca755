// SPDX-License-Identifier: GPL-2.0-only
// Transfer: a snapshot on its way from one volume to another (docs/volume-stream.md).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "base/id.h"

namespace netblk::store::volume {

// Which contents a snapshot has, in whichever volume it is: the volume that it was taken in, and where and when there.
struct SnapshotIdentity {
  Id volume;  // zero: none
  uint32_t branch = 0;
  uint64_t lsn = 0;
  uint64_t time_ns = 0;
  bool operator==(const SnapshotIdentity&) const = default;
};

struct Transfer {
  SnapshotIdentity to;
  SnapshotIdentity from;  // none: the whole snapshot is sent
  std::string to_name;
  std::string from_name;
  uint64_t size_bytes = 0;
  uint64_t from_size_bytes = 0;

  bool is_whole() const { return from.volume.is_zero(); }
  bool operator==(const Transfer&) const = default;
};

// What the record of a receive says.
enum class ReceiveStep : uint32_t {
  kBegin = 1,   // the whole of Receiving
  kKeep = 2,    // its offset
  kEnd = 3,
  kGiveUp = 4,
};

// A transfer that a volume has received the first part of: the head is as it was at `base` until the rest has come.
struct Receiving {
  Transfer what;
  uint64_t base_lsn = 0;     // of a snapshot of the head's branch; 0: the empty disk
  uint64_t offset = 0;       // everything below is there
  bool operator==(const Receiving&) const = default;
};

inline constexpr size_t kTransferBytes = 224;
void put_transfer(const Transfer& what, std::span<std::byte, kTransferBytes> into);
// None: bytes that make no sense.
std::optional<Transfer> get_transfer(std::span<const std::byte, kTransferBytes> from);

inline constexpr size_t kIdentityBytes = 40;
void put_identity(const SnapshotIdentity& identity, std::span<std::byte, kIdentityBytes> into);
std::optional<SnapshotIdentity> get_identity(std::span<const std::byte, kIdentityBytes> from);

}  // namespace netblk::store::volume
