// SPDX-License-Identifier: GPL-2.0-only
// Where the sockets of a disk of the kernel's nbd lead: each is made with the NBD handshake done.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "base/result.h"
#include "block/device.h"
#include "io/fd.h"
#include "io/loop.h"
#include "netblk_helper_told.h"
#include "netblk_source.h"
#include "netblk_state.h"

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

  // Seconds that one request may take before its connection counts as dead. 0: the peer sees to deadlines itself; the
  // kernel only looks after requests whose connection has been replaced, and can do so for one connection.
  virtual uint64_t request_timeout_s() const = 0;
  // Its size now, where it may change while there are connections.
  virtual std::optional<uint64_t> size_bytes() = 0;
  // HelperDisk's, where the helper serves the disk.
  virtual std::optional<block::Generation> generation() = 0;
  // ToldDevice's.
  virtual void set_lost(bool lost) = 0;

  // What it knows for `netblk status` beyond the kernel's own; may be empty.
  virtual nlohmann::json live_state() = 0;
  // What the control socket answers to "reset".
  virtual std::string reset_lost(const std::string& disk) = 0;
};

// Opens what the source names. told: where is counted what the users of a disk that the helper serves are told. It, `backend`
// and `clock` outlive the peer.
Result<std::unique_ptr<NbdPeer>> open_nbd_peer(io::Backend& backend, const io::Clock& clock, const Source& source,
                                               const AttachOptions& options, const ToldFile& told);

}  // namespace netblk::tools
