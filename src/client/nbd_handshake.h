// SPDX-License-Identifier: GPL-2.0-only
// NBD's negotiation on a socket of the caller, for whoever hands the socket on (a kernel, say). It blocks.
#pragma once

#include <cstdint>
#include <vector>

#include "base/result.h"
#include "proto/nbd/client_greeting.h"

namespace netblk::client {

using proto::NbdExport;
using proto::NbdListed;
using proto::NbdWish;

// What a wish for a kernel is: nbd.ko knows simple replies only, and no block status.
inline NbdWish nbd_kernel_wish(std::string export_name) {
  return {.export_name = std::move(export_name), .structured = false, .extended = false, .allocation = false};
}

// fd is connected; whether it blocks does not matter. After a wish of NbdWish::Purpose::kUse nothing but the handshake has
// been read, and what comes next are replies. Otherwise the server has been told goodbye. Ends within timeout_ms
// (ETIMEDOUT); its other errors are those of proto::NbdGreeting::result().
Result<NbdExport> nbd_handshake(int fd, const NbdWish& wish, uint64_t timeout_ms = 15'000);

// The exports of a server, with what it says of each.
Result<std::vector<NbdListed>> nbd_list(int fd, uint64_t timeout_ms = 15'000);

}  // namespace netblk::client
