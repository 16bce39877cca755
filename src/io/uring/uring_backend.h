// SPDX-License-Identifier: GPL-2.0-only
// The loop on io_uring: the one place that knows liburing (2.3 in Debian 12).
#pragma once

#include <memory>

#include "base/result.h"
#include "io/loop.h"

namespace netblk::io {

// Probes the kernel. An error (message in words) where io_uring is refused, as in most containers, or lacks an
// operation that we need: the caller falls back to epoll.
Result<std::unique_ptr<Backend>> make_uring_backend();

}  // namespace netblk::io
