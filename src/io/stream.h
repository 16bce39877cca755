// SPDX-License-Identifier: GPL-2.0-only
// Stream and Listener: what a transport yields, whatever carries it.
#pragma once

#include <sys/uio.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>

#include "io/fd.h"
#include "io/op.h"

namespace netblk::io {

// A connected byte stream. Belongs to the loop that made it; used on that loop's thread only. At most one recv and one
// send are in flight at a time. The destructor closes, and aborts when an operation is still in flight.
class Stream {
 public:
  virtual ~Stream() = default;

  // result: bytes received (often fewer than asked), 0 at the end of the stream, or a negative errno value.
  virtual bool recv(Op& op, std::span<std::byte> into) = 0;

  // What is there already, without waiting; no recv is in flight. Bytes, 0 at the end, -EAGAIN when nothing is there, or
  // another negative errno value.
  virtual int32_t recv_now(std::span<std::byte> into) = 0;

  // Waits until recv_now() has something to say, with no memory held meanwhile. Counts as a recv. result: 0, or
  // -EOPNOTSUPP where the transport cannot, or another negative errno value.
  virtual bool readable(Op& op) { return op.finish_now(-EOPNOTSUPP); }

  // Gathers up to limits::kKernelMaxIov parts. result: bytes sent (often fewer than given) or a negative errno value.
  // The parts and what they name live until the operation ended. Never raises SIGPIPE.
  virtual bool send(Op& op, std::span<const iovec> parts) = 0;

  // Sends what fits now: how many bytes, or as send_file_now(). more: what is sent next follows at once, and may travel
  // with it.
  virtual int32_t send_now(std::span<const iovec> /*parts*/, bool /*more*/) { return -EOPNOTSUPP; }

  // Sends bytes of a file without passing user space, as many as fit now: how many (0: the file ends there), -EAGAIN when
  // nothing fits, -EOPNOTSUPP where the transport cannot, or another negative errno value. Waits for the disk below the
  // file. No send is in flight.
  virtual int32_t send_file_now(int /*fd*/, uint64_t /*offset*/, size_t /*bytes*/) { return -EOPNOTSUPP; }

  // Ends what is in flight by its own completion: reads see the end of the stream, sends fail.
  virtual void shutdown() = 0;

  // Ends only the reading half: a recv in flight sees the end of the stream; replies can still be sent.
  virtual void shutdown_read() = 0;

  // Ends only the writing half: the peer sees the end of the stream after what was sent.
  virtual void shutdown_write() = 0;

  // Bytes that were sent and that the peer's system has not acknowledged; 0 where the transport cannot tell.
  virtual size_t unsent_bytes() const = 0;

  // As shutdown(), and the peer sees a reset (TCP RST) where the transport knows it, instead of an orderly end.
  virtual void abort() = 0;
};

// A listening socket, owned by one loop.
class Listener {
 public:
  virtual ~Listener() = default;

  // result: a new descriptor that the caller owns (close-on-exec), or a negative errno value.
  virtual bool accept(Op& op) = 0;

  // An accept in flight, and every later one, ends with -ECANCELED. The socket itself stays as it is: whoever gave it to
  // this process (socket activation) may go on with it.
  virtual void shutdown() = 0;
};

inline auto recv(Stream& stream, std::span<std::byte> into) {
  return await([&stream, into](Op& op) { return stream.recv(op, into); });
}
inline auto readable(Stream& stream) {
  return await([&stream](Op& op) { return stream.readable(op); });
}
inline auto send(Stream& stream, std::span<const iovec> parts) {
  return await([&stream, parts](Op& op) { return stream.send(op, parts); });
}
inline auto accept(Listener& listener) {
  return await([&listener](Op& op) { return listener.accept(op); });
}

}  // namespace netblk::io
