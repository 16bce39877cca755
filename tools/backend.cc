// SPDX-License-Identifier: GPL-2.0-only
#include "backend.h"

#include "base/log.h"
#include "io/epoll/epoll_backend.h"
#include "io/uring/uring_backend.h"

namespace netblk::tools {

Result<std::unique_ptr<io::Backend>> make_backend(unsigned file_threads) {
  auto ring = io::make_uring_backend();
  if (ring) return ring;
  log_info("{}; using epoll", ring.error().message);
  return io::make_epoll_backend(file_threads);
}

}  // namespace netblk::tools
