// SPDX-License-Identifier: GPL-2.0-only
// Scope: where tasks run side by side. There is no detach: a scope that is destroyed before join() returned aborts.
#pragma once

#include <coroutine>
#include <cstddef>
#include <exception>
#include <utility>

#include "base/check.h"
#include "coro/ready_queue.h"
#include "coro/task.h"

namespace netblk::coro {

class Scope {
 public:
  Scope() = default;
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;
  ~Scope() { NETBLK_CHECK(running_ == 0, "a scope is destroyed with tasks in it: join() it first"); }

  // Starts the task now, up to its first suspension. May be called while the scope is being joined, by its own tasks.
  void spawn(Task<void> task) {
    ++running_;
    drive(*this, std::move(task));
  }

  // Resumes when every task has ended, those spawned meanwhile included. One joiner at a time.
  auto join() {
    struct Awaiter {
      Scope& scope;
      bool await_ready() const { return scope.running_ == 0; }
      void await_suspend(std::coroutine_handle<> joiner) const {
        NETBLK_CHECK(!scope.joiner_.handle, "a scope is joined twice at once");
        scope.joiner_.handle = joiner;
      }
      void await_resume() const {
        scope.joiner_.handle = nullptr;
        NETBLK_CHECK(scope.running_ == 0, "a scope's joiner was resumed early");
      }
    };
    return Awaiter{*this};
  }

  size_t running() const { return running_; }

 private:
  // The frame that owns a spawned task; it frees itself when the task has ended.
  struct Driver {
    struct promise_type {
      Driver get_return_object() const { return {}; }
      std::suspend_never initial_suspend() const noexcept { return {}; }
      std::suspend_never final_suspend() const noexcept { return {}; }
      void return_void() const noexcept {}
      [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
    };
  };

  static Driver drive(Scope& scope, Task<void> task) {
    co_await std::move(task);
    scope.ended();
  }

  void ended() {
    if (--running_ == 0 && joiner_.handle && !joiner_.queued) ReadyQueue::current().push(joiner_);
  }

  size_t running_ = 0;
  detail::Resumption joiner_;
};

}  // namespace netblk::coro
