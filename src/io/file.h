// SPDX-License-Identifier: GPL-2.0-only
// File: positioned storage, so that a store can be run on a simulated disk.
#pragma once

#include <sys/uio.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>

#include "io/op.h"

namespace netblk::io {

class Loop;

// Thread-safe: an operation runs on the loop that it is given, which must be the calling thread's. Offsets and lengths
// are in bytes. The owner keeps a File until all its operations have ended.
class File {
 public:
  virtual ~File() = default;

  // result: bytes moved (may be short; 0 from read is the end of the file) or a negative errno value.
  virtual bool read(Loop& loop, Op& op, std::span<std::byte> into, uint64_t offset) = 0;
  virtual bool write(Loop& loop, Op& op, std::span<const std::byte> from, uint64_t offset) = 0;

  // The same into, or from, several parts in order: at least one, at most limits::kKernelMaxIov, none empty. The parts and
  // what they name live until the operation ended. A move that ends with the first part is short, as any may be.
  virtual bool read_vector(Loop& loop, Op& op, std::span<const iovec> into, uint64_t offset) {
    return read(loop, op, {static_cast<std::byte*>(into[0].iov_base), into[0].iov_len}, offset);
  }
  virtual bool write_vector(Loop& loop, Op& op, std::span<const iovec> from, uint64_t offset) {
    return write(loop, op, {static_cast<const std::byte*>(from[0].iov_base), from[0].iov_len}, offset);
  }

  // Everything written before the start is durable when result is 0 (fdatasync). An error is final: the caller must
  // not take a later success for the earlier data.
  virtual bool datasync(Loop& loop, Op& op) = 0;

  // Deallocates: later reads give zeroes, the size is kept. -EOPNOTSUPP where the storage cannot.
  virtual bool punch_hole(Loop& loop, Op& op, uint64_t offset, uint64_t length) = 0;

  // Later reads give zeroes, and the space stays allocated. -EOPNOTSUPP where the storage cannot.
  virtual bool zero_range(Loop&, Op& op, uint64_t, uint64_t) { return op.finish_now(-EOPNOTSUPP); }

  // A later write there does not fail for want of space; what is there stays, and the size is kept. -EOPNOTSUPP where the
  // storage cannot.
  virtual bool allocate(Loop&, Op& op, uint64_t /*offset*/, uint64_t /*length*/) { return op.finish_now(-EOPNOTSUPP); }
};

}  // namespace netblk::io
