// SPDX-License-Identifier: GPL-2.0-only
// The disk of a netblk server in a helper process, whichever version its server speaks.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "client/open_auto.h"
#include "netblk_attach.h"
#include "netblk_uri.h"

namespace netblk::tools {

class HelperClient {
 public:
  // purpose: the same client at each start on this machine. `backend` and `clock` outlive the client.
  Status open(io::Backend& backend, const io::Clock& clock, const ServerUri& uri, const AttachOptions& options,
              const std::string& purpose);
  void close() { client_ = {}; }

  block::Device& device() { return client_.device(); }
  // What is in force; nothing: the server speaks netblk/1.
  std::optional<client::Session2Info> info2() const {
    return client_.netblk2 ? std::optional(client_.netblk2->info()) : std::nullopt;
  }
  io::Loop& loop() { return client_.netblk2 ? client_.netblk2->loop() : client_.netblk1->loop(); }

  // For `netblk status`.
  nlohmann::json live_state();
  // What the control socket answers to "reset".
  std::string reset_lost(const std::string& disk);

 private:
  client::OpenedAuto client_;
};

}  // namespace netblk::tools
