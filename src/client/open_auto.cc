// SPDX-License-Identifier: GPL-2.0-only
#include "client/open_auto.h"

#include <cerrno>
#include <utility>

#include "base/log.h"

namespace netblk::client {
namespace {

constexpr uint64_t kSilenceMs = 1'000;

}  // namespace

Result<OpenedAuto> open_auto(io::Backend& backend, const io::Clock& clock, std::unique_ptr<io::Dialer> dialer,
                             const Options2& netblk2, Connect connect, const Options& netblk1) {
  Options2 asked = netblk2;
  if (asked.silence_is_netblk1_ms == 0) asked.silence_is_netblk1_ms = kSilenceMs;
  OpenedAuto opened;
  auto second = Netblk2Client::open(backend, clock, std::move(dialer), asked);
  if (second) {
    opened.netblk2 = std::move(second).value();
    return opened;
  }
  if (second.error().code != EPROTONOSUPPORT) return std::move(second).error();
  log_info("{}: {}; going on with netblk/1", netblk1.name, second.error().message);
  if (netblk1.size_bytes == 0)
    return make_error(EINVAL, "the server speaks netblk/1, which does not tell a size: give the size");
  auto first = Netblk1Client::open(backend, clock, std::move(connect), netblk1);
  if (!first) return std::move(first).error();
  opened.netblk1 = std::move(first).value();
  return opened;
}

}  // namespace netblk::client
