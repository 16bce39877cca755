// SPDX-License-Identifier: GPL-2.0-only
#include "io/socket_stream.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

namespace netblk::io {

void SocketStream::shutdown() { ::shutdown(socket_.get(), SHUT_RDWR); }
void SocketStream::shutdown_read() { ::shutdown(socket_.get(), SHUT_RD); }
void SocketStream::shutdown_write() { ::shutdown(socket_.get(), SHUT_WR); }

size_t SocketStream::unsent_bytes() const {
  int bytes = 0;
  return ::ioctl(socket_.get(), SIOCOUTQ, &bytes) == 0 && bytes > 0 ? static_cast<size_t>(bytes) : 0;
}

}  // namespace netblk::io
