// SPDX-License-Identifier: GPL-2.0-only
#include "server_places.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>
#include <utility>

#include "base/parse.h"
#include "transport/tcp.h"
#include "transport/unix.h"

namespace netblk::tools {
namespace {

constexpr int kFirstInherited = 3;  // as systemd has it
constexpr uint64_t kMaxInherited = 1024;

class TcpPlace final : public server::Place {
 public:
  explicit TcpPlace(io::UniqueFd fd) : fd_(std::move(fd)) {}
  Result<io::UniqueFd> listen() override {
    if (auto listening = transport::start_listening(fd_.get()); !listening) return std::move(listening).error();
    return std::move(fd_);
  }

 private:
  io::UniqueFd fd_;
};

class UnixPlace final : public server::Place {
 public:
  explicit UnixPlace(const server::ListenConfig& where) : path_(where.path), mode_(static_cast<mode_t>(where.mode)) {}
  Result<io::UniqueFd> listen() override {
    auto listening = transport::unix_listen(path_, mode_);
    if (!listening) return std::move(listening).error();
    file_ = std::move(listening.value().file);
    return std::move(listening.value().fd);
  }

 private:
  std::string path_;
  mode_t mode_;
  transport::UnixFile file_;
};

class InheritedPlace final : public server::Place {
 public:
  explicit InheritedPlace(int fd) : fd_(fd) {}
  Result<io::UniqueFd> listen() override { return std::move(fd_); }

 private:
  io::UniqueFd fd_;
};

int option(int fd, int name) {
  int value = -1;
  socklen_t length = sizeof value;
  return ::getsockopt(fd, SOL_SOCKET, name, &value, &length) == 0 ? value : -1;
}

// Why nobody can be accepted there; null: it is a listening stream socket.
const char* wrong_with(int fd) {
  struct stat there{};
  if (::fstat(fd, &there) != 0) return "is not open";
  if (!S_ISSOCK(there.st_mode)) return "is no socket";
  const int family = option(fd, SO_DOMAIN);
  if (family != AF_INET && family != AF_INET6 && family != AF_UNIX) return "is neither an internet nor a unix socket";
  if (option(fd, SO_TYPE) != SOCK_STREAM) return "is no stream socket (UDP is not served: use ListenStream=)";
  if (option(fd, SO_ACCEPTCONN) == 1) return nullptr;
  sockaddr_storage peer{};
  socklen_t length = sizeof peer;
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) == 0)
    return "is a connection, no listening socket (with systemd: use Accept=no)";
  return "does not listen";
}

std::string variable(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr ? value : "";
}

}  // namespace

Result<std::unique_ptr<server::Place>> take_place(const server::ListenConfig& where) {
  switch (where.kind) {
    case server::ListenKind::kTcp: {
      auto fd = transport::tcp_bind(where.host, where.port);
      if (!fd) return std::move(fd).error();
      return std::unique_ptr<server::Place>(std::make_unique<TcpPlace>(std::move(fd).value()));
    }
    case server::ListenKind::kUnix:
      // The file is made when its server can answer: until then, who looks for a dead one's must not find it.
      if (auto possible = transport::unix_can_listen(where.path); !possible) return std::move(possible).error();
      return std::unique_ptr<server::Place>(std::make_unique<UnixPlace>(where));
    case server::ListenKind::kInherited:
      return std::unique_ptr<server::Place>(std::make_unique<InheritedPlace>(where.fd));
  }
  return make_error(EINVAL, "no such kind of listener");
}

Result<std::vector<server::ListenConfig>> inherited_listens() {
  std::vector<server::ListenConfig> listens;
  const std::string pid = variable("LISTEN_PID");
  const std::string count_text = variable("LISTEN_FDS");
  std::string names = variable("LISTEN_FDNAMES");
  // Meant for another process, from which the variables were inherited.
  if (count_text.empty() || pid != std::to_string(::getpid())) return listens;
  for (const char* name : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) ::unsetenv(name);
  const auto count = parse_unsigned(count_text, 0, kMaxInherited);
  if (!count) return make_error(EINVAL, "bad LISTEN_FDS='{}': it is a number from 0 to {}", count_text, kMaxInherited);
  for (int i = 0; i < static_cast<int>(*count); ++i) {
    const size_t colon = names.find(':');
    const std::string name = names.substr(0, colon);
    names = colon == std::string::npos ? "" : names.substr(colon + 1);
    server::ListenConfig listen;
    listen.kind = server::ListenKind::kInherited;
    listen.fd = kFirstInherited + i;
    listen.uri = name.empty() ? fmt::format("inherited descriptor {}", listen.fd)
                              : fmt::format("inherited descriptor {} ('{}')", listen.fd, name);
    listen.protocol = name.starts_with("netblk") ? server::Protocol::kNetblk : server::Protocol::kNbd;
    if (const char* wrong = wrong_with(listen.fd)) return make_error(EINVAL, "{} {}", listen.uri, wrong);
    (void)::fcntl(listen.fd, F_SETFD, FD_CLOEXEC);
    listens.push_back(std::move(listen));
  }
  return listens;
}

}  // namespace netblk::tools
