// SPDX-License-Identifier: GPL-2.0-only
// RequestTask: a coroutine that serves requests. It starts at once and frees itself at its end; what joins it are the requests
// (or waiters) that it ends, as the last thing that it does: nothing but its own frame may be touched after that.
#pragma once

#include <coroutine>
#include <exception>

namespace netblk::store::volume {

struct RequestTask {
  struct promise_type {
    RequestTask get_return_object() const { return {}; }
    std::suspend_never initial_suspend() const noexcept { return {}; }
    std::suspend_never final_suspend() const noexcept { return {}; }
    void return_void() const noexcept {}
    [[noreturn]] void unhandled_exception() const noexcept { std::terminate(); }
  };
};

}  // namespace netblk::store::volume
