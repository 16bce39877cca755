// SPDX-License-Identifier: GPL-2.0-only
#include "server_stdio.h"

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <utility>

#include "base/limits.h"

namespace netblk::tools {
namespace {

constexpr size_t kPiece = 64u << 10;
constexpr unsigned kLookMs = 250;

bool is_stream_socket(int fd) {
  int type = 0;
  socklen_t length = sizeof type;
  return ::getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_STREAM;
}

// Whether a client can be at its other end.
bool carries(int fd, const struct stat& there) { return S_ISFIFO(there.st_mode) || is_stream_socket(fd); }

// Bytes, or -1: the other side has gone.
ssize_t put(int fd, bool is_pipe, const std::byte* data, size_t bytes) {
  // A pipe that poll() says has room takes this much without waiting.
  if (is_pipe) return ::write(fd, data, std::min<size_t>(bytes, PIPE_BUF));
  return ::send(fd, data, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
}

}  // namespace

void say_on_stderr() { (void)::dup2(STDERR_FILENO, STDOUT_FILENO); }

Result<std::unique_ptr<StdioClient>> StdioClient::take() {
  struct stat in{}, out{};
  if (::fstat(STDIN_FILENO, &in) != 0 || ::fstat(STDOUT_FILENO, &out) != 0 || !carries(STDIN_FILENO, in) ||
      !carries(STDOUT_FILENO, out))
    return make_error(EINVAL, "--stdio: the standard input and output are no sockets or pipes: it is for a program that "
                              "starts the server for itself, with itself at their other ends");
  std::unique_ptr<StdioClient> client(new StdioClient);
  client->in_ = io::UniqueFd(::fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
  client->out_ = io::UniqueFd(::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
  const io::UniqueFd nothing(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  if (!client->in_.valid() || !client->out_.valid() || !nothing.valid() || ::dup2(nothing.get(), STDIN_FILENO) < 0)
    return make_error(errno, "--stdio: {}", errno_text(errno));
  say_on_stderr();
  if (S_ISSOCK(in.st_mode) && in.st_dev == out.st_dev && in.st_ino == out.st_ino) {
    client->socket_ = std::move(client->in_);
    client->out_.reset();
    return client;
  }
  std::array<int, 2> pair{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair.data()) != 0)
    return make_error(errno, "--stdio: {}", errno_text(errno));
  client->socket_ = io::UniqueFd(pair[0]);
  client->inner_ = io::UniqueFd(pair[1]);
  client->in_thread_ = std::thread([raw = client.get()] { raw->carry_in(); });
  client->out_thread_ = std::thread([raw = client.get()] { raw->carry_out(); });
  return client;
}

StdioClient::~StdioClient() {
  socket_.reset();
  closing_.store(true);
  if (out_thread_.joinable()) out_thread_.join();
  if (inner_.valid()) ::shutdown(inner_.get(), SHUT_RDWR);
  if (in_thread_.joinable()) in_thread_.join();
}

void StdioClient::carry_in() {
  std::array<std::byte, kPiece> piece;
  std::array<pollfd, 2> ends{{{in_.get(), POLLIN, 0}, {inner_.get(), 0, 0}}};
  // The server's end: it reads no more.
  while (::poll(ends.data(), ends.size(), -1) >= 0 || errno == EINTR) {
    if ((ends[1].revents & (POLLHUP | POLLERR)) != 0) return;
    if (ends[0].revents == 0) continue;
    const ssize_t got = ::read(in_.get(), piece.data(), piece.size());
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    for (ssize_t at = 0; at < got;) {
      const ssize_t sent = ::send(inner_.get(), piece.data() + at, static_cast<size_t>(got - at), MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0) return;
      at += sent;
    }
  }
  ::shutdown(inner_.get(), SHUT_WR);
}

void StdioClient::carry_out() {
  std::array<std::byte, kPiece> piece;
  const bool is_pipe = !is_stream_socket(out_.get());
  bool taken = true;
  while (taken) {
    const ssize_t got = ::recv(inner_.get(), piece.data(), piece.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    uint64_t waited_ms = 0;
    for (ssize_t at = 0; at < got && taken;) {
      pollfd room{out_.get(), POLLOUT, 0};
      const int ready = ::poll(&room, 1, static_cast<int>(kLookMs));
      if (ready == 0) {
        // The server has ended: a client that takes nothing does not hold its process.
        if (closing_.load()) waited_ms += kLookMs;
        taken = waited_ms < limits::kDrainStallTimeoutMs;
        continue;
      }
      const ssize_t sent = put(out_.get(), is_pipe, piece.data() + at, static_cast<size_t>(got - at));
      if (sent > 0) {
        at += sent;
        waited_ms = 0;
      } else {
        taken = sent < 0 && (errno == EINTR || errno == EAGAIN);
      }
    }
  }
  // Either side hears that the other has gone.
  if (!taken) ::shutdown(inner_.get(), SHUT_RDWR);
  if (!is_pipe) ::shutdown(out_.get(), SHUT_WR);
  out_.reset();
}

}  // namespace netblk::tools
