// SPDX-License-Identifier: GPL-2.0-only
// GroupSync: group commit. Requests that must be durable share one fdatasync of their store; one that fails poisons
// the store for good (DESIGN law 2).
#pragma once

#include <atomic>
#include <functional>
#include <mutex>

#include "block/request.h"
#include "io/file.h"
#include "io/loop.h"

namespace netblk::store {

// Thread-safe. A request joins on the thread of its loop, after its own writes have ended, with its completion in
// request.held. It is finished there when a sync that began after it joined has ended: 0, or EIO.
// Lock order: mutex_ is a leaf; nothing is called under it.
class GroupSync {
 public:
  // Told once, on a loop's thread, when a sync has failed, before anybody else is: `go_on` is then to be called, on any
  // thread, once that is written down.
  using OnFailure = std::function<void(std::function<void()> go_on)>;

  // `file` outlives this object. on_failure: may be empty.
  explicit GroupSync(io::File& file, OnFailure on_failure = nullptr);

  void join(block::Request& request);

  // True after a failed sync. The kernel marks the pages of a failed sync clean, so that a later sync says nothing
  // about them: every later join is answered EIO until the store is opened anew.
  bool poisoned() const { return poisoned_.load(std::memory_order_acquire); }

  // Syncs that were started, for tests and statistics.
  uint64_t syncs() const { return syncs_.load(std::memory_order_relaxed); }

 private:
  struct Kick : io::Posted {
    explicit Kick(GroupSync& owner);
    GroupSync& sync;
  };
  struct SyncOp : io::Op {
    explicit SyncOp(GroupSync& owner);
    GroupSync& sync;
  };
  struct Noted : io::Posted {
    explicit Noted(GroupSync& owner);
    GroupSync& sync;
  };
  void start(io::Loop& loop);
  void ended(int32_t result);
  void answer();

  io::File& file_;
  const OnFailure on_failure_;
  std::mutex mutex_;
  block::Request* waiting_ = nullptr;  // joined since the running sync began; newest first
  bool scheduled_ = false;             // a sync is queued on some loop, or runs
  block::Request* running_ = nullptr;  // those that the running sync answers; its loop's thread only
  io::Loop* sync_loop_ = nullptr;      // of the sync that is scheduled; set by the one who scheduled it
  Kick kick_;
  SyncOp op_;
  Noted noted_;
  std::atomic<bool> poisoned_{false};
  std::atomic<uint64_t> syncs_{0};
};

}  // namespace netblk::store
