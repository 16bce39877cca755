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
  // netblk/1 has no names and tells no size. Where it is of no use, silence is no sign of it either, but of a slow server.
  const bool is_named = !netblk2.export_name.empty();
  const bool has_size = netblk1.size_bytes != 0;
  if (asked.silence_is_netblk1_ms == 0 && !is_named && has_size) asked.silence_is_netblk1_ms = kSilenceMs;
  OpenedAuto opened;
  auto second = Netblk2Client::open(backend, clock, std::move(dialer), asked);
  if (second) {
    opened.netblk2 = std::move(second).value();
    return opened;
  }
  const Error& why = second.error();
  if (why.code == ETIMEDOUT && !is_named && !has_size)
    return make_error(ETIMEDOUT, "{} (should it speak netblk/1, which does not tell a size: give the size)", why.message);
  if (why.code != EPROTONOSUPPORT) return std::move(second).error();
  // A server that stops closes connections too: this may pass.
  if (is_named)
    return make_error(ECONNRESET, "{}, and netblk/1 cannot name an export: should that be what it speaks, leave \"/{}\" out",
                      why.message, netblk2.export_name);
  log_info("{}: {}; going on with netblk/1", netblk1.name, why.message);
  if (!has_size) return make_error(EINVAL, "the server speaks netblk/1, which does not tell a size: give the size");
  auto first = Netblk1Client::open(backend, clock, std::move(connect), netblk1);
  if (!first) return std::move(first).error();
  opened.netblk1 = std::move(first).value();
  return opened;
}

}  // namespace netblk::client
