// SPDX-License-Identifier: GPL-2.0-only
// netblk://HOST[:10809][/EXPORT] (DESIGN 5), and NBD's own, as its public text has them: nbd://HOST[:10809][/EXPORT] and
// nbd+unix:///EXPORT?socket=PATH.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"

namespace netblk::tools {

struct ServerUri {
  enum class Protocol : uint8_t { kNetblk, kNbd };

  std::string host{};  // empty with a socket
  uint16_t port = 0;
  std::string export_name{};  // empty: the server's first, or NBD's default
  Protocol protocol = Protocol::kNetblk;
  std::string socket{};  // of nbd+unix: a path; one that begins with a zero byte is abstract

  bool is_nbd() const { return protocol == Protocol::kNbd; }
  // "netblk://[::1]:10809/disk", "nbd+unix:///disk?socket=/run/nbd"; parse_server_uri() of it gives the same.
  std::string text() const;
  // "[::1]:10809", or the socket's path
  std::string address() const;
};

// Whether the text is meant as a URI of any kind, not as a path.
bool looks_like_uri(const std::string& text);

// An error says what is wrong with the text, and is the caller's mistake (exit status 2).
Result<ServerUri> parse_server_uri(const std::string& text);

}  // namespace netblk::tools
