// SPDX-License-Identifier: GPL-2.0-only
// Any bytes into the netblk/1 decoder: what it accepts must be what it was, encoded again, and what it refuses must
// have a reason for the log.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

#include "proto/netblk/codec1.h"

using netblk::proto::Decode1;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  // As a session does: one header after the other, each WRITE's data skipped.
  while (!bytes.empty()) {
    const netblk::proto::Decoded1 decoded = netblk::proto::decode_request1(bytes);
    if (decoded.outcome == Decode1::kNeedMore) {
      if (bytes.size() >= NETBLK1_REQUEST_SIZE) std::abort();
      return 0;
    }
    if (decoded.outcome != Decode1::kRequest) {
      if (netblk::proto::refusal_text(decoded, bytes[0]).empty()) std::abort();
      return 0;
    }
    std::array<std::byte, NETBLK1_REQUEST_SIZE> again;
    netblk::proto::encode_request1(decoded.request, again.data());
    if (std::memcmp(again.data(), bytes.data(), again.size()) != 0) std::abort();
    if (decoded.request.command != NETBLK1_CMD_DISCONNECT && decoded.request.length_bytes > NETBLK1_MAX_LENGTH)
      std::abort();
    bytes = bytes.subspan(again.size());
    if (decoded.request.command != NETBLK1_CMD_WRITE) continue;
    if (decoded.request.length_bytes > bytes.size()) return 0;
    bytes = bytes.subspan(decoded.request.length_bytes);
  }
  return 0;
}
