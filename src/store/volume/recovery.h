// SPDX-License-Identifier: GPL-2.0-only
// Recovery: which superblock leads to the volume, and what the log behind its manifest adds (docs/volume-format.md,
// "Recovery"). It writes nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "coro/task.h"
#include "io/loop.h"
#include "store/volume/core.h"

namespace netblk::store::volume {

struct Start {
  Superblock superblock;
  Manifest manifest;
  std::shared_ptr<Cipher> cipher;  // of an encrypted one
  bool by_other = false;  // the newer superblock, or what it leads to, is of no use
  bool forgets = false;   // and an opening began with that one: nothing of its log is found by this one
};
// Steps 1 and 2. EBADMSG: there is no way to a volume; EPROTONOSUPPORT; EIO; ENOKEY, EKEYREJECTED.
coro::Task<Result<Start>> find_start(io::Loop& loop, io::File& file, const UserKey* key);

struct Replayed {
  // Bytes of the file.
  struct Stretch {
    uint64_t offset = 0;
    uint64_t end = 0;
    uint64_t last_lsn = 0;
  };
  uint64_t records = 0;
  std::vector<Stretch> not_durable;  // records that no later one says to be
  uint64_t rewinds = 0;  // among them: their generations may be in no superblock
  bool cut = false;    // something behind the end was written by the same opening
  std::string damage;  // the log goes on, and cannot be read on: nothing may be cut
};
// Steps 3 and 4, into the core, whose position is the manifest's: index, segments, points, owners and position.
coro::Task<Replayed> replay(io::Loop& loop, Core& core, bool was_open);

// Writes them again as they are: after a failed sync the system has them in memory only, and takes them for written.
coro::Task<int> write_again(io::Loop& loop, Core& core, const std::vector<Replayed::Stretch>& stretches);

}  // namespace netblk::store::volume
