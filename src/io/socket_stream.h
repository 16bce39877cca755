// SPDX-License-Identifier: GPL-2.0-only
// What the streams of both back ends share: the socket, and how it ends.
#pragma once

#include <utility>

#include "io/fd.h"
#include "io/socket.h"
#include "io/stream.h"

namespace netblk::io {

class SocketStream : public Stream {
 public:
  void shutdown() final;
  void shutdown_read() final;
  void shutdown_write() final;
  void abort() final { abort_now(socket_.get()); }
  size_t unsent_bytes() const final;
  int32_t recv_now(std::span<std::byte> into) final { return io::recv_now(socket_.get(), into); }
  int32_t send_now(std::span<const iovec> parts, bool more) final { return io::send_now(socket_.get(), parts, more); }
  int32_t send_file_now(int fd, uint64_t offset, size_t bytes) final {
    return io::send_file_now(socket_.get(), fd, offset, bytes);
  }

 protected:
  explicit SocketStream(UniqueFd socket) : socket_(std::move(socket)) {}
  int socket() const { return socket_.get(); }

 private:
  UniqueFd socket_;
};

}  // namespace netblk::io
