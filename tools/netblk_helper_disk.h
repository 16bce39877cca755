// SPDX-License-Identifier: GPL-2.0-only
// The disk of any source in a helper process: a netblk server's, an NBD server's, or a store of this machine.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "base/result.h"
#include "block/device.h"
#include "io/loop.h"
#include "netblk_source.h"
#include "netblk_state.h"

namespace netblk::tools {

// What a front end may tell of the disk beyond its geometry.
struct DiskTraits {
  uint32_t block_bytes = 1;  // offsets and lengths are multiples of it
  uint32_t preferred_bytes = 4096;
  bool volatile_cache = true;  // writes are durable after a flush only
  bool fua = true;             // or with it, each by itself
  bool can_write_zeroes = true;
};

class HelperDisk {
 public:
  // Every request has ended before.
  virtual ~HelperDisk() = default;

  virtual block::Device& device() = 0;
  // Of the disk's own thread: requests that belong to it change threads least. Runs as long as the disk is there.
  virtual io::Loop& loop() = 0;
  virtual DiskTraits traits() const { return {}; }
  // Which contents these are (block::Generation), where another process can compare; nothing: the source does not tell.
  virtual std::optional<block::Generation> generation() const { return std::nullopt; }
  // Looks whether the size has changed, where nobody tells of it.
  virtual void refresh() {}
  // For `netblk status`.
  virtual nlohmann::json live_state() = 0;
  // What the control socket answers to "reset": "ok", or "nothing" where nothing was lost.
  virtual std::string reset_lost(const std::string& name) = 0;
};

// Errors in words, with what to do. purpose: who we are to a netblk/2 server, the same at each start on this machine.
// unflushed: what an earlier helper's users were told of and nothing has flushed since, for a client that judges losses.
// `backend` and `clock` outlive the disk.
Result<std::unique_ptr<HelperDisk>> open_helper_disk(io::Backend& backend, const io::Clock& clock, const Source& source,
                                                     const AttachOptions& options, const std::string& purpose,
                                                     uint64_t unflushed = 0);

}  // namespace netblk::tools
