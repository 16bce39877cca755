// SPDX-License-Identifier: GPL-2.0-only
// netblk/1 on the wire, without I/O (DESIGN 4.1).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "protocol/netblk_wire.h"

namespace netblk::proto {

struct Request1 {
  netblk1_command command = NETBLK1_CMD_READ;
  uint64_t sector = 0;
  uint32_t length_bytes = 0;
};

enum class Decode1 {
  kRequest,        // `request` is whole; a WRITE's data follows it
  kNeedMore,       // fewer than NETBLK1_REQUEST_SIZE bytes, legal so far
  kUnknownCommand, // the first byte belongs to no command: close
  kTooLong,        // a READ or WRITE over NETBLK1_MAX_LENGTH: close
};

struct Decoded1 {
  Decode1 outcome = Decode1::kNeedMore;
  Request1 request;
};

// Decodes one request header at the start of `bytes`. Looks at no more than NETBLK1_REQUEST_SIZE bytes; any bytes are
// legal input. The range is not checked here: a bad one is answered, not closed upon.
Decoded1 decode_request1(std::span<const std::byte> bytes);

// Writes NETBLK1_REQUEST_SIZE bytes.
void encode_request1(const Request1& request, std::byte* to);

// Why a connection is closed upon `decoded`, for the log.
std::string refusal_text(const Decoded1& decoded, std::byte first);

}  // namespace netblk::proto
