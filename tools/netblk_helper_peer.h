// SPDX-License-Identifier: GPL-2.0-only
// Where the sockets of a disk of the kernel's nbd lead: each is made with the NBD handshake done.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "base/result.h"
#include "io/fd.h"
#include "io/loop.h"
#include "netblk_attach.h"
#include "netblk_source.h"

namespace netblk::tools {

// A connection in the transmission phase, with simple replies: the kernel knows no others.
struct NbdConnection {
  io::UniqueFd fd;
  uint64_t size_bytes = 0;
  uint16_t flags = 0;  // NBD_FLAG_*
  uint32_t min_block_bytes = 1;
  uint32_t max_payload_bytes = 32u << 20;
};

class NbdPeer {
 public:
  virtual ~NbdPeer() = default;

  // Blocking, within about that time. Thread-safe.
  virtual Result<NbdConnection> connect(uint64_t timeout_ms) = 0;

  // Seconds that one request may take before its connection counts as dead.
  virtual uint64_t request_timeout_s() const = 0;

  // What it knows for `netblk status` beyond the kernel's own; may be empty.
  virtual nlohmann::json live_state() = 0;
  // What the control socket answers to "reset".
  virtual std::string reset_lost(const std::string& disk) = 0;
};

// Opens what the source names. `backend` and `clock` outlive the peer.
Result<std::unique_ptr<NbdPeer>> open_nbd_peer(io::Backend& backend, const io::Clock& clock, const Source& source,
                                               const AttachOptions& options);

}  // namespace netblk::tools
