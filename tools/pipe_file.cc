// SPDX-License-Identifier: GPL-2.0-only
#include "pipe_file.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>

#include "base/check.h"
#include "coro/event.h"

namespace netblk::tools {

// Runs on the pipe's thread, and then on the loop's.
struct PipeFile::Call : io::Job, io::Posted {
  Call(PipeFile& of, std::span<std::byte> destination, std::span<const std::byte> bytes)
      : Job([](io::Job& self) { static_cast<Call&>(self).make(); }),
        Posted([](coro::Runnable& self) { static_cast<Call&>(self).done.set(); }),
        pipe(of),
        into(destination),
        from(bytes) {}

  void make() {
    result = into.empty() ? pipe.write_now(from) : pipe.read_now(into);
    pipe.loop_.post(*this);
  }

  PipeFile& pipe;
  std::span<std::byte> into;
  std::span<const std::byte> from;
  int64_t result = 0;
  coro::Event done;
};

PipeFile::PipeFile(io::Loop& loop, io::UniqueFd fd)
    : loop_(loop), fd_(std::move(fd)), cancelled_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  NETBLK_CHECK(cancelled_.valid(), "no descriptor is left for an eventfd");
  struct stat what{};
  if (::fstat(fd_.get(), &what) == 0) kind_ = what.st_mode & S_IFMT;
}

PipeFile::~PipeFile() = default;

coro::Task<int64_t> PipeFile::make(Call& call) {
  thread_.submit(call);
  co_await call.done.wait();
  co_return call.result;
}

coro::Task<int64_t> PipeFile::read(std::span<std::byte> into) {
  Call call(*this, into, {});
  const int64_t result = co_await make(call);
  co_return result;
}

coro::Task<int64_t> PipeFile::write(std::span<const std::byte> from) {
  Call call(*this, {}, from);
  const int64_t result = co_await make(call);
  co_return result;
}

void PipeFile::cancel() {
  const uint64_t one = 1;
  (void)!::write(cancelled_.get(), &one, sizeof one);
}

int64_t PipeFile::read_now(std::span<std::byte> into) {
  size_t got = 0;
  while (got < into.size()) {
    std::array<pollfd, 2> watched = {pollfd{fd_.get(), POLLIN, 0}, pollfd{cancelled_.get(), POLLIN, 0}};
    if (::poll(watched.data(), watched.size(), -1) < 0 && errno != EINTR) return -errno;
    if ((watched[1].revents & POLLIN) != 0) return -ECANCELED;
    if (watched[0].revents == 0) continue;
    const ssize_t part = ::read(fd_.get(), into.data() + got, into.size() - got);
    if (part == 0) break;
    if (part > 0) got += static_cast<size_t>(part);
    if (part < 0 && errno != EINTR && errno != EAGAIN) return -errno;
  }
  return static_cast<int64_t>(got);
}

// A descriptor that somebody else shares stays as it is, blocking: no more is written than there is room for.
ssize_t PipeFile::write_ready(std::span<const std::byte> from) const {
  if (kind_ == S_IFSOCK) return ::send(fd_.get(), from.data(), from.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
  // A pipe that has room has it for a page.
  const size_t most = kind_ == S_IFIFO ? std::min<size_t>(from.size(), PIPE_BUF) : from.size();
  return ::write(fd_.get(), from.data(), most);
}

int64_t PipeFile::write_now(std::span<const std::byte> from) {
  while (!from.empty()) {
    std::array<pollfd, 2> watched = {pollfd{fd_.get(), POLLOUT, 0}, pollfd{cancelled_.get(), POLLIN, 0}};
    if (::poll(watched.data(), watched.size(), -1) < 0 && errno != EINTR) return -errno;
    if ((watched[1].revents & POLLIN) != 0) return -ECANCELED;
    if (watched[0].revents == 0) continue;
    const ssize_t part = write_ready(from);
    if (part > 0) from = from.subspan(static_cast<size_t>(part));
    if (part < 0 && errno != EINTR && errno != EAGAIN) return -errno;
  }
  return 0;
}

}  // namespace netblk::tools
