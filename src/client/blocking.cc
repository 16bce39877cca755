// SPDX-License-Identifier: GPL-2.0-only
#include "client/blocking.h"

#include <condition_variable>
#include <mutex>

#include "block/request.h"

namespace netblk::client {
namespace {

// The mailbox of a thread that has no loop: whoever posts runs the message, and the thread sleeps until it ran.
class Caller final : public coro::Mailbox, public block::Request {
 public:
  Caller() : Request([](block::Request& request) { static_cast<Caller&>(request).ended(); }) { loop = this; }

  void post(coro::Posted& message) override { message.run(message); }

  Status run(block::Device& on) {
    on.submit(*this);
    std::unique_lock lock(mutex_);
    condition_.wait(lock, [this] { return done_; });
    if (error == 0) return Ok{};
    return make_error(error, "{} of {} bytes at {}: {}", block::command_text(command), length, offset,
                      errno_text(error));
  }

 private:
  // Notified under the lock: the caller, and this with it, is gone as soon as it sees done_.
  void ended() {
    const std::lock_guard lock(mutex_);
    done_ = true;
    condition_.notify_one();
  }

  std::mutex mutex_;
  std::condition_variable condition_;
  bool done_ = false;
};

Status change(block::Device& device, block::Command command, uint64_t offset, uint64_t length, bool fua) {
  Caller caller;
  caller.command = command;
  caller.offset = offset;
  caller.length = length;
  caller.fua = fua;
  return caller.run(device);
}

}  // namespace

Status read(block::Device& device, uint64_t offset, std::span<std::byte> into) {
  Caller caller;
  caller.command = block::Command::kRead;
  caller.offset = offset;
  caller.length = into.size();
  caller.data = into.data();
  return caller.run(device);
}

Status write(block::Device& device, uint64_t offset, std::span<const std::byte> from, bool fua) {
  Caller caller;
  caller.command = block::Command::kWrite;
  caller.offset = offset;
  caller.length = from.size();
  caller.fua = fua;
  caller.data = const_cast<std::byte*>(from.data());  // a write only reads it
  return caller.run(device);
}

Status flush(block::Device& device) { return change(device, block::Command::kFlush, 0, 0, false); }

Status trim(block::Device& device, uint64_t offset, uint64_t length) {
  return change(device, block::Command::kTrim, offset, length, false);
}

Status write_zeroes(block::Device& device, uint64_t offset, uint64_t length, bool fua) {
  return change(device, block::Command::kWriteZeroes, offset, length, fua);
}

}  // namespace netblk::client
