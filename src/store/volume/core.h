// SPDX-License-Identifier: GPL-2.0-only
// Core: what the parts of an open volume share.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "block/device.h"
#include "coro/task.h"
#include "io/file.h"
#include "io/loop.h"
#include "store/volume/crypt.h"
#include "store/volume/format.h"
#include "store/volume/history.h"
#include "store/volume/index.h"
#include "store/volume/segments.h"
#include "store/volume/settings.h"
#include "store/volume/slots.h"
#include "store/volume/volume.h"

namespace netblk::store::volume {

// A branch that is open: what its devices and the log share.
struct Head {
  Head(uint32_t of, View read_by, uint64_t size, const Id& known_as = {})
      : branch(of), view(std::move(read_by)), size_bytes(size), contents(known_as) {}

  const uint32_t branch;
  const View view;                    // its rewinds wait until it is closed
  std::atomic<uint64_t> size_bytes;   // a change of what lies behind it is refused
  const Id contents;                  // what a client is told that it is; zero: nobody is told
};

struct Core {
  Core(std::unique_ptr<io::File> owned_file, const VolumeOptions& given, Environment& env, const Superblock& superblock,
       std::shared_ptr<Cipher> of_key, Segments segments_found)
      : options(given), environment(env), file(std::move(owned_file)), uuid(superblock.uuid),
        sums(superblock.uuid, superblock.encrypted()), cipher(std::move(of_key)), slots(*file),
        segments(std::move(segments_found)) {
    if (cipher != nullptr) metadata_cipher = std::make_unique<MetadataCipher>(cipher);
    slots.choose(superblock);
  }

  const VolumeOptions options;
  Environment& environment;
  const std::unique_ptr<io::File> file;
  const Id uuid;
  const Sums sums;
  const std::shared_ptr<Cipher> cipher;  // null: it is not encrypted
  std::unique_ptr<MetadataCipher> metadata_cipher;
  std::unique_ptr<Index> index;
  std::atomic<Compression> compression{Compression::kNone};  // of what is written from now on
  Slots slots;
  std::atomic<uint64_t> generation{0};  // that is told
  // That the next superblock has: a rewind moves it before any checkpoint has the rewind. It is told when that is durable.
  std::atomic<uint64_t> superblock_generation{0};

  // Guards what follows. Only the index's own mutex, a leaf, is taken under it; never held across a co_await.
  std::mutex mutex;
  Segments segments;
  LogPosition position;       // behind the last group that has been written
  bool align = true;          // the next record begins at a multiple of kBlockBytes
  std::atomic<uint64_t> log_bytes{0};  // since the last checkpoint; read without the mutex too
  std::optional<uint64_t> copies_segment;  // that the collector fills
  uint64_t durable_lsn = 0;   // the highest that is known to be
  bool takes_space_back = true;  // the file system, as far as is known
  uint64_t rewinds = 0;       // that the log has behind the manifest of the opening
  std::vector<std::byte> owners;
  History history;
  Settings settings;
  uint64_t history_from = kForever;  // as the points say
  Points::Freed freed = Points::Freed::kNothing;  // since the last freeze: the next merge looks for it

  // No write or sync is begun any more, and each change and flush ends with EIO.
  std::atomic<bool> poisoned{false};
  std::atomic<uint64_t> bad_blocks{0};
  std::atomic<uint64_t> looked_at_ms{0};  // for another writer
  std::atomic<int> checkpoint_error{0};  // of the last one; 0: it has been made

  std::atomic<uint64_t> collected_bytes{0};  // blocks that the collector has copied
  // While the collector falls behind, groups are begun later: by so much for each MiB of the log.
  std::atomic<uint64_t> pause_us_per_mib{0};

  // File space is to stay within so many hundredths of what is live. Under the mutex.
  uint64_t space_percent() const { return options.space_percent != 0 ? options.space_percent : settings.space_percent; }

  void poison(const std::string& why);
  // With the mutex held, as soon as anybody else has this.
  void use_settings(const std::vector<Setting>& list);
  // And what follows from them. In their order: none is older than those that are there.
  void set_points(Points points);

  // What a checkpoint in the background begins with.
  std::function<coro::Task<void>()> before_checkpoint;

  // What was written before is durable: Log::sync_file(). Nobody else syncs the file: the system tells an error of writing back
  // to one sync of a descriptor, and of two that overlap the other one succeeds.
  std::function<coro::Task<int>(io::Loop&)> sync_file;

  // Another process may have opened it for writing since, while this one stood still: it is poisoned then.
  coro::Task<void> look_for_another(io::Loop& loop);
  // To be asked before anything is written, and before a hole is made: the place may be another's by now. It looks when the last
  // look is some time ago. False: nothing is written any more.
  coro::Task<bool> may_write(io::Loop& loop);

  // A snapshot that a device is compared with, and that is kept for as long as somebody has this; null: there is none.
  std::function<std::shared_ptr<const block::Base>(std::string_view)> base_of;
  // Background::stir(): so much was changed that something may be freed when the volume rests. None: it is open for reading only.
  std::function<void()> stirred;
  // Background::make_room(): so many segments may be free now. False: no more can be freed.
  std::function<coro::Task<bool>(io::Loop&, uint64_t segments)> make_room;
};

}  // namespace netblk::store::volume
