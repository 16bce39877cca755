// SPDX-License-Identifier: GPL-2.0-only
// TCP: addresses, listening and connecting sockets with netblk's options. The loop makes streams of them.
#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "io/address.h"
#include "io/fd.h"

namespace netblk::transport {

// A port that is taken, and to which nobody can connect before start_listening().
// host: a numeric address or a name; "", "*" and "::": every address, IPv6 and IPv4. port 0: any free one.
// Waits up to 2 s for a port in use.
// Errors name the host, the port and what to do.
Result<io::UniqueFd> tcp_bind(const std::string& host, uint16_t port);
Status start_listening(int fd);

// Blocking, with a limit for all the addresses that the name has together; the resolver has its own.
// They are tried a quarter of a second apart, side by side.
Result<io::UniqueFd> tcp_connect(const std::string& host, uint16_t port, uint64_t timeout_ms);

// Small messages go out at once; a silent dead peer is noticed within about two minutes.
void tune_tcp(int fd);

}  // namespace netblk::transport
