// SPDX-License-Identifier: GPL-2.0-only
// What can be attached: an export of a netblk or an NBD server, or a store of this machine.
#pragma once

#include <optional>
#include <string>

#include "base/result.h"
#include "netblk_uri.h"
#include "store_spec.h"

namespace netblk::tools {

struct Source {
  std::string text;  // the same for the same disk; parse_source() of it gives the same
  std::optional<ServerUri> uri;  // nothing: a store

  bool is_store() const { return !uri; }
  bool is_netblk() const { return uri && !uri->is_nbd(); }
  bool is_nbd() const { return uri && uri->is_nbd(); }
  // Whether another helper finds the same disk.
  bool survives_helper() const {
    return !is_store() || (!text.starts_with("mem:") && !has_discarded_overlay(text));
  }
};

// A URI as parse_server_uri() takes it, or a STORE.
Result<Source> parse_source(const std::string& text);

}  // namespace netblk::tools
