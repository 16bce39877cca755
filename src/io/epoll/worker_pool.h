// SPDX-License-Identifier: GPL-2.0-only
#pragma once

#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

namespace netblk::io {

// A blocking call to make on a pool thread. `work` runs there; what happens after is the job's own affair (it posts
// its result to a loop).
struct Job {
  using Work = void (*)(Job&);
  explicit Job(Work work_function) : work(work_function) {}
  Work work;
  Job* next = nullptr;
};

// First in, first out. The destructor finishes what is queued and joins the threads.
class WorkerPool {
 public:
  explicit WorkerPool(unsigned threads);
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;
  ~WorkerPool();

  // Thread-safe. The job lives until it ran.
  void submit(Job& job);

 private:
  void serve();

  std::mutex mutex_;
  std::condition_variable wake_;
  Job* head_ = nullptr;
  Job* tail_ = nullptr;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace netblk::io
