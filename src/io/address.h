// SPDX-License-Identifier: GPL-2.0-only
// Addresses of internet sockets.
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

  bool is_ipv4() const;
  bool is_loopback() const;
  // "192.0.2.1:10809", "[2001:db8::1]:10809"
  std::string text() const;
};

// Of a connected or listening socket; an error for sockets of other families.
Result<Address> peer_address(int fd);
Result<Address> local_address(int fd);

}  // namespace netblk::io
