// SPDX-License-Identifier: GPL-2.0-only
// JobThread: rare work that waits for a disk, away from the loops. Jobs run one after another, in order; the thread is
// there only while there are any.
#pragma once

#include <deque>
#include <functional>
#include <mutex>
#include <thread>

namespace netblk::store {

class JobThread {
 public:
  JobThread() = default;
  JobThread(const JobThread&) = delete;
  JobThread& operator=(const JobThread&) = delete;
  ~JobThread() { finish(); }

  // Every job has run when it returns. Nobody calls run() meanwhile.
  void finish() {
    if (thread_.joinable()) thread_.join();
  }

  // Thread-safe.
  void run(std::function<void()> job) {
    const std::lock_guard lock(mutex_);
    jobs_.push_back(std::move(job));
    if (running_) return;
    running_ = true;
    // The last one has given up the lock for the last time, and ends.
    if (thread_.joinable()) thread_.join();
    thread_ = std::thread([this] { work(); });
  }

 private:
  void work() {
    for (;;) {
      std::function<void()> job;
      {
        const std::lock_guard lock(mutex_);
        if (jobs_.empty()) {
          running_ = false;
          return;
        }
        job = std::move(jobs_.front());
        jobs_.pop_front();
      }
      job();
    }
  }

  std::mutex mutex_;
  std::deque<std::function<void()>> jobs_;
  bool running_ = false;
  std::thread thread_;
};

}  // namespace netblk::store
