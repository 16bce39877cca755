// SPDX-License-Identifier: GPL-2.0-only
// HomeLock: a store that one thread alone serves needs no locks. A locked instruction waits until everything that was
// stored before has left the processor, so around a copy it costs more than it looks like.
#pragma once

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>

namespace netblk::store {

// The first thread that comes is at home, and works without a lock until another one comes; from then on, for good, all
// use the store's locks. Whoever comes second makes the one at home look (membarrier: what would cost the one at home a
// fence in each request costs the other a system call once), and waits until it has left.
class HomeLock {
 public:
  HomeLock() {
    if (::syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) != 0) shared_ = true;
  }
  HomeLock(const HomeLock&) = delete;
  HomeLock& operator=(const HomeLock&) = delete;

  // True: the store is the caller's alone until leave(). False: it takes the store's locks.
  bool enter() {
    if (shared_.load(std::memory_order_acquire)) return false;
    if (home_.load(std::memory_order_relaxed) != this_thread() && !settle()) return false;
    inside_.store(true, std::memory_order_relaxed);
    // Only the compiler is kept from moving what follows: the membarrier of the other one keeps the processor.
    std::atomic_signal_fence(std::memory_order_seq_cst);
    if (!visited_.load(std::memory_order_relaxed)) return true;
    leave();
    return false;
  }
  void leave() { inside_.store(false, std::memory_order_release); }

 private:
  static const void* this_thread() {
    static thread_local const char here = 0;
    return &here;
  }

  // True: nobody was here before.
  bool settle() {
    const std::lock_guard lock(mutex_);
    if (shared_.load(std::memory_order_relaxed)) return false;
    const void* nobody = nullptr;
    if (home_.compare_exchange_strong(nobody, this_thread())) return true;
    visited_.store(true, std::memory_order_seq_cst);
    ::syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0);
    while (inside_.load(std::memory_order_acquire)) std::this_thread::yield();
    shared_.store(true, std::memory_order_release);
    return false;
  }

  std::atomic<bool> shared_{false};   // the locks are in use
  std::atomic<bool> visited_{false};  // the one at home must use them: another one waits, or has waited
  std::atomic<bool> inside_{false};
  std::atomic<const void*> home_{nullptr};
  std::mutex mutex_;  // of those who come
};

}  // namespace netblk::store
