// SPDX-License-Identifier: GPL-2.0-only
// The I/O back end of a program that does not ask its user: io_uring where the kernel lets it, else epoll.
#pragma once

#include <memory>

#include "base/result.h"
#include "io/loop.h"

namespace netblk::tools {

// file_threads: with epoll, how many threads read and write files.
Result<std::unique_ptr<io::Backend>> make_backend(unsigned file_threads = 8);

}  // namespace netblk::tools
