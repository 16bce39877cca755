// SPDX-License-Identifier: GPL-2.0-only
#pragma once

#include <liburing.h>

#include <memory>
#include <string>

#include "io/loop.h"

namespace netblk::io {

// One ring, one thread. Submissions gather until the next poll(), and go to the kernel in one call with the wait.
class UringLoop final : public Loop {
 public:
  static Result<std::unique_ptr<UringLoop>> make(const Clock& clock);
  ~UringLoop() override;

  std::unique_ptr<Stream> make_stream(UniqueFd fd) override;
  std::unique_ptr<Listener> make_listener(UniqueFd fd) override;
  std::string description() const override;

  // IORING_RECVSEND_POLL_FIRST came with the same kernel (5.19) as the first of the set-up flags that we try.
  bool can_poll_first() const {
    return (setup_flags_ & (IORING_SETUP_COOP_TASKRUN | IORING_SETUP_DEFER_TASKRUN)) != 0;
  }

  // A submission entry that will complete `op`; never null. The caller fills it before anything else is started.
  // owner_count: as Op::begin() has it.
  io_uring_sqe& entry(Op& op, uint32_t* owner_count = nullptr);

 protected:
  void poll(int64_t timeout_ms) override;
  bool has_news() const override;
  void wake() override;
  void enter() override;
  void leave() override;

 private:
  explicit UringLoop(const Clock& clock);
  void reap();
  void submit();
  void arm_wake();

  io_uring ring_{};
  bool ring_made_ = false;
  unsigned setup_flags_ = 0;
  UniqueFd wake_fd_;
  uint64_t wake_count_ = 0;
  bool running_ = false;
  struct WakeOp;
  std::unique_ptr<WakeOp> wake_op_;
};

}  // namespace netblk::io
