// SPDX-License-Identifier: GPL-2.0-only
// Identity: what a store remembers of itself (DESIGN 4.2, "Generation"): its uuid, the counter that moves whenever
// writes that were answered may be gone, and who owns it.
//
// Two records keep it. The durable one is never newer than what it promises: `clean` is cleared before the first write
// is answered, and set only after the last one is on the disk. The volatile one says that the page cache, which outlives
// the process but not the machine, is still the one that took the writes.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "block/device.h"
#include "store/medium.h"
#include "store/record.h"

namespace netblk::store {

struct IdentityOptions {
  std::string store;         // the path that messages name
  std::string record_path;   // of the durable record
  // Where the volatile record may be; the first one that can be written counts. None: it is not kept.
  std::vector<std::string> run_folders;
  std::string boot_id;       // of this start of the machine
  bool read_only = false;    // nothing is written down
  // The records must be kept, or the store is not opened: a person named the folder. Else the store goes on with an
  // identity of this process, and says what that costs.
  bool must_keep = false;
};

// The boot id of this machine, and the folders where a volatile record may be, the best first.
std::string this_boot_id();
std::vector<std::string> usual_run_folders();

// Every function may block on the disk but those that say otherwise; all are thread-safe. Lock order: mutex_ is held
// across input and output, and nothing that takes another lock is called under it.
class Identity {
 public:
  // Reads the records and decides; writes nothing, so that the store may be grown between this and start().
  // `brand_new`: the store was made, empty, by this opening: a record that lies there is another's.
  static Result<std::unique_ptr<Identity>> open(IdentityOptions options, std::unique_ptr<Medium> medium, bool brand_new);
  Identity(const Identity&) = delete;
  Identity& operator=(const Identity&) = delete;

  // Writes down what open() decided: before the first client is heard.
  Status start();

  // Never blocks.
  block::Generation generation() const { return {uuid_, counter_.load(std::memory_order_acquire)}; }
  // True when begin_writes() has nothing to do. Never blocks.
  bool writes_begun() const { return writes_begun_.load(std::memory_order_acquire); }

  // Clears `clean`, durably: before the first write is answered. An error: no write may be.
  Status begin_writes();
  // A sync has failed: before anybody is told.
  void sync_failed();
  // The store was resized by its owner, not behind its back.
  void resized();

  std::vector<std::byte> owners() const;
  Status keep_owners(std::vector<std::byte> owners);

  // The end: everything is synced, and the record says so. Nothing is written to the store afterwards.
  void close();

 private:
  Identity(IdentityOptions options, std::unique_ptr<Medium> medium, const Medium::Seen& seen);

  Status decide(bool brand_new);
  std::string why_moved();
  bool same_store_as_closed() const;
  std::string why_cache_is_lost();
  void take_new_uuid();
  void live_without_record(const Error& cause);
  Status save(StoreRecord record);
  Status save_run(bool healthy);
  void sweep_run_folder() const;
  std::string run_path() const;
  void move_after_failed_sync(int error);

  const IdentityOptions options_;
  const std::unique_ptr<Medium> medium_;
  Medium::Seen seen_;  // at open()
  Id uuid_;            // constant after start()
  std::atomic<uint64_t> counter_{1};
  std::atomic<bool> writes_begun_{false};

  mutable std::mutex mutex_;
  StoreRecord record_;  // as it is on the disk, or will be after start()
  std::string run_folder_;
  bool keeps_records_ = false;
  bool healthy_ = true;
  bool closed_ = false;
};

}  // namespace netblk::store
