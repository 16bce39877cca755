// SPDX-License-Identifier: GPL-2.0-only
// Addresses of internet and unix sockets.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "base/result.h"

namespace netblk::io {

// An IPv6 address, or an IPv4 one as ::ffff:a.b.c.d, with a port.
struct Address {
  std::array<uint8_t, 16> ip{};
  uint16_t port = 0;
  // Of a unix socket, which has neither: its path, or the process at its other end. Empty: an internet socket.
  std::string unix_name;

  bool is_unix() const { return !unix_name.empty(); }
  bool is_ipv4() const;
  // Of a listener: every address of the machine.
  bool is_any() const;
  // Of this machine: a loopback address, or a unix socket.
  bool is_loopback() const;
  // "192.0.2.1:10809", "[2001:db8::1]:10809", "unix:/run/disk.sock", "unix:pid=7,uid=0"
  std::string text() const;
};

// Of a connected or listening socket; an error for sockets of other families.
Result<Address> peer_address(int fd);
Result<Address> local_address(int fd);

}  // namespace netblk::io
