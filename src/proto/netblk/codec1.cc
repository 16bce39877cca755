// SPDX-License-Identifier: GPL-2.0-only
#include "proto/netblk/codec1.h"

#include <fmt/format.h>

#include "base/endian.h"
#include "base/limits.h"

namespace netblk::proto {

static_assert(NETBLK1_MAX_LENGTH == limits::kMaxRequestBytes);
static_assert(NETBLK_SECTOR_SIZE == limits::kSectorBytes);

namespace {

constexpr size_t kSectorAt = offsetof(netblk1_request, sector);
constexpr size_t kLengthAt = offsetof(netblk1_request, length);

}  // namespace

Decoded1 decode_request1(std::span<const std::byte> bytes) {
  Decoded1 decoded;
  if (bytes.empty()) return decoded;
  const auto command = static_cast<uint8_t>(bytes[0]);
  if (command < NETBLK1_CMD_READ || command > NETBLK1_CMD_DISCONNECT) {
    decoded.outcome = Decode1::kUnknownCommand;
    return decoded;
  }
  if (bytes.size() < NETBLK1_REQUEST_SIZE) return decoded;
  decoded.request = {static_cast<netblk1_command>(command), load_be<uint64_t>(&bytes[kSectorAt]),
                     load_be<uint32_t>(&bytes[kLengthAt])};
  const bool too_long = command != NETBLK1_CMD_DISCONNECT && decoded.request.length_bytes > NETBLK1_MAX_LENGTH;
  decoded.outcome = too_long ? Decode1::kTooLong : Decode1::kRequest;
  return decoded;
}

void encode_request1(const Request1& request, std::byte* to) {
  to[0] = static_cast<std::byte>(request.command);
  store_be<uint64_t>(to + kSectorAt, request.sector);
  store_be<uint32_t>(to + kLengthAt, request.length_bytes);
}

std::string refusal_text(const Decoded1& decoded, std::byte first) {
  switch (decoded.outcome) {
    case Decode1::kUnknownCommand:
      return fmt::format("unknown command 0x{:02x}", static_cast<unsigned>(first));
    case Decode1::kTooLong:
      return fmt::format("request of {} bytes, more than the {} that netblk/1 allows", decoded.request.length_bytes,
                         NETBLK1_MAX_LENGTH);
    case Decode1::kRequest:
    case Decode1::kNeedMore: break;
  }
  return "no refusal";
}

}  // namespace netblk::proto
