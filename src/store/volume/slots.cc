// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/slots.h"

#include <array>
#include <cerrno>
#include <utility>

#include "store/volume/file_io.h"

namespace netblk::store::volume {

coro::Task<Result<Superblock>> Slots::read_slot(io::Loop& loop, unsigned slot) const {
  SuperblockBytes bytes;
  const int error = co_await read_bytes(loop, file_, bytes, kSuperblockAt[slot]);
  if (error != 0) co_return make_error(error, "cannot read superblock {}: {}", slot, errno_text(error));
  Result<Superblock> superblock = decode_superblock(bytes);
  if (superblock.ok() && superblock.value().sequence % 2 != slot)
    co_return make_error(EBADMSG, "superblock {} has the sequence of the other one", slot);
  co_return superblock;
}

coro::Task<Result<Slots::Found>> Slots::read(io::Loop& loop) {
  Found found;
  for (unsigned slot = 0; slot < 2; ++slot) {
    Result<Superblock> superblock = co_await read_slot(loop, slot);
    if (!superblock) {
      if (superblock.error().code == EPROTONOSUPPORT) co_return std::move(superblock).error();
      // What the other one is for: whichever is older, it leads to a whole volume.
      if (!found.error || found.error->code == EBADMSG) found.error = std::move(superblock).error();
      continue;
    }
    if (!found.newer || superblock.value().sequence > found.newer->sequence) std::swap(found.newer, found.older);
    (found.newer ? found.older : found.newer) = std::move(superblock).value();
  }
  co_return found;
}

coro::Task<int> Slots::write(io::Loop& loop, Superblock next) {
  const Superblock last = current();
  next.sequence = last.sequence + 1;
  next.key_slots = last.key_slots;
  const SuperblockBytes bytes = encode(next);
  const int error = co_await write_bytes(loop, file_, bytes, kSuperblockAt[next.sequence % 2]);
  if (error == 0) choose(next);
  co_return error;
}

coro::Task<int> Slots::write_again(io::Loop& loop) const {
  for (unsigned slot = 0; slot < 2; ++slot) {
    SuperblockBytes bytes;
    int error = co_await read_bytes(loop, file_, bytes, kSuperblockAt[slot]);
    // The one that was chosen could be read; the other one is written next.
    if (error != 0 || !decode_superblock(bytes).ok()) continue;
    error = co_await write_bytes(loop, file_, bytes, kSuperblockAt[slot]);
    if (error != 0) co_return error;
  }
  co_return 0;
}

coro::Task<int> Slots::look_for_another(io::Loop& loop) const {
  const Superblock own = current();
  for (unsigned slot = 0; slot < 2; ++slot) {
    SuperblockBytes bytes;
    const int error = co_await read_bytes(loop, file_, bytes, kSuperblockAt[slot]);
    if (error != 0) co_return error;
    const Result<Superblock> superblock = decode_superblock(bytes);
    // A damaged one is not a writer's: it is found at the next opening.
    if (superblock.ok() && superblock.value().incarnation != own.incarnation && superblock.value().sequence > own.sequence)
      co_return ESTALE;
  }
  co_return 0;
}

}  // namespace netblk::store::volume
