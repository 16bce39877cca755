// SPDX-License-Identifier: GPL-2.0-only
// What a disk of ublk is served from, in its helper process: a client or a store, as one Device on one thread.
#pragma once

#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "attach/ublk/ublk_control.h"
#include "base/result.h"
#include "block/device.h"
#include "io/loop.h"
#include "netblk_attach.h"
#include "netblk_nbd_source.h"

namespace netblk::tools {

class UblkSource {
 public:
  virtual ~UblkSource() = default;

  virtual block::Device& device() = 0;
  // Runs until the source is destroyed, by when nothing of it is in flight.
  virtual io::Loop& loop() = 0;
  virtual attach::UblkTraits traits() = 0;

  // Which contents these are (block::Generation), where another process can compare; nothing: the source does not tell.
  virtual std::optional<block::Generation> generation() = 0;
  // Looks whether the size has changed.
  virtual void refresh() {}

  // For `netblk status`.
  virtual nlohmann::json live_state() = 0;
  // What the control socket answers to "reset".
  virtual std::string reset_lost(const std::string& disk) = 0;
};

// Opens what `source` names. `backend`, whose loops take commands, and `clock` outlive the result.
Result<std::unique_ptr<UblkSource>> open_ublk_source(io::Backend& backend, const io::Clock& clock, const NbdSource& source,
                                                     const AttachOptions& options);

}  // namespace netblk::tools
