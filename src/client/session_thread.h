// SPDX-License-Identifier: GPL-2.0-only
// SessionThread: a thread with a loop that runs a client's session from its open() to its close().
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "base/id.h"
#include "base/result.h"
#include "coro/event.h"
#include "coro/task.h"
#include "io/dialer.h"
#include "io/loop.h"

namespace netblk::client {

inline uint64_t kernel_random() {
  const Id id = random_id();
  uint64_t value = 0;
  for (size_t i = 0; i < sizeof value; ++i) value = value << 8 | id.bytes[i];
  return value;
}

template <class Session>
class SessionThread {
 public:
  SessionThread(std::unique_ptr<io::Loop> loop, std::unique_ptr<io::Dialer> dialer)
      : loop_(std::move(loop)), dialer_(std::move(dialer)), stop_(*this) {}

  io::Loop& loop() { return *loop_; }
  io::Dialer& dialer() { return *dialer_; }

  // Once. Returns when session.open() has ended, with its outcome; an error ends the thread.
  Status open(Session& session) {
    thread_ = std::thread([this, with = &session] { loop_->run(main(*with)); });
    {
      std::unique_lock lock(mutex_);
      told_.wait(lock, [this] { return outcome_.has_value(); });
    }
    if (!outcome_->ok()) thread_.join();
    return *outcome_;
  }
  // After a successful open(): session.close(), then the thread ends.
  void close() {
    loop_->post(stop_);
    thread_.join();
  }

 private:
  struct Stop : io::Posted {
    explicit Stop(SessionThread& of)
        : Posted([](coro::Runnable& self) { static_cast<Stop&>(self).thread.wanted_.set(); }), thread(of) {}
    SessionThread& thread;
  };

  coro::Task<void> main(Session& session) {
    auto opened = co_await session.open();
    const bool ok = opened.ok();
    {
      const std::lock_guard lock(mutex_);
      outcome_.emplace(std::move(opened));
      told_.notify_all();
    }
    if (!ok) co_return;
    co_await wanted_.wait();
    co_await session.close();
  }

  std::unique_ptr<io::Loop> loop_;
  std::unique_ptr<io::Dialer> dialer_;
  std::thread thread_;
  coro::Event wanted_;
  Stop stop_;
  std::mutex mutex_;
  std::condition_variable told_;
  std::optional<Status> outcome_;
};

}  // namespace netblk::client
