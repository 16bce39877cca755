// SPDX-License-Identifier: GPL-2.0-only
#include "io/uring/uring_loop.h"

#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "base/check.h"

namespace netblk::io {
namespace {

constexpr unsigned kEntries = 512;

struct SetupTry {
  unsigned flags;
  const char* text;
};

// Best first. A ring starts disabled where its only submitter is fixed: loops are made on one thread and run on
// another, and the submitter is the thread that enables it.
constexpr std::array kSetupTries = {
    SetupTry{IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
                 IORING_SETUP_R_DISABLED | IORING_SETUP_SUBMIT_ALL,
             "single_issuer, defer_taskrun"},
    SetupTry{IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL, "coop_taskrun"},
    SetupTry{0, "plain"},
};

}  // namespace

// The read of the wake-up eventfd that is always in flight while the loop runs.
struct UringLoop::WakeOp : Op {
  explicit WakeOp(UringLoop& owner)
      : Op([](Runnable& self) {
          UringLoop& woken = static_cast<WakeOp&>(self).loop;
          if (woken.running_) woken.arm_wake();
        }),
        loop(owner) {}
  UringLoop& loop;
};

UringLoop::UringLoop(const Clock& clock) : Loop(clock) {}

UringLoop::~UringLoop() {
  if (ring_made_) io_uring_queue_exit(&ring_);
}

Result<std::unique_ptr<UringLoop>> UringLoop::make(const Clock& clock) {
  std::unique_ptr<UringLoop> loop(new UringLoop(clock));
  int error = 0;
  for (const SetupTry& setup : kSetupTries) {
    io_uring_params params{};
    params.flags = setup.flags;
    error = io_uring_queue_init_params(kEntries, &loop->ring_, &params);
    if (error == 0) {
      loop->ring_made_ = true;
      loop->setup_flags_ = setup.flags;
      if ((params.features & IORING_FEAT_EXT_ARG) == 0 || (params.features & IORING_FEAT_NODROP) == 0)
        return make_error(ENOSYS, "io_uring of this kernel is too old (needs Linux 5.11)");
      break;
    }
  }
  if (error != 0) return make_error(-error, "io_uring is refused: {}", errno_text(-error));
  loop->wake_fd_ = UniqueFd(::eventfd(0, EFD_CLOEXEC));
  if (!loop->wake_fd_.valid()) return make_error(errno, "cannot make an eventfd: {}", errno_text(errno));
  loop->wake_op_ = std::make_unique<WakeOp>(*loop);
  return loop;
}

std::string UringLoop::description() const {
  for (const SetupTry& setup : kSetupTries)
    if ((setup.flags & ~IORING_SETUP_R_DISABLED) == (setup_flags_ & ~IORING_SETUP_R_DISABLED))
      return std::string("io_uring (") + setup.text + ")";
  return "io_uring";
}

io_uring_sqe& UringLoop::entry(Op& op, uint32_t* owner_count) {
  op.begin(owner_count);
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  while (sqe == nullptr) {
    submit();
    sqe = io_uring_get_sqe(&ring_);
  }
  io_uring_sqe_set_data(sqe, &op);
  return *sqe;
}

// A short submit is normal; EAGAIN and EBUSY pass once completions have been reaped.
void UringLoop::submit() {
  const int submitted = io_uring_submit(&ring_);
  NETBLK_CHECK(submitted >= 0 || submitted == -EAGAIN || submitted == -EBUSY || submitted == -EINTR,
               "io_uring refused a submission");
  reap();
}

void UringLoop::reap() {
  unsigned head;
  unsigned count = 0;
  io_uring_cqe* cqe;
  io_uring_for_each_cqe(&ring_, head, cqe) {
    ++count;
    auto* const op = static_cast<Op*>(io_uring_cqe_get_data(cqe));
    if (op == nullptr) continue;
    op->backend_flags = cqe->flags;
    op->complete(cqe->res);
  }
  io_uring_cq_advance(&ring_, count);
}

void UringLoop::poll(int64_t timeout_ms) {
  if (timeout_ms == 0) {
    const int submitted = io_uring_submit_and_get_events(&ring_);
    NETBLK_CHECK(submitted >= 0 || submitted == -EAGAIN || submitted == -EBUSY || submitted == -EINTR,
                 "io_uring refused a submission");
    reap();
    return;
  }
  io_uring_cqe* cqe = nullptr;
  int status;
  if (timeout_ms < 0) {
    status = io_uring_submit_and_wait(&ring_, 1);
  } else {
    __kernel_timespec time{timeout_ms / 1000, (timeout_ms % 1000) * 1'000'000};
    status = io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, &time, nullptr);
  }
  NETBLK_CHECK(status >= 0 || status == -ETIME || status == -EINTR || status == -EAGAIN || status == -EBUSY,
               "waiting on io_uring failed");
  reap();
}

// Completions, and what the kernel can make into some only when it is asked.
bool UringLoop::has_news() const {
  return io_uring_cq_ready(&ring_) != 0 ||
         (IO_URING_READ_ONCE(*ring_.sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) != 0;
}

void UringLoop::wake() {
  const uint64_t one = 1;
  const ssize_t written = ::write(wake_fd_.get(), &one, sizeof one);
  NETBLK_CHECK(written == sizeof one, "cannot write to the wake-up eventfd");
}

void UringLoop::arm_wake() {
  io_uring_prep_read(&entry(*wake_op_), wake_fd_.get(), &wake_count_, sizeof wake_count_, 0);
}

void UringLoop::enter() {
  if ((setup_flags_ & IORING_SETUP_R_DISABLED) != 0) {
    // Debian's liburing 2.3 declares io_uring_enable_rings() and does not export it.
    const long enabled = ::syscall(__NR_io_uring_register, ring_.ring_fd, IORING_REGISTER_ENABLE_RINGS, nullptr, 0);
    NETBLK_CHECK(enabled == 0, "cannot enable the io_uring");
    setup_flags_ &= ~IORING_SETUP_R_DISABLED;
  }
  running_ = true;
  arm_wake();
}

void UringLoop::leave() {
  // The wake-up read is the one operation that the loop itself has in flight: end it by what it waits for.
  running_ = false;
  wake();
  while (wake_op_->in_flight || wake_op_->queued) {
    poll(-1);
    coro::ReadyQueue::current().run_batch();
  }
}

}  // namespace netblk::io
