// SPDX-License-Identifier: GPL-2.0-only
// What has no positions: the standard input and output, FIFOs, character devices.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "coro/task.h"
#include "io/epoll/worker_pool.h"
#include "io/fd.h"
#include "io/loop.h"

namespace netblk::tools {

// Blocking calls are made on a thread of its own, one at a time.
class PipeFile {
 public:
  PipeFile(io::Loop& loop, io::UniqueFd fd);
  ~PipeFile();

  // Bytes, fewer than asked only at the end; or a negative errno value. -ECANCELED after cancel().
  coro::Task<int64_t> read(std::span<std::byte> into);
  // 0, or a negative errno value. -ECANCELED after cancel(), with a part of it written.
  coro::Task<int64_t> write(std::span<const std::byte> from);

  // Ends what waits, and what comes later.
  void cancel();

  int fd() const { return fd_.get(); }

 private:
  struct Call;
  int64_t read_now(std::span<std::byte> into);
  int64_t write_now(std::span<const std::byte> from);
  ssize_t write_ready(std::span<const std::byte> from) const;
  coro::Task<int64_t> make(Call& call);

  io::Loop& loop_;
  io::UniqueFd fd_;
  io::UniqueFd cancelled_;  // eventfd
  mode_t kind_ = 0;         // S_IF...
  io::WorkerPool thread_{1};
};

}  // namespace netblk::tools
