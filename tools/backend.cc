// SPDX-License-Identifier: GPL-2.0-only
#include "backend.h"

#include "base/log.h"
#include "io/epoll/epoll_backend.h"
#include "io/uring/uring_backend.h"

namespace netblk::tools {
namespace {

constexpr unsigned kFileThreads = 8;

}  // namespace

Result<std::unique_ptr<io::Backend>> make_backend() {
  auto ring = io::make_uring_backend();
  if (ring) return ring;
  log_info("{}; using epoll", ring.error().message);
  return io::make_epoll_backend(kFileThreads);
}

}  // namespace netblk::tools
