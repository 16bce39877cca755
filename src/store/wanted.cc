// SPDX-License-Identifier: GPL-2.0-only
#include "store/wanted.h"

#include <utility>

namespace netblk::store {
namespace {

// An open file description has it (F_OFD_SETLK), which flock() says nothing about.
struct flock wanted_lock(short kind) {
  struct flock lock{};
  lock.l_type = kind;
  lock.l_whence = SEEK_SET;
  lock.l_start = kWantedAt;
  lock.l_len = 1;
  return lock;
}

}  // namespace

int Wanted::look_at_file(int fd, struct flock& lock) { return ::fcntl(fd, F_OFD_GETLK, &lock); }

Wanted::Wanted(const std::string& path, Look look)
    : fd_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)), look_(std::move(look)) {}

// On NFS a flock() is a lock of all bytes, and the one by which this process has the file itself is seen here: only one of just
// this byte is somebody's who waits. It cannot be there beside the other, which would have refused it.
bool Wanted::is_set() const {
  struct flock lock = wanted_lock(F_RDLCK);
  if (!fd_.valid() || look_(fd_.get(), lock) != 0) return false;
  return lock.l_type == F_WRLCK && lock.l_start == kWantedAt && lock.l_len == 1;
}

io::UniqueFd Wanted::set(const std::string& path) {
  io::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
  struct flock lock = wanted_lock(F_WRLCK);
  if (fd.valid() && ::fcntl(fd.get(), F_OFD_SETLK, &lock) != 0) fd = io::UniqueFd();
  return fd;
}

}  // namespace netblk::store
