// SPDX-License-Identifier: GPL-2.0-only
// TCP: addresses, listening and connecting sockets with netblk's options. The loop makes streams of them.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "base/result.h"
#include "io/fd.h"

namespace netblk::transport {

// An IPv6 address, or an IPv4 one as ::ffff:a.b.c.d, with a port.
struct TcpAddress {
  std::array<uint8_t, 16> ip{};
  uint16_t port = 0;

  bool is_ipv4() const;
  bool is_loopback() const;
  // "192.0.2.1:10809", "[2001:db8::1]:10809"
  std::string text() const;
};

// host: a numeric address or a name; "", "*" and "::": every address, IPv6 and IPv4. port 0: any free one.
// Waits up to 2 s for a port in use.
// Errors name the host, the port and what to do.
Result<io::UniqueFd> tcp_listen(const std::string& host, uint16_t port);

// Blocking, with a limit for each address that the name has.
Result<io::UniqueFd> tcp_connect(const std::string& host, uint16_t port, uint64_t timeout_ms);

// Small messages go out at once; a silent dead peer is noticed within about two minutes.
void tune_tcp(int fd);

// Of a connected or listening socket.
Result<TcpAddress> peer_address(int fd);
Result<TcpAddress> local_address(int fd);

}  // namespace netblk::transport
