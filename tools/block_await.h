// SPDX-License-Identifier: GPL-2.0-only
// co_await of one request to a Device.
#pragma once

#include <coroutine>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "block/device.h"
#include "coro/ready_queue.h"
#include "io/loop.h"

namespace netblk::tools {

// `const int error = co_await Asked(device, loop, command, offset, length, data);` on the thread of `loop`.
class [[nodiscard]] Asked : protected block::Request {
 public:
  Asked(block::Device& to, io::Loop& of, block::Command what, uint64_t at, uint64_t bytes, std::byte* buffer,
        bool keeps_allocated = false)
      : Request([](block::Request& self) { static_cast<Asked&>(self).ended(); }), device_(to) {
    loop = &of;
    command = what;
    offset = at;
    length = bytes;
    data = buffer;
    keep_allocated = keeps_allocated;
  }

  bool await_ready() {
    device_.submit(*this);
    return ended_;
  }
  void await_suspend(std::coroutine_handle<> waiter) { resume_.waiter = waiter; }
  int await_resume() const { return error; }

 private:
  struct Resume : coro::Runnable {
    Resume() : Runnable([](Runnable& self) { static_cast<Resume&>(self).waiter.resume(); }) {}
    std::coroutine_handle<> waiter;
  };

  // Perhaps from inside submit(): then nobody waits yet.
  void ended() {
    ended_ = true;
    if (resume_.waiter) coro::ReadyQueue::current().push(resume_);
  }

  block::Device& device_;
  bool ended_ = false;
  Resume resume_;
};

// The same for the status of a range; the extents are empty upon an error.
class [[nodiscard]] AskedStatus : public Asked {
 public:
  AskedStatus(block::Device& to, io::Loop& of, uint64_t at, uint64_t bytes, std::vector<block::Extent>& into, uint32_t most,
              const block::Base* compared_with = nullptr)
      : Asked(to, of, block::Command::kBlockStatus, at, bytes, nullptr) {
    extents = &into;
    max_extents = most;
    since = compared_with;
  }
};

}  // namespace netblk::tools
