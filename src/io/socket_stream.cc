// SPDX-License-Identifier: GPL-2.0-only
#include "io/socket_stream.h"

#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

namespace netblk::io {

void SocketStream::shutdown() { ::shutdown(socket_.get(), SHUT_RDWR); }
void SocketStream::shutdown_read() { ::shutdown(socket_.get(), SHUT_RD); }
void SocketStream::shutdown_write() { ::shutdown(socket_.get(), SHUT_WR); }

size_t SocketStream::unsent_bytes() const {
  // A connection that was reset keeps its count for ever, and delivers nothing more.
  tcp_info info{};
  socklen_t length = sizeof info;
  if (::getsockopt(socket_.get(), IPPROTO_TCP, TCP_INFO, &info, &length) == 0 && info.tcpi_state == TCP_CLOSE) return 0;
  int bytes = 0;
  return ::ioctl(socket_.get(), SIOCOUTQ, &bytes) == 0 && bytes > 0 ? static_cast<size_t>(bytes) : 0;
}

}  // namespace netblk::io
