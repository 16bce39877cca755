// SPDX-License-Identifier: GPL-2.0-only
// Asking a server about its exports: a hello and a welcome of netblk/2 without a session, or NBD's negotiation.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "base/result.h"
#include "client/nbd_handshake.h"
#include "io/fd.h"
#include "netblk_uri.h"
#include "proto/netblk/codec2.h"

namespace netblk::tools {

struct ExportInfo {
  // Nothing: the server speaks netblk/1 only, which tells nothing about an export.
  std::optional<proto::Welcome2> welcome;
  // Of one question and its answer; the shortest of a few.
  uint64_t round_trip_us = 0;
};

// About the export that the URI names. Errors are in words, the server's own where it gave some.
Result<ExportInfo> ask_info(const ServerUri& uri, uint64_t timeout_ms);

// All exports, however many questions that takes. EPROTONOSUPPORT: the server speaks netblk/1 only.
Result<std::vector<proto::Export2>> ask_list(const ServerUri& uri, uint64_t timeout_ms);

// The same of an NBD server; handshake_us: how long its negotiation took.
struct NbdExportInfo {
  client::NbdExport found;
  uint64_t handshake_us = 0;
};
Result<NbdExportInfo> ask_nbd_info(const ServerUri& uri, uint64_t timeout_ms);
Result<std::vector<client::NbdListed>> ask_nbd_list(const ServerUri& uri, uint64_t timeout_ms);

// A connected, blocking socket.
Result<io::UniqueFd> connect_to(const ServerUri& uri, uint64_t timeout_ms);

}  // namespace netblk::tools
