// SPDX-License-Identifier: GPL-2.0-only
// The loop on epoll, with a pool of threads for what epoll cannot wait on (files): where io_uring is refused.
#pragma once

#include <memory>

#include "base/result.h"
#include "io/loop.h"

namespace netblk::io {

// threads: of the file pool that the loops share, at least 1.
Result<std::unique_ptr<Backend>> make_epoll_backend(unsigned threads);

}  // namespace netblk::io
