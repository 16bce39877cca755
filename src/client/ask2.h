// SPDX-License-Identifier: GPL-2.0-only
// Questions to a netblk/2 server that make no session: what an export is, and which exports there are.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "client/netblk2.h"
#include "coro/task.h"
#include "io/dialer.h"
#include "io/loop.h"

namespace netblk::client {

struct ExportEntry {
  std::string name;
  uint64_t size_bytes = 0;
  bool read_only = false;
};

// Each question is answered within timeout_ms from the dial to the answer, or fails: ETIMEDOUT, ENOENT, EPERM;
// EPROTONOSUPPORT: the server does not speak netblk/2; EPROTO: its answer makes no sense.
// In the info, what is negotiated says what the server would agree to, and session_id is zero.
coro::Task<Result<Session2Info>> ask_info_on(io::Loop& loop, io::Dialer& dialer, std::string export_name,
                                             uint64_t timeout_ms);
coro::Task<Result<std::vector<ExportEntry>>> ask_list_on(io::Loop& loop, io::Dialer& dialer, uint64_t timeout_ms);

// The same for a caller without a loop; they block.
Result<Session2Info> ask_info(io::Backend& backend, const io::Clock& clock, io::Dialer& dialer,
                              const std::string& export_name, uint64_t timeout_ms);
Result<std::vector<ExportEntry>> ask_list(io::Backend& backend, const io::Clock& clock, io::Dialer& dialer,
                                          uint64_t timeout_ms);

}  // namespace netblk::client
