// SPDX-License-Identifier: GPL-2.0-only
// netblk://HOST[:10809][/EXPORT] (DESIGN 5).
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace netblk::tools {

struct ServerUri {
  std::string host;
  uint16_t port = 0;
  std::string export_name;  // empty: the server's first

  // "netblk://[::1]:10809/disk"; parse_server_uri() of it gives the same.
  std::string text() const;
  // "[::1]:10809"
  std::string address() const;
};

// Whether the text is meant as a URI of any kind, not as a path.
bool looks_like_uri(const std::string& text);

// An error says what is wrong with the text, and is the caller's mistake (exit status 2).
Result<ServerUri> parse_server_uri(const std::string& text);

}  // namespace netblk::tools
