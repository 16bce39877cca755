// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/transfer.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "base/endian.h"
#include "store/volume/format.h"

namespace netblk::store::volume {
namespace {

constexpr size_t kTo = 0, kFrom = kIdentityBytes, kSize = 2 * kIdentityBytes, kFromSize = kSize + 8, kToName = kFromSize + 8,
                 kFromName = kToName + kMaxNameBytes;
static_assert(kFromName + kMaxNameBytes == kTransferBytes);

bool all_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte each) { return each == std::byte{0}; });
}

// A text, and zeroes behind it.
std::optional<std::string> name_at(std::span<const std::byte> bytes) {
  const auto end = std::find(bytes.begin(), bytes.end(), std::byte{0});
  const auto length = static_cast<size_t>(end - bytes.begin());
  if (!all_zero(bytes.subspan(length))) return std::nullopt;
  return std::string(reinterpret_cast<const char*>(bytes.data()), length);
}

}  // namespace

void put_identity(const SnapshotIdentity& identity, std::span<std::byte, kIdentityBytes> into) {
  std::fill(into.begin(), into.end(), std::byte{0});
  std::memcpy(into.data(), identity.volume.bytes.data(), identity.volume.bytes.size());
  store_le(into.data() + 16, identity.branch);
  store_le(into.data() + 24, identity.lsn);
  store_le(into.data() + 32, identity.time_ns);
}

std::optional<SnapshotIdentity> get_identity(std::span<const std::byte, kIdentityBytes> from) {
  SnapshotIdentity identity;
  std::memcpy(identity.volume.bytes.data(), from.data(), identity.volume.bytes.size());
  identity.branch = load_le<uint32_t>(from.data() + 16);
  identity.lsn = load_le<uint64_t>(from.data() + 24);
  identity.time_ns = load_le<uint64_t>(from.data() + 32);
  if (!all_zero(from.subspan(20, 4))) return std::nullopt;
  if (identity.volume.is_zero() && identity != SnapshotIdentity{}) return std::nullopt;
  return identity;
}

void put_transfer(const Transfer& what, std::span<std::byte, kTransferBytes> into) {
  std::fill(into.begin(), into.end(), std::byte{0});
  put_identity(what.to, into.subspan<kTo, kIdentityBytes>());
  put_identity(what.from, into.subspan<kFrom, kIdentityBytes>());
  store_le(into.data() + kSize, what.size_bytes);
  store_le(into.data() + kFromSize, what.from_size_bytes);
  std::memcpy(into.data() + kToName, what.to_name.data(), what.to_name.size());
  std::memcpy(into.data() + kFromName, what.from_name.data(), what.from_name.size());
}

std::optional<Transfer> get_transfer(std::span<const std::byte, kTransferBytes> from) {
  Transfer what;
  const auto to_identity = get_identity(from.subspan<kTo, kIdentityBytes>());
  const auto from_identity = get_identity(from.subspan<kFrom, kIdentityBytes>());
  const auto to_name = name_at(from.subspan<kToName, kMaxNameBytes>());
  const auto from_name = name_at(from.subspan<kFromName, kMaxNameBytes>());
  if (!to_identity || !from_identity || !to_name || !from_name) return std::nullopt;
  what.to = *to_identity;
  what.from = *from_identity;
  what.to_name = *to_name;
  what.from_name = *from_name;
  what.size_bytes = load_le<uint64_t>(from.data() + kSize);
  what.from_size_bytes = load_le<uint64_t>(from.data() + kFromSize);
  if (what.to.volume.is_zero() || !is_name(what.to_name) || !is_disk_size(what.size_bytes)) return std::nullopt;
  if (what.is_whole() ? !what.from_name.empty() || what.from_size_bytes != 0
                      : !is_name(what.from_name) || what.from_name == what.to_name || !is_disk_size(what.from_size_bytes))
    return std::nullopt;
  return what;
}

}  // namespace netblk::store::volume
