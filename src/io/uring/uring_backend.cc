// SPDX-License-Identifier: GPL-2.0-only
#include "io/uring/uring_backend.h"

#include <liburing.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>

#include "base/check.h"
#include "io/socket.h"
#include "io/socket_stream.h"
#include "io/uring/uring_loop.h"

namespace netblk::io {
namespace {

struct Needed {
  int opcode;
  const char* name;
};

constexpr std::array kNeeded = {
    Needed{IORING_OP_RECV, "recv"},     Needed{IORING_OP_SENDMSG, "sendmsg"}, Needed{IORING_OP_POLL_ADD, "poll"},
    Needed{IORING_OP_READ, "read"},     Needed{IORING_OP_WRITE, "write"},     Needed{IORING_OP_FSYNC, "fsync"},
    Needed{IORING_OP_READV, "readv"},   Needed{IORING_OP_WRITEV, "writev"},   Needed{IORING_OP_FALLOCATE, "fallocate"},
};

class UringStream final : public SocketStream {
 public:
  UringStream(UringLoop& loop, UniqueFd fd) : SocketStream(std::move(fd)), loop_(loop) {}
  ~UringStream() override { NETBLK_CHECK(in_flight_ == 0, "a stream is destroyed in use"); }

  bool recv(Op& op, std::span<std::byte> into) override {
    io_uring_sqe& sqe = loop_.entry(op, &in_flight_);
    io_uring_prep_recv(&sqe, socket(), into.data(), into.size(), 0);
    // A connection with one request in flight never has data here: ask the kernel to wait first instead of trying.
    if (loop_.can_poll_first()) sqe.ioprio = IORING_RECVSEND_POLL_FIRST;
    return false;
  }

  bool readable(Op& op) override {
    io_uring_prep_poll_add(&loop_.entry(op, &in_flight_), socket(), POLLIN);
    return false;
  }

  bool send(Op& op, std::span<const iovec> parts) override {
    const int32_t sent = io::send_now(socket(), parts);
    if (sent != -EAGAIN) return op.finish_now(sent);
    message_ = gathered(parts);
    io_uring_prep_sendmsg(&loop_.entry(op, &in_flight_), socket(), &message_, MSG_NOSIGNAL);
    return false;
  }

 private:
  UringLoop& loop_;
  msghdr message_{};  // of the send in flight
  uint32_t in_flight_ = 0;
};

// An accept in flight would keep the listening socket, and its port, alive until the ring of a killed process has been
// taken down, some time after the process. So the ring waits on an epoll descriptor, which holds no reference to the
// socket that it watches.
class UringListener final : public Listener {
 public:
  UringListener(UringLoop& loop, UniqueFd fd)
      : loop_(loop), fd_(std::move(fd)), epoll_(::epoll_create1(EPOLL_CLOEXEC)), stop_(::eventfd(0, EFD_CLOEXEC)),
        waiting_(*this) {
    epoll_event event{.events = EPOLLIN, .data = {.ptr = nullptr}};
    NETBLK_CHECK(epoll_.valid() && stop_.valid() && ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd_.get(), &event) == 0 &&
                     ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, stop_.get(), &event) == 0,
                 "cannot watch a listening socket");
  }

  ~UringListener() override { NETBLK_CHECK(accept_ == nullptr, "a listener is destroyed in use"); }

  bool accept(Op& op) override {
    NETBLK_CHECK(accept_ == nullptr, "two accepts on one listener");
    if (stopped_) return op.finish_now(-ECANCELED);
    op.begin();
    accept_ = &op;
    wait();
    return false;
  }
  void shutdown() override {
    stopped_ = true;
    const uint64_t one = 1;
    (void)!::write(stop_.get(), &one, sizeof one);
  }

 private:
  struct Waiting : Op {
    explicit Waiting(UringListener& owner)
        : Op([](Runnable& self) { static_cast<Waiting&>(self).listener.ready(); }), listener(owner) {}
    UringListener& listener;
  };

  void wait() { io_uring_prep_poll_add(&loop_.entry(waiting_), epoll_.get(), POLLIN); }
  void ready() {
    int result = -ECANCELED;
    if (!stopped_) {
      const int fd = ::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC);
      if (fd < 0 && (errno == EAGAIN || errno == EINTR)) return wait();
      result = fd >= 0 ? fd : -errno;
    }
    std::exchange(accept_, nullptr)->complete(result);
  }

  UringLoop& loop_;
  UniqueFd fd_;
  UniqueFd epoll_;
  UniqueFd stop_;
  bool stopped_ = false;
  Op* accept_ = nullptr;
  Waiting waiting_;
};

UringLoop& ring_of(Loop& loop) { return static_cast<UringLoop&>(loop); }

// Every loop of a process comes from one Backend, so a loop that is handed in here is a ring.
class UringFile final : public File {
 public:
  UringFile(UniqueFd fd, bool direct) : fd_(std::move(fd)), direct_(direct), in_memory_(is_in_memory(fd_.get())) {}

  bool read(Loop& loop, Op& op, std::span<std::byte> into, uint64_t offset) override {
    if (!direct_) {
      const int32_t got = read_now(fd_.get(), into, offset, in_memory_);
      if (got != -EAGAIN) return op.finish_now(got);
    }
    io_uring_prep_read(&ring_of(loop).entry(op), fd_.get(), into.data(), static_cast<unsigned>(into.size()), offset);
    return false;
  }

  bool write(Loop& loop, Op& op, std::span<const std::byte> from, uint64_t offset) override {
    if (!direct_ && from.size() <= kInlineWriteBytes) return op.finish_now(write_now(fd_.get(), from, offset));
    io_uring_prep_write(&ring_of(loop).entry(op), fd_.get(), from.data(), static_cast<unsigned>(from.size()), offset);
    return false;
  }

  bool read_vector(Loop& loop, Op& op, std::span<const iovec> into, uint64_t offset) override {
    if (!direct_) {
      const int32_t got = read_vector_now(fd_.get(), into, offset, in_memory_);
      if (got != -EAGAIN) return op.finish_now(got);
    }
    io_uring_prep_readv(&ring_of(loop).entry(op), fd_.get(), into.data(), static_cast<unsigned>(into.size()), offset);
    return false;
  }

  bool write_vector(Loop& loop, Op& op, std::span<const iovec> from, uint64_t offset) override {
    if (!direct_ && total_bytes(from) <= kInlineWriteBytes)
      return op.finish_now(write_vector_now(fd_.get(), from, offset));
    io_uring_prep_writev(&ring_of(loop).entry(op), fd_.get(), from.data(), static_cast<unsigned>(from.size()), offset);
    return false;
  }

  bool datasync(Loop& loop, Op& op) override {
    io_uring_prep_fsync(&ring_of(loop).entry(op), fd_.get(), IORING_FSYNC_DATASYNC);
    return false;
  }

  bool punch_hole(Loop& loop, Op& op, uint64_t offset, uint64_t length) override {
    return fallocate(loop, op, kPunchHoleMode, offset, length);
  }
  bool zero_range(Loop& loop, Op& op, uint64_t offset, uint64_t length) override {
    return fallocate(loop, op, kZeroRangeMode, offset, length);
  }
  bool allocate(Loop& loop, Op& op, uint64_t offset, uint64_t length) override {
    return fallocate(loop, op, kAllocateMode, offset, length);
  }

 private:
  bool fallocate(Loop& loop, Op& op, int mode, uint64_t offset, uint64_t length) {
    // The 2.3 wrapper takes off_t on every target; both are 64 bits here.
    io_uring_prep_fallocate(&ring_of(loop).entry(op), fd_.get(), mode, static_cast<off_t>(offset),
                            static_cast<off_t>(length));
    return false;
  }

  UniqueFd fd_;
  bool direct_;
  bool in_memory_;
};

class UringBackend final : public Backend {
 public:
  std::string_view name() const override { return "io_uring"; }
  Result<std::unique_ptr<Loop>> make_loop(const Clock& clock) override {
    auto made = UringLoop::make(clock);
    if (!made) return std::move(made).error();
    return std::unique_ptr<Loop>(std::move(made).value());
  }
  std::unique_ptr<File> make_file(UniqueFd fd, bool direct) override {
    return std::make_unique<UringFile>(std::move(fd), direct);
  }
};

}  // namespace

std::unique_ptr<Stream> UringLoop::make_stream(UniqueFd fd) {
  // The ring waits for a blocking descriptor; for a non-blocking one it completes with EAGAIN.
  set_nonblocking(fd.get(), false);
  return std::make_unique<UringStream>(*this, std::move(fd));
}

std::unique_ptr<Listener> UringLoop::make_listener(UniqueFd fd) {
  set_nonblocking(fd.get(), true);
  return std::make_unique<UringListener>(*this, std::move(fd));
}

Result<std::unique_ptr<Backend>> make_uring_backend() {
  const SteadyClock clock;
  auto trial = UringLoop::make(clock);
  if (!trial) return std::move(trial).error();
  io_uring_probe* const probe = io_uring_get_probe();
  if (probe == nullptr) return make_error(ENOSYS, "io_uring cannot be probed on this kernel");
  const char* missing = nullptr;
  for (const Needed& needed : kNeeded)
    if (!io_uring_opcode_supported(probe, needed.opcode)) missing = needed.name;
  io_uring_free_probe(probe);
  if (missing != nullptr) return make_error(ENOSYS, "io_uring of this kernel has no {}", missing);
  return std::unique_ptr<Backend>(std::make_unique<UringBackend>());
}

}  // namespace netblk::io
