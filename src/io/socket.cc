// SPDX-License-Identifier: GPL-2.0-only
#include "io/socket.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/sendfile.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <cerrno>

#include "base/check.h"

namespace netblk::io {

void set_nonblocking(int fd, bool on) {
  const int flags = ::fcntl(fd, F_GETFL);
  const int wanted = on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
  NETBLK_CHECK(flags >= 0 && ::fcntl(fd, F_SETFL, wanted) == 0, "cannot change a descriptor's O_NONBLOCK");
}

void abort_now(int fd) {
  // A shutdown would say FIN first, and the RST of the close would come too late: dissolving the association says RST.
  const sockaddr nobody{.sa_family = AF_UNSPEC, .sa_data = {}};
  if (::connect(fd, &nobody, sizeof nobody) != 0) ::shutdown(fd, SHUT_RDWR);
}

msghdr gathered(std::span<const iovec> parts) {
  msghdr message{};
  // sendmsg does not write through the pointer.
  message.msg_iov = const_cast<iovec*>(parts.data());
  message.msg_iovlen = parts.size();
  return message;
}

int32_t recv_now(int fd, std::span<std::byte> into) {
  for (;;) {
    const ssize_t got = ::recv(fd, into.data(), into.size(), MSG_DONTWAIT);
    if (got >= 0) return static_cast<int32_t>(got);
    if (errno != EINTR) return -errno;
  }
}

int32_t send_now(int fd, std::span<const iovec> parts, bool more) {
  const msghdr message = gathered(parts);
  for (;;) {
    const ssize_t sent = ::sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL | (more ? MSG_MORE : 0));
    if (sent >= 0) return static_cast<int32_t>(sent);
    if (errno != EINTR) return -errno;
  }
}

int32_t send_file_now(int socket, int fd, uint64_t offset, size_t bytes) {
  // sendfile has no MSG_DONTWAIT, and a ring's sockets are blocking ones. Operations in flight on the ring have taken note
  // of the descriptor's flags when they were prepared.
  const int flags = ::fcntl(socket, F_GETFL);
  const bool blocking = flags >= 0 && (flags & O_NONBLOCK) == 0;
  if (blocking) (void)::fcntl(socket, F_SETFL, flags | O_NONBLOCK);
  auto at = static_cast<off_t>(offset);
  ssize_t sent = -1;
  do sent = ::sendfile(socket, fd, &at, bytes);
  while (sent < 0 && errno == EINTR);
  const int error = errno;
  if (blocking) (void)::fcntl(socket, F_SETFL, flags);
  return sent >= 0 ? static_cast<int32_t>(sent) : -error;
}

bool is_in_memory(int fd) {
  struct statfs status {};
  return ::fstatfs(fd, &status) == 0 && (status.f_type == TMPFS_MAGIC || status.f_type == RAMFS_MAGIC);
}

int32_t read_now(int fd, std::span<std::byte> into, uint64_t offset, bool in_memory) {
  const iovec part{into.data(), into.size()};
  return read_vector_now(fd, {&part, 1}, offset, in_memory);
}

int32_t read_vector_now(int fd, std::span<const iovec> into, uint64_t offset, bool in_memory) {
  const ssize_t got = ::preadv2(fd, into.data(), static_cast<int>(into.size()), static_cast<off_t>(offset),
                                in_memory ? 0 : RWF_NOWAIT);
  if (got >= 0) return static_cast<int32_t>(got);
  if (errno == EOPNOTSUPP && !in_memory && is_in_memory(fd)) return read_vector_now(fd, into, offset, true);
  return errno == EOPNOTSUPP || errno == ENOSYS || errno == EINTR ? -EAGAIN : -errno;
}

int32_t write_now(int fd, std::span<const std::byte> from, uint64_t offset) {
  for (;;) {
    const ssize_t put = ::pwrite(fd, from.data(), from.size(), static_cast<off_t>(offset));
    if (put >= 0) return static_cast<int32_t>(put);
    if (errno != EINTR) return -errno;
  }
}

int32_t write_vector_now(int fd, std::span<const iovec> from, uint64_t offset) {
  for (;;) {
    const ssize_t put = ::pwritev(fd, from.data(), static_cast<int>(from.size()), static_cast<off_t>(offset));
    if (put >= 0) return static_cast<int32_t>(put);
    if (errno != EINTR) return -errno;
  }
}

size_t total_bytes(std::span<const iovec> parts) {
  size_t sum = 0;
  for (const iovec& part : parts) sum += part.iov_len;
  return sum;
}

static_assert(kPunchHoleMode == (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE));
static_assert(kAllocateMode == FALLOC_FL_KEEP_SIZE);
static_assert(kZeroRangeMode == (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE));

int32_t fallocate_now(int fd, int mode, uint64_t offset, uint64_t length) {
  for (;;) {
    if (::fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length)) == 0) return 0;
    if (errno != EINTR) return -errno;
  }
}

}  // namespace netblk::io
