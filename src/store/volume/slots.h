// SPDX-License-Identifier: GPL-2.0-only
// Slots: the two superblocks, written in turn, and the fence that keeps a stale writer away.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>

#include "base/result.h"
#include "coro/task.h"
#include "io/file.h"
#include "io/loop.h"
#include "store/volume/format.h"

namespace netblk::store::volume {

class Slots {
 public:
  explicit Slots(io::File& file) : file_(file) {}

  struct Found {
    std::optional<Superblock> newer, older;
    // Why there is none, or only one: what could not be read, rather than what is damaged.
    std::optional<Error> error;
  };
  // EPROTONOSUPPORT: one of them is of another version, or has an unknown feature.
  coro::Task<Result<Found>> read(io::Loop& loop);

  // Writes `next` with the sequence after the last and the present key slots, into the slot that the last one does not have. Not
  // durable. 0 or errno.
  coro::Task<int> write(io::Loop& loop, Superblock next);

  // Writes what can be read of both again, as it is: after a failed sync the system may have it in memory only, and take it for
  // written. 0 or errno.
  coro::Task<int> write_again(io::Loop& loop) const;

  // Before what this process wrote is called durable. 0; ESTALE: another writer has opened the volume since; or errno.
  coro::Task<int> look_for_another(io::Loop& loop) const;

  // The one that was written last, or that was chosen.
  Superblock current() const {
    const std::lock_guard lock(mutex_);
    return current_;
  }
  // Of the superblocks that are written from now on.
  void set_key_slots(const KeySlots& slots) {
    const std::lock_guard lock(mutex_);
    current_.key_slots = slots;
  }
  void choose(const Superblock& superblock) {
    const std::lock_guard lock(mutex_);
    current_ = superblock;
  }

 private:
  coro::Task<Result<Superblock>> read_slot(io::Loop& loop, unsigned slot) const;

  io::File& file_;
  mutable std::mutex mutex_;
  Superblock current_;
};

}  // namespace netblk::store::volume
