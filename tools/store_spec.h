// SPDX-License-Identifier: GPL-2.0-only
// STORE as people write it (DESIGN 5), and how it is opened.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "block/device.h"
#include "io/loop.h"

namespace netblk::tools {

//   file:PATH[?size=10G][&direct=1]   mem:SIZE   null:SIZE
// and for any of them: readonly=1, delay-ms=N, fault=COMMANDS (read+write+flush+trim) with fault-one-in=N, fault-seed=N.
// In PATH, %XX stands for a byte, so that a '?' (%3F) or ',' (%2C) can be written.
// state_folder: where the records of file: stores are kept (store/identity.h); empty: beside each.
// lock_wait_ms: how long to wait for a file that another process has; the wait is told on stdout, and ends when a
// SIGTERM or SIGINT is pending.
Result<std::unique_ptr<block::Device>> open_store(io::Backend& backend, const std::string& text, bool read_only,
                                                  const std::string& state_folder, uint64_t lock_wait_ms);

}  // namespace netblk::tools
