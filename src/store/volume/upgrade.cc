// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/upgrade.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <utility>
#include <vector>

#include "store/volume/file_io.h"
#include "store/volume/format.h"

namespace netblk::store::volume {
namespace {

struct Slot {
  Superblock superblock;
  uint32_t version = 0;
};

// None: damaged. An error: it is no business of ours, or cannot be read.
coro::Task<Result<std::optional<Slot>>> read_slot(io::Loop& loop, io::File& file, unsigned number) {
  SuperblockBytes bytes;
  const int error = co_await read_bytes(loop, file, bytes, kSuperblockAt[number]);
  if (error != 0) co_return make_error(error, "cannot read superblock {}: {}", number, errno_text(error));
  const uint32_t version = version_of_superblock(bytes);
  const bool is_old = version >= kOldestVersion && version < kFormatVersion;
  Result<Superblock> superblock = decode_superblock(bytes, is_old ? version : kFormatVersion);
  if (!superblock.ok() && superblock.error().code == EPROTONOSUPPORT) co_return superblock.error();
  if (!superblock.ok() || superblock.value().sequence % 2 != number) co_return std::optional<Slot>();
  co_return std::optional<Slot>(Slot{std::move(superblock).value(), version});
}

// Of versions that have no other manifest than the present one.
coro::Task<bool> leads_to_a_volume(io::Loop& loop, io::File& file, const Superblock& superblock) {
  const Sums sums(superblock.uuid);
  std::vector<std::byte> bytes(superblock.manifest_bytes);
  int error = co_await read_bytes(loop, file, bytes, superblock.manifest_offset);
  if (error != 0 || sums.volume(bytes) != superblock.manifest_crc) co_return false;
  const Result<Manifest> manifest = decode_manifest(bytes);
  if (!manifest.ok()) co_return false;
  const IndexRoot& root = manifest.value().index;
  if (root.offset == 0) co_return true;
  std::array<std::byte, kPageBytes> page;
  error = co_await read_bytes(loop, file, page, root.offset);
  if (error != 0) co_return false;
  const auto header = check_page(root.offset, sums, page);
  co_return header && header->crc == root.crc;
}

}  // namespace

coro::Task<Result<uint32_t>> upgrade_volume(io::Loop& loop, io::File& file) {
  std::vector<Slot> slots;  // the newer first
  for (unsigned number = 0; number < 2; ++number) {
    auto slot = co_await read_slot(loop, file, number);
    if (!slot.ok()) co_return slot.error();
    if (slot.value()) slots.push_back(*slot.value());
  }
  if (slots.empty()) co_return make_error(EBADMSG, "neither of its superblocks is whole");
  if (slots.size() == 2 && slots[0].superblock.sequence < slots[1].superblock.sequence) std::swap(slots[0], slots[1]);
  uint32_t oldest = kFormatVersion;
  for (const Slot& slot : slots) oldest = std::min(oldest, slot.version);
  if (oldest == kFormatVersion) co_return kFormatVersion;
  const Superblock* chosen = nullptr;
  for (const Slot& slot : slots) {
    const bool is_whole = co_await leads_to_a_volume(loop, file, slot.superblock);
    if (is_whole) {
      chosen = &slot.superblock;
      break;
    }
  }
  if (chosen == nullptr) co_return make_error(EBADMSG, "neither of its superblocks leads to a whole manifest");
  // What it leads to is as it was. The other slot first: until that is durable, the chosen one stays.
  Superblock next = *chosen;
  next.sequence = slots[0].superblock.sequence + 1;
  if (next.sequence % 2 == chosen->sequence % 2) ++next.sequence;
  int32_t synced = co_await datasync(loop, file);
  int error = -synced;
  for (int i = 0; i < 2 && error == 0; ++i, ++next.sequence) {
    const SuperblockBytes bytes = encode(next);
    error = co_await write_bytes(loop, file, bytes, kSuperblockAt[next.sequence % 2]);
    if (error != 0) break;
    synced = co_await datasync(loop, file);
    error = -synced;
  }
  if (error != 0) co_return make_error(error, "its superblocks cannot be written: {}; try again", errno_text(error));
  co_return oldest;
}

}  // namespace netblk::store::volume
