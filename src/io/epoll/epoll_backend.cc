// SPDX-License-Identifier: GPL-2.0-only
#include "io/epoll/epoll_backend.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <vector>

#include "base/check.h"
#include "io/epoll/worker_pool.h"
#include "io/socket.h"
#include "io/socket_stream.h"

namespace netblk::io {
namespace {

class EpollLoop;

// What epoll reports on: one descriptor, registered once, edge-triggered.
class Watched {
 public:
  // fd: outlives the registration.
  Watched(EpollLoop& loop, int fd);
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;
  virtual ~Watched();

  // Tries again what is pending. Called by the loop after an edge, or for what asked for a try.
  virtual void retry() = 0;

  bool listed = false;  // in the loop's list of those that want a try

 protected:
  EpollLoop& loop_;

 private:
  int watched_fd_;
};

class EpollLoop final : public Loop {
 public:
  EpollLoop(const Clock& clock, UniqueFd epoll, UniqueFd wake_fd)
      : Loop(clock), epoll_(std::move(epoll)), wake_fd_(std::move(wake_fd)) {}

  std::unique_ptr<Stream> make_stream(UniqueFd fd) override;
  std::unique_ptr<Listener> make_listener(UniqueFd fd) override;
  std::string description() const override { return "epoll with a pool of file threads"; }

  void watch(int fd, Watched& watched) {
    epoll_event event{.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data = {.ptr = &watched}};
    NETBLK_CHECK(::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0, "epoll refused a descriptor");
  }
  void unwatch(int fd, Watched& watched) {
    (void)::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
    std::replace(to_try_.begin(), to_try_.end(), &watched, static_cast<Watched*>(nullptr));
  }
  // The next poll tries `watched` before it waits: operations start together, once a round, as a ring would.
  void want_try(Watched& watched) {
    if (watched.listed) return;
    watched.listed = true;
    to_try_.push_back(&watched);
  }

 protected:
  void poll(int64_t timeout_ms) override {
    trying_.swap(to_try_);
    for (Watched* watched : trying_) {
      if (watched == nullptr) continue;
      watched->listed = false;
      watched->retry();
    }
    trying_.clear();
    // Completions that the tries made are queued: look for more, but do not wait.
    const bool found = found_;
    found_ = false;
    std::array<epoll_event, 128> events;
    const int limit = found ? 0 : timeout_ms < 0 ? -1 : static_cast<int>(std::min<int64_t>(timeout_ms, INT_MAX));
    const int count = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), limit);
    NETBLK_CHECK(count >= 0 || errno == EINTR, "epoll_wait failed");
    for (int i = 0; i < count; ++i) {
      auto* const watched = static_cast<Watched*>(events[static_cast<size_t>(i)].data.ptr);
      if (watched != nullptr) {
        watched->retry();
      } else {
        uint64_t wakes;
        (void)!::read(wake_fd_.get(), &wakes, sizeof wakes);
      }
    }
    found_ = false;
  }
  void wake() override {
    const uint64_t one = 1;
    (void)!::write(wake_fd_.get(), &one, sizeof one);
  }

 public:
  void note_found() { found_ = true; }

 private:
  UniqueFd epoll_;
  UniqueFd wake_fd_;
  std::vector<Watched*> to_try_;
  std::vector<Watched*> trying_;
  bool found_ = false;
};

Watched::Watched(EpollLoop& loop, int fd) : loop_(loop), watched_fd_(fd) { loop_.watch(watched_fd_, *this); }
Watched::~Watched() { loop_.unwatch(watched_fd_, *this); }

class EpollStream final : public SocketStream, private Watched {
 public:
  EpollStream(EpollLoop& loop, UniqueFd fd) : SocketStream(std::move(fd)), Watched(loop, socket()) {}
  ~EpollStream() override { NETBLK_CHECK(recv_ == nullptr && send_ == nullptr, "a stream is destroyed in use"); }

  bool recv(Op& op, std::span<std::byte> into) override {
    NETBLK_CHECK(recv_ == nullptr, "two receives on one stream");
    recv_ = &op;
    into_ = into;
    op.begin();
    loop_.want_try(*this);
    return false;
  }

  bool readable(Op& op) override {
    NETBLK_CHECK(recv_ == nullptr, "two receives on one stream");
    recv_ = &op;
    into_ = {};
    op.begin();
    loop_.want_try(*this);
    return false;
  }

  bool send(Op& op, std::span<const iovec> parts) override {
    NETBLK_CHECK(send_ == nullptr, "two sends on one stream");
    const int32_t sent = io::send_now(socket(), parts);
    if (sent != -EAGAIN) return op.finish_now(sent);
    send_ = &op;
    parts_ = parts;
    op.begin();
    return false;
  }

 private:
  void retry() override {
    if (recv_ != nullptr) {
      const int32_t got = into_.empty() ? look() : recv_now(into_);
      if (got != -EAGAIN) finish(recv_, got);
    }
    if (send_ != nullptr) {
      const int32_t sent = io::send_now(socket(), parts_);
      if (sent != -EAGAIN) finish(send_, sent);
    }
  }
  int32_t look() const {
    pollfd looked{.fd = socket(), .events = POLLIN, .revents = 0};
    return ::poll(&looked, 1, 0) == 0 ? -EAGAIN : 0;
  }
  void finish(Op*& op, int32_t result) {
    loop_.note_found();
    std::exchange(op, nullptr)->complete(result);
  }

  Op* recv_ = nullptr;
  Op* send_ = nullptr;
  std::span<std::byte> into_;  // empty: readable()
  std::span<const iovec> parts_;
};

// Owns a descriptor; a base of its own, so that it is made before what watches it and closed after.
struct Owned {
  UniqueFd fd_;
};

class EpollListener final : public Listener, private Owned, private Watched {
 public:
  EpollListener(EpollLoop& loop, UniqueFd fd) : Owned{std::move(fd)}, Watched(loop, fd_.get()) {}
  ~EpollListener() override { NETBLK_CHECK(accept_ == nullptr, "a listener is destroyed in use"); }

  bool accept(Op& op) override {
    NETBLK_CHECK(accept_ == nullptr, "two accepts on one listener");
    if (stopped_) return op.finish_now(-ECANCELED);
    accept_ = &op;
    op.begin();
    loop_.want_try(*this);
    return false;
  }
  void shutdown() override {
    stopped_ = true;
    loop_.want_try(*this);
  }

 private:
  void retry() override {
    if (accept_ == nullptr) return;
    int result = stopped_ ? -ECANCELED : -EINTR;
    while (result == -EINTR) {
      const int fd = ::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
      result = fd >= 0 ? fd : -errno;
    }
    if (result == -EAGAIN) return;
    loop_.note_found();
    std::exchange(accept_, nullptr)->complete(result);
  }

  Op* accept_ = nullptr;
  bool stopped_ = false;
};

std::unique_ptr<Stream> EpollLoop::make_stream(UniqueFd fd) {
  set_nonblocking(fd.get(), true);
  return std::make_unique<EpollStream>(*this, std::move(fd));
}

std::unique_ptr<Listener> EpollLoop::make_listener(UniqueFd fd) {
  set_nonblocking(fd.get(), true);
  return std::make_unique<EpollListener>(*this, std::move(fd));
}

// One blocking file call: on a pool thread, then back on its loop to complete the operation.
class FileJob final : public Job, public Posted {
 public:
  enum class Call { kRead, kWrite, kReadVector, kWriteVector, kDatasync, kPunchHole, kZeroRange, kAllocate };

  FileJob(Loop& loop, Op& op, Call call, int fd, void* data, uint64_t length, uint64_t offset)
      : Job([](Job& job) {
          auto& self = static_cast<FileJob&>(job);
          self.result_ = self.perform();
          self.loop_.post(self);
        }),
        Posted([](Runnable& message) {
          const std::unique_ptr<FileJob> self(&static_cast<FileJob&>(static_cast<Posted&>(message)));
          self->op_.complete(self->result_);
        }),
        loop_(loop), op_(op), call_(call), fd_(fd), data_(data), length_(length), offset_(offset) {}

 private:
  int32_t perform() const {
    for (;;) {
      ssize_t result = -1;
      switch (call_) {
        case Call::kRead: result = ::pread(fd_, data_, length_, static_cast<off_t>(offset_)); break;
        case Call::kWrite: result = ::pwrite(fd_, data_, length_, static_cast<off_t>(offset_)); break;
        case Call::kReadVector:
          result = ::preadv(fd_, parts(), static_cast<int>(length_), static_cast<off_t>(offset_));
          break;
        case Call::kWriteVector: return write_vector_now(fd_, {parts(), length_}, offset_);
        case Call::kDatasync: result = ::fdatasync(fd_); break;
        case Call::kPunchHole: return fallocate_now(fd_, kPunchHoleMode, offset_, length_);
        case Call::kZeroRange: return fallocate_now(fd_, kZeroRangeMode, offset_, length_);
        case Call::kAllocate: return fallocate_now(fd_, kAllocateMode, offset_, length_);
      }
      if (result >= 0) return static_cast<int32_t>(result);
      if (errno != EINTR) return -errno;
    }
  }

  const iovec* parts() const { return static_cast<const iovec*>(data_); }

  Loop& loop_;
  Op& op_;
  Call call_;
  int fd_;
  void* data_;       // the bytes, or the parts
  uint64_t length_;  // how many of them
  uint64_t offset_;
  int32_t result_ = 0;
};

class EpollFile final : public File {
 public:
  EpollFile(WorkerPool& pool, UniqueFd fd, bool direct)
      : pool_(pool), fd_(std::move(fd)), direct_(direct), in_memory_(is_in_memory(fd_.get())) {}

  bool read(Loop& loop, Op& op, std::span<std::byte> into, uint64_t offset) override {
    if (!direct_) {
      const int32_t got = read_now(fd_.get(), into, offset, in_memory_);
      if (got != -EAGAIN) return op.finish_now(got);
    }
    return hand_over(loop, op, FileJob::Call::kRead, into.data(), into.size(), offset);
  }
  bool write(Loop& loop, Op& op, std::span<const std::byte> from, uint64_t offset) override {
    if (!direct_ && from.size() <= kInlineWriteBytes) return op.finish_now(write_now(fd_.get(), from, offset));
    return hand_over(loop, op, FileJob::Call::kWrite, const_cast<std::byte*>(from.data()), from.size(), offset);
  }
  bool read_vector(Loop& loop, Op& op, std::span<const iovec> into, uint64_t offset) override {
    if (!direct_) {
      const int32_t got = read_vector_now(fd_.get(), into, offset, in_memory_);
      if (got != -EAGAIN) return op.finish_now(got);
    }
    return hand_over(loop, op, FileJob::Call::kReadVector, const_cast<iovec*>(into.data()), into.size(), offset);
  }
  bool write_vector(Loop& loop, Op& op, std::span<const iovec> from, uint64_t offset) override {
    if (!direct_ && total_bytes(from) <= kInlineWriteBytes)
      return op.finish_now(write_vector_now(fd_.get(), from, offset));
    return hand_over(loop, op, FileJob::Call::kWriteVector, const_cast<iovec*>(from.data()), from.size(), offset);
  }
  bool datasync(Loop& loop, Op& op) override { return hand_over(loop, op, FileJob::Call::kDatasync, nullptr, 0, 0); }
  bool punch_hole(Loop& loop, Op& op, uint64_t offset, uint64_t length) override {
    return hand_over(loop, op, FileJob::Call::kPunchHole, nullptr, length, offset);
  }
  bool zero_range(Loop& loop, Op& op, uint64_t offset, uint64_t length) override {
    return hand_over(loop, op, FileJob::Call::kZeroRange, nullptr, length, offset);
  }
  bool allocate(Loop& loop, Op& op, uint64_t offset, uint64_t length) override {
    return hand_over(loop, op, FileJob::Call::kAllocate, nullptr, length, offset);
  }

 private:
  bool hand_over(Loop& loop, Op& op, FileJob::Call call, void* data, uint64_t length, uint64_t offset) {
    op.begin();
    // The job owns itself until it has come back to the loop.
    pool_.submit(*new FileJob(loop, op, call, fd_.get(), data, length, offset));
    return false;
  }

  WorkerPool& pool_;
  UniqueFd fd_;
  bool direct_;
  bool in_memory_;
};

class EpollBackend final : public Backend {
 public:
  explicit EpollBackend(unsigned threads) : pool_(threads) {}
  std::string_view name() const override { return "epoll"; }
  Result<std::unique_ptr<Loop>> make_loop(const Clock& clock) override {
    UniqueFd epoll(::epoll_create1(EPOLL_CLOEXEC));
    if (!epoll.valid()) return make_error(errno, "cannot make an epoll descriptor: {}", errno_text(errno));
    UniqueFd wake_fd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!wake_fd.valid()) return make_error(errno, "cannot make an eventfd: {}", errno_text(errno));
    epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.ptr = nullptr}};
    if (::epoll_ctl(epoll.get(), EPOLL_CTL_ADD, wake_fd.get(), &event) != 0)
      return make_error(errno, "cannot watch an eventfd: {}", errno_text(errno));
    return std::unique_ptr<Loop>(std::make_unique<EpollLoop>(clock, std::move(epoll), std::move(wake_fd)));
  }
  std::unique_ptr<File> make_file(UniqueFd fd, bool direct) override {
    return std::make_unique<EpollFile>(pool_, std::move(fd), direct);
  }

 private:
  WorkerPool pool_;
};

}  // namespace

Result<std::unique_ptr<Backend>> make_epoll_backend(unsigned threads) {
  return std::unique_ptr<Backend>(std::make_unique<EpollBackend>(threads));
}

}  // namespace netblk::io
