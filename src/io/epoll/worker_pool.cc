// SPDX-License-Identifier: GPL-2.0-only
#include "io/epoll/worker_pool.h"

#include <signal.h>

#include "base/check.h"

namespace netblk::io {

WorkerPool::WorkerPool(unsigned threads) {
  NETBLK_CHECK(threads > 0, "a worker pool without threads");
  threads_.reserve(threads);
  // Signals belong to the process's own threads: one that a pool thread took would not be handled.
  sigset_t all, before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  for (unsigned i = 0; i < threads; ++i) threads_.emplace_back([this] { serve(); });
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

WorkerPool::~WorkerPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void WorkerPool::submit(Job& job) {
  {
    const std::lock_guard lock(mutex_);
    job.next = nullptr;
    (tail_ == nullptr ? head_ : tail_->next) = &job;
    tail_ = &job;
  }
  wake_.notify_one();
}

void WorkerPool::serve() {
  for (;;) {
    Job* job;
    {
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [this] { return head_ != nullptr || stopping_; });
      if (head_ == nullptr) return;
      job = head_;
      head_ = job->next;
      if (head_ == nullptr) tail_ = nullptr;
    }
    job->work(*job);
  }
}

}  // namespace netblk::io
