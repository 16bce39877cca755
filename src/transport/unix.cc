// SPDX-License-Identifier: GPL-2.0-only
#include "transport/unix.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "io/clock.h"
#include "io/socket.h"

namespace netblk::transport {
namespace {

constexpr int kBacklog = 1024;
// A killed server's ring lets go of its listening socket a little after the process has gone: that long, this often.
constexpr int kDyingRetries = 40;
constexpr long kPauseNs = 50'000'000;
constexpr long kBusyPauseNs = 5'000'000;

void pause_for(long nanoseconds) {
  const timespec pause{.tv_sec = 0, .tv_nsec = nanoseconds};
  ::nanosleep(&pause, nullptr);
}

Result<sockaddr_un> address_of(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path[0] != '/' || path.find('\0') != std::string::npos)
    return make_error(EINVAL, "bad socket path '{}': use an absolute path", path);
  if (path.size() >= sizeof address.sun_path)
    return make_error(ENAMETOOLONG, "the socket path '{}' has {} bytes; the limit of the system is {}: use a shorter one",
                      path, path.size(), sizeof address.sun_path - 1);
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

int connect_to(int fd, const sockaddr_un& address) {
  return ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 ? 0 : errno;
}

enum class Found { kNothing, kDead, kDying };

// What is at `path`, where nobody could bind; an error: it must stay.
Result<Found> look_at(const std::string& path, const sockaddr_un& address) {
  struct stat there{};
  if (::lstat(path.c_str(), &there) != 0) {
    if (errno == ENOENT) return Found::kNothing;
    return make_error(errno, "cannot listen on {}: {}", path, errno_text(errno));
  }
  if (!S_ISSOCK(there.st_mode))
    return make_error(EADDRINUSE, "cannot listen on {}: it is there, and no socket: remove it, or choose another path", path);
  const io::UniqueFd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe.valid()) return make_error(errno, "{}", errno_text(errno));
  const int error = connect_to(probe.get(), address);
  if (error == ECONNREFUSED) return Found::kDead;
  if (error == ENOENT) return Found::kNothing;
  if (error == EPROTOTYPE)
    return make_error(EADDRINUSE, "cannot listen on {}: a socket of another kind is there: choose another path", path);
  // EAGAIN: it lives, and its queue is full.
  if (error != 0 && error != EAGAIN)
    return make_error(error, "cannot listen on {}: a socket is there, and whether its server lives cannot be told: {}", path,
                      errno_text(error));
  ucred owner{};
  socklen_t length = sizeof owner;
  if (error != 0 || ::getsockopt(probe.get(), SOL_SOCKET, SO_PEERCRED, &owner, &length) != 0 || owner.pid <= 0)
    return make_error(EADDRINUSE, "cannot listen on {}: another server listens there: stop it, or choose another path", path);
  if (::kill(owner.pid, 0) != 0 && errno == ESRCH) return Found::kDying;
  return make_error(EADDRINUSE, "cannot listen on {}: process {} listens there: stop it, or choose another path", path,
                    owner.pid);
}

}  // namespace

UnixFile& UnixFile::operator=(UnixFile&& other) noexcept {
  if (this != &other) {
    remove();
    path_ = std::exchange(other.path_, {});
    device_ = other.device_;
    inode_ = other.inode_;
  }
  return *this;
}

void UnixFile::remove() {
  if (path_.empty()) return;
  struct stat there{};
  if (::lstat(path_.c_str(), &there) == 0 && there.st_dev == device_ && there.st_ino == inode_) ::unlink(path_.c_str());
  path_.clear();
}

Status unix_can_listen(const std::string& path) {
  auto address = address_of(path);
  if (!address) return std::move(address).error();
  auto found = look_at(path, address.value());
  if (!found) return std::move(found).error();
  return Ok{};
}

Result<UnixListening> unix_listen(const std::string& path, mode_t mode) {
  auto address = address_of(path);
  if (!address) return std::move(address).error();
  // Two that start together: without the lock, the second could take the first one's file, bound and not yet listened
  // at, for a dead server's. Where the folder cannot be locked, that is left to luck.
  const std::string folder = path.substr(0, std::max<size_t>(path.rfind('/'), 1));
  const io::UniqueFd lock(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (lock.valid()) (void)::flock(lock.get(), LOCK_EX);

  io::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return make_error(errno, "cannot listen on {}: {}", path, errno_text(errno));
  // The file is made with these bits, less the umask: there is no moment at which more people may connect.
  (void)::fchmod(fd.get(), mode);
  int dying = 0;
  while (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address.value()), sizeof address.value()) != 0) {
    if (errno != EADDRINUSE) return make_error(errno, "cannot listen on {}: {}", path, errno_text(errno));
    auto found = look_at(path, address.value());
    if (!found) return std::move(found).error();
    if (found.value() == Found::kDead && ::unlink(path.c_str()) != 0 && errno != ENOENT)
      return make_error(errno, "cannot remove the socket of a dead server, {}: {}", path, errno_text(errno));
    if (found.value() != Found::kDying) continue;
    if (++dying > kDyingRetries)
      return make_error(EADDRINUSE, "cannot listen on {}: a server that has died still listens there", path);
    pause_for(kPauseNs);
  }
  struct stat made{};
  if (::chmod(path.c_str(), mode) != 0 || ::lstat(path.c_str(), &made) != 0)
    return make_error(errno, "cannot set the mode of {}: {}", path, errno_text(errno));
  UnixListening listening{UnixFile(path, made.st_dev, made.st_ino), std::move(fd)};
  if (::listen(listening.fd.get(), kBacklog) != 0)
    return make_error(errno, "cannot listen on {}: {}", path, errno_text(errno));
  return listening;
}

Result<io::UniqueFd> unix_connect(const std::string& path, uint64_t timeout_ms) {
  auto address = address_of(path);
  if (!address) return std::move(address).error();
  const io::SteadyClock clock;
  const uint64_t give_up_at = clock.now_ms() + timeout_ms;
  for (;;) {
    io::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (!fd.valid()) return make_error(errno, "cannot connect to {}: {}", path, errno_text(errno));
    const int error = connect_to(fd.get(), address.value());
    if (error == 0) {
      io::set_nonblocking(fd.get(), false);
      return fd;
    }
    if (error != EAGAIN && error != EINTR)
      return make_error(error, "cannot connect to {}: {}", path, errno_text(error));
    // The queue of those that wait is full, and nothing tells when it has room.
    if (clock.now_ms() >= give_up_at)
      return make_error(ETIMEDOUT, "cannot connect to {}: no answer within {} ms", path, timeout_ms);
    pause_for(kBusyPauseNs);
  }
}

}  // namespace netblk::transport
