// SPDX-License-Identifier: GPL-2.0-only
// Task<T>: a lazy coroutine that one other coroutine awaits, once.
//
// No symmetric transfer: g++ 12 makes it a tail call only at -O2, and at -O0, -O1 or under a sanitizer a chain of
// inline completions overflows the stack. Awaiting runs the child inside await_ready(): a child that finishes at once
// returns there and nothing is suspended; one that suspends resumes its parent later through the ready queue.
#pragma once

#include <coroutine>
#include <exception>
#include <optional>
#include <utility>

#include "base/check.h"
#include "coro/ready_queue.h"

namespace netblk::coro {

template <class T = void>
class Task;

namespace detail {

// A queue node that resumes a coroutine.
struct Resumption : Runnable {
  Resumption() : Runnable([](Runnable& self) { static_cast<Resumption&>(self).handle.resume(); }) {}
  std::coroutine_handle<> handle;
};

struct PromiseBase {
  struct FinalAwaiter {
    bool await_ready() const noexcept { return false; }
    template <class Promise>
    void await_suspend(std::coroutine_handle<Promise> self) const noexcept {
      Resumption& parent = self.promise().parent;
      if (parent.handle) ReadyQueue::current().push(parent);
    }
    void await_resume() const noexcept {}
  };

  std::suspend_always initial_suspend() const noexcept { return {}; }
  FinalAwaiter final_suspend() const noexcept { return {}; }
  // Errors are values here: an exception that reaches a task's edge is a programmer error.
  [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }

  Resumption parent;  // handle is null until the parent suspends
  bool started = false;
};

template <class T>
struct Promise : PromiseBase {
  Task<T> get_return_object();
  template <class U>
  void return_value(U&& value) {
    result.emplace(std::forward<U>(value));
  }
  T take() { return std::move(*result); }
  std::optional<T> result;
};

template <>
struct Promise<void> : PromiseBase {
  Task<void> get_return_object();
  void return_void() const noexcept {}
  void take() const noexcept {}
};

}  // namespace detail

template <class T>
class [[nodiscard("a task does nothing until it is awaited or spawned in a Scope")]] Task {
 public:
  using promise_type = detail::Promise<T>;

  explicit Task(std::coroutine_handle<promise_type> handle) : handle_(handle) {}
  Task(Task&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Task& operator=(Task&&) = delete;
  ~Task() {
    if (!handle_) return;
    // A frame that an operation still points into must not go away.
    NETBLK_CHECK(!handle_.promise().started || handle_.done(), "a task is destroyed while it runs");
    handle_.destroy();
  }

  auto operator co_await() && {
    struct Awaiter {
      std::coroutine_handle<promise_type> child;
      bool await_ready() const {
        NETBLK_CHECK(child && !child.promise().started, "a task is awaited twice");
        child.promise().started = true;
        child.resume();
        return child.done();
      }
      void await_suspend(std::coroutine_handle<> parent) const { child.promise().parent.handle = parent; }
      T await_resume() const { return child.promise().take(); }
    };
    return Awaiter{handle_};
  }

 private:
  std::coroutine_handle<promise_type> handle_;
};

namespace detail {

template <class T>
Task<T> Promise<T>::get_return_object() {
  return Task<T>(std::coroutine_handle<Promise<T>>::from_promise(*this));
}

inline Task<void> Promise<void>::get_return_object() {
  return Task<void>(std::coroutine_handle<Promise<void>>::from_promise(*this));
}

}  // namespace detail
}  // namespace netblk::coro
