// SPDX-License-Identifier: GPL-2.0-only
#include "client/nbd_handshake.h"

#include <poll.h>

#include <array>
#include <cerrno>
#include <span>

#include "io/patience.h"
#include "io/socket.h"

namespace netblk::client {
namespace {

class Talk {
 public:
  Talk(int fd, uint64_t timeout_ms) : fd_(fd), timeout_ms_(timeout_ms), patience_(timeout_ms) {}

  Status send(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      // A send does not change what it sends.
      const iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
      const int32_t sent = io::send_now(fd_, {&part, 1});
      if (sent < 0 && sent != -EAGAIN) return make_error(-sent, "sending failed: {}", errno_text(-sent));
      if (sent >= 0) {
        bytes = bytes.subspan(static_cast<size_t>(sent));
      } else if (auto ready = wait(POLLOUT); !ready) {
        return ready;
      }
    }
    return Ok{};
  }

  // False: the server has closed.
  Result<bool> receive(std::span<std::byte> into) {
    while (!into.empty()) {
      const int32_t got = io::recv_now(fd_, into);
      if (got == 0 || got == -ECONNRESET || got == -EPIPE) return false;
      if (got < 0 && got != -EAGAIN) return make_error(-got, "receiving failed: {}", errno_text(-got));
      if (got > 0) {
        into = into.subspan(static_cast<size_t>(got));
      } else if (auto ready = wait(POLLIN); !ready) {
        return std::move(ready).error();
      }
    }
    return true;
  }

 private:
  Status wait(short events) {
    pollfd waiting{.fd = fd_, .events = events, .revents = 0};
    const int ready = patience_.wait(waiting);
    if (ready < 0 && errno != EINTR) return make_error(errno, "waiting failed: {}", errno_text(errno));
    if (ready == 0) return make_error(ETIMEDOUT, "the server does not answer NBD's negotiation within {} ms", timeout_ms_);
    return Ok{};
  }

  const int fd_;
  const uint64_t timeout_ms_;
  io::Patience patience_;
};

Status run(int fd, proto::NbdGreeting& greeting, uint64_t timeout_ms) {
  Talk talk(fd, timeout_ms);
  std::array<std::byte, proto::NbdGreeting::kMaxPiece> memory;
  while (!greeting.over()) {
    if (auto sent = talk.send(greeting.take_output()); !sent) {
      if (sent.error().code != EPIPE && sent.error().code != ECONNRESET) return sent;
      greeting.closed();
      break;
    }
    const auto piece = std::span(memory).first(greeting.wanted());
    auto came = talk.receive(piece);
    if (!came) return std::move(came).error();
    if (came.value())
      greeting.take(piece);
    else
      greeting.closed();
  }
  // A farewell: the answer is here, whether the server hears it or not.
  if (greeting.result()) (void)talk.send(greeting.take_output());
  return greeting.result();
}

}  // namespace

Result<NbdExport> nbd_handshake(int fd, const NbdWish& wish, uint64_t timeout_ms) {
  proto::NbdGreeting greeting(wish);
  if (auto done = run(fd, greeting, timeout_ms); !done) return std::move(done).error();
  return greeting.found();
}

Result<std::vector<NbdListed>> nbd_list(int fd, uint64_t timeout_ms) {
  proto::NbdGreeting greeting({.purpose = NbdWish::Purpose::kList});
  if (auto done = run(fd, greeting, timeout_ms); !done) return std::move(done).error();
  return greeting.listed();
}

}  // namespace netblk::client
