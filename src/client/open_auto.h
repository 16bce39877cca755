// SPDX-License-Identifier: GPL-2.0-only
// auto: netblk/2 where the server speaks it, else netblk/1 (DESIGN 4.2).
#pragma once

#include <memory>

#include "base/result.h"
#include "client/netblk1_client.h"
#include "client/netblk2_client.h"

namespace netblk::client {

// One of the two; never both.
struct OpenedAuto {
  std::unique_ptr<Netblk2Client> netblk2;
  std::unique_ptr<Netblk1Client> netblk1;

  block::Device& device() {
    if (netblk2) return *netblk2;
    return *netblk1;
  }
};

// Says hello; a server that closes, answers 0x01 or is silent for a second is asked as netblk/1 on a new connection,
// by `connect`. What was opened as netblk/2 stays that for its life. Silence counts only where netblk/1 would do: without
// netblk2.export_name, and with netblk1.size_bytes. EINVAL: it is netblk/1, and there is no size. ECONNRESET: it does not
// speak netblk/2, and an export is named. Any other failure of netblk/2 is the answer.
Result<OpenedAuto> open_auto(io::Backend& backend, const io::Clock& clock, std::unique_ptr<io::Dialer> dialer,
                             const Options2& netblk2, Connect connect, const Options& netblk1);

}  // namespace netblk::client
