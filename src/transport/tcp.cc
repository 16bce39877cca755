// SPDX-License-Identifier: GPL-2.0-only
#include "transport/tcp.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "io/clock.h"
#include "io/patience.h"

namespace netblk::transport {
namespace {

constexpr int kBacklog = 1024;
// A killed server's ring lets go of its listening socket a little after the process has gone: a port in use is tried
// again for this long.
constexpr int kPortRetries = 40;
constexpr long kPortRetryNs = 50'000'000;
constexpr int kKeepIdleSeconds = 60;
constexpr int kKeepIntervalSeconds = 10;
constexpr int kKeepProbes = 6;

void set_option(int fd, int level, int name, int value) { (void)::setsockopt(fd, level, name, &value, sizeof value); }

using AddressList = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

Result<AddressList> resolve(const std::string& host, uint16_t port, int flags) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = flags | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  const int error = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
  if (error == 0) return AddressList(list, &::freeaddrinfo);
  // Of a peer it may pass: its name is not known while the network, or its name server, is not there yet.
  const bool may_pass = (flags & AI_PASSIVE) == 0 && (error == EAI_AGAIN || error == EAI_FAIL || error == EAI_NONAME);
  return make_error(may_pass ? EHOSTUNREACH : EINVAL, "cannot resolve host {}: {}", host, ::gai_strerror(error));
}

Result<io::UniqueFd> bind_to(int family, const sockaddr* address, socklen_t length, bool dual_stack) {
  io::UniqueFd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return make_error(errno, "{}", errno_text(errno));
  // A restarted server takes its port back though old connections linger in TIME_WAIT.
  set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (family == AF_INET6) set_option(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, dual_stack ? 0 : 1);
  for (int attempt = 0; ::bind(fd.get(), address, length) != 0; ++attempt) {
    if (errno != EADDRINUSE || attempt == kPortRetries) return make_error(errno, "{}", errno_text(errno));
    const timespec pause{.tv_sec = 0, .tv_nsec = kPortRetryNs};
    ::nanosleep(&pause, nullptr);
  }
  return fd;
}

Error listen_error(const std::string& where, const Error& cause) {
  const char* advice = "";
  if (cause.code == EADDRINUSE) advice = "; another program has this port: stop it, or choose another port";
  if (cause.code == EADDRNOTAVAIL) advice = "; no interface of this machine has this address";
  if (cause.code == EACCES) advice = "; ports below 1024 need root";
  return make_error(cause.code, "cannot listen on {}: {}{}", where, cause.message, advice);
}

// Addresses of a name are tried side by side, each this much after the one before: one that is silent costs no more.
constexpr uint64_t kNextAddressMs = 250;

class Attempts {
 public:
  // Begins with an address; what fails at once is noted.
  void begin(const addrinfo& entry) {
    io::UniqueFd fd(::socket(entry.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd.valid() || (::connect(fd.get(), entry.ai_addr, entry.ai_addrlen) != 0 && errno != EINPROGRESS)) {
      note(errno);
      return;
    }
    waiting_.push_back({.fd = fd.get(), .events = POLLOUT, .revents = 0});
    owned_.push_back(std::move(fd));
  }
  bool empty() const { return waiting_.empty(); }

  // The first that is connected; none: none was for a step, or one failed.
  std::optional<io::UniqueFd> wait(io::Patience& patience, uint64_t most_ms) {
    const int ready = patience.poll(waiting_, most_ms);
    if (ready < 0 && errno != EINTR) note(errno);
    for (size_t i = 0; ready > 0 && i < waiting_.size();) {
      if (waiting_[i].revents == 0) {
        ++i;
        continue;
      }
      io::UniqueFd fd = std::move(owned_[i]);
      owned_.erase(owned_.begin() + static_cast<std::ptrdiff_t>(i));
      waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(i));
      int error = 0;
      socklen_t length = sizeof error;
      (void)::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &length);
      // A connect to a free port of the own host can meet itself when its own port is that one.
      const auto local = io::local_address(fd.get());
      const auto peer = io::peer_address(fd.get());
      if (local && peer && local.value().port == peer.value().port && local.value().ip == peer.value().ip)
        error = ECONNREFUSED;
      if (error == 0) return fd;
      note(error);
    }
    return std::nullopt;
  }

  void note(int error) { last_ = make_error(error, "{}", errno_text(error)); }
  const std::optional<Error>& last() const { return last_; }

 private:
  std::vector<pollfd> waiting_;
  std::vector<io::UniqueFd> owned_;  // of the same places
  std::optional<Error> last_;
};

}  // namespace

Result<io::UniqueFd> tcp_bind(const std::string& host, uint16_t port) {
  const std::string where = fmt::format("{} port {}", host.empty() ? "every address," : host, port);
  if (host.empty() || host == "*") {
    sockaddr_in6 any6{};
    any6.sin6_family = AF_INET6;
    any6.sin6_port = htons(port);
    auto both = bind_to(AF_INET6, reinterpret_cast<sockaddr*>(&any6), sizeof any6, true);
    if (both || (both.error().code != EAFNOSUPPORT && both.error().code != EADDRNOTAVAIL)) {
      if (!both) return listen_error(where, both.error());
      return both;
    }
    sockaddr_in any4{};
    any4.sin_family = AF_INET;
    any4.sin_port = htons(port);
    auto only4 = bind_to(AF_INET, reinterpret_cast<sockaddr*>(&any4), sizeof any4, false);
    if (!only4) return listen_error(where, only4.error());
    return only4;
  }
  auto list = resolve(host, port, AI_PASSIVE);
  if (!list) return std::move(list).error();
  // A name may have an address of a family that this machine does not have: the first that can be had is taken.
  for (const addrinfo* entry = list.value().get();; entry = entry->ai_next) {
    auto fd = bind_to(entry->ai_family, entry->ai_addr, entry->ai_addrlen, host == "::");
    if (fd) return fd;
    const int error = fd.error().code;
    if (entry->ai_next == nullptr || (error != EAFNOSUPPORT && error != EADDRNOTAVAIL))
      return listen_error(where, fd.error());
  }
}

Status start_listening(int fd) {
  if (::listen(fd, kBacklog) == 0) return Ok{};
  const int error = errno;
  const auto local = io::local_address(fd);
  return listen_error(local ? local.value().text() : "a socket", make_error(error, "{}", errno_text(error)));
}

Result<io::UniqueFd> tcp_connect(const std::string& host, uint16_t port, uint64_t timeout_ms) {
  const io::SteadyClock clock;
  const uint64_t asked_at = clock.now_ms();
  auto list = resolve(host, port, 0);
  if (!list) return std::move(list).error();
  const uint64_t resolving_ms = clock.now_ms() - asked_at;
  io::Patience patience(timeout_ms - std::min(timeout_ms, resolving_ms));
  Attempts attempts;
  const addrinfo* next = list.value().get();
  uint64_t next_at = 0;
  for (;;) {
    const uint64_t now = clock.now_ms();
    if (next != nullptr && (now >= next_at || attempts.empty())) {
      attempts.begin(*next);
      next = next->ai_next;
      next_at = now + kNextAddressMs;
      continue;
    }
    if (attempts.empty()) break;
    const bool last = patience.over();
    auto connected = attempts.wait(patience, next != nullptr ? next_at - now : io::Patience::kStepMs);
    if (!connected && last) break;
    if (!connected) continue;
    tune_tcp(connected->get());
    return std::move(*connected);
  }
  if (!attempts.empty())
    return make_error(ETIMEDOUT, "cannot connect to {} port {}: no answer within {} ms", host, port, timeout_ms);
  const Error last = attempts.last().value_or(Error{EHOSTUNREACH, "the name has no address"});
  return make_error(last.code, "cannot connect to {} port {}: {}", host, port, last.message);
}

void tune_tcp(int fd) {
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, kKeepIdleSeconds);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, kKeepIntervalSeconds);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, kKeepProbes);
  // Keepalive says nothing while data is unacknowledged: that has the same limit.
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, (kKeepIdleSeconds + kKeepProbes * kKeepIntervalSeconds) * 1000);
}

}  // namespace netblk::transport
