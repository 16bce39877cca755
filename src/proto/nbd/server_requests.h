// SPDX-License-Identifier: GPL-2.0-only
// The server's half of NBD's transmission phase on the wire, without I/O: requests in, replies out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "protocol/nbd_wire.h"

namespace netblk::proto {

// Which headers the handshake agreed on.
enum class NbdHeaders : uint8_t { kSimple, kStructured, kExtended };

struct NbdRequest {
  uint16_t flags = 0;
  uint16_t type = 0;  // any: see enum nbd_cmd
  uint64_t cookie = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
};

inline uint32_t nbd_request_size(NbdHeaders headers) {
  return headers == NbdHeaders::kExtended ? NBD_EXTENDED_REQUEST_SIZE : NBD_REQUEST_SIZE;
}

// Of nbd_request_size() bytes. Null, or why the connection must close: nothing but the magic number is looked at.
const char* decode_nbd_request(const std::byte* from, NbdHeaders headers, NbdRequest& request);

// What follows the header. A WRITE "always sends a payload": with extended headers it is to say so by a flag, which QEMU's
// client (8.2 and later) leaves out, and QEMU's server and libnbd do not miss.
inline uint64_t nbd_payload_bytes(const NbdRequest& request, NbdHeaders headers) {
  const bool carries = request.type == NBD_CMD_WRITE || (headers == NbdHeaders::kExtended &&
                                                         (request.flags & NBD_CMD_FLAG_PAYLOAD_LEN) != 0);
  return carries ? request.length : 0;
}

// The flags that a command may carry, of those that the handshake allows.
uint16_t nbd_allowed_flags(uint16_t type, NbdHeaders headers, bool status_payload);

// NBD_CMD_BLOCK_STATUS with a payload: the length of its effect and which of the selected contexts are asked for, or what is
// wrong.
const char* decode_nbd_status_payload(std::span<const std::byte> payload, std::span<const uint32_t> selected, uint64_t& length,
                                      std::vector<uint32_t>& asked);

// The protocol's number for an errno value.
uint32_t nbd_error(int error);

// ---- Replies. Each function writes to `to` and returns how many bytes. `offset` is the request's.

// The longest of what reply_* write.
inline constexpr size_t kNbdReplyBytes = NBD_EXTENDED_REPLY_SIZE + NBD_CHUNK_OFFSET_SIZE;

struct NbdAnswered {
  uint64_t cookie = 0;
  uint64_t offset = 0;
};

// A request that carries nothing back has succeeded.
size_t nbd_reply_done(NbdHeaders headers, const NbdAnswered& request, std::byte* to);

// It has failed; the text follows, but with simple replies, which have none. error: NBD_E*.
size_t nbd_reply_error(NbdHeaders headers, const NbdAnswered& request, uint32_t error, std::string_view text,
                       std::byte* to);

// Data of a READ, which follow. With simple replies they are the whole of it.
size_t nbd_reply_data(NbdHeaders headers, const NbdAnswered& request, uint64_t at, uint32_t length, bool last,
                      std::byte* to);

// Zeroes of a READ. Not with simple replies.
size_t nbd_reply_hole(NbdHeaders headers, const NbdAnswered& request, uint64_t at, uint32_t length, bool last,
                      std::byte* to);
inline constexpr size_t kNbdHoleBytes = NBD_EXTENDED_REPLY_SIZE + NBD_CHUNK_HOLE_SIZE;

// The header and fixed part of a block status of `count` extents, and one of these behind it. Not with simple replies.
size_t nbd_reply_status(NbdHeaders headers, const NbdAnswered& request, uint32_t id, uint32_t count, bool last, std::byte* to);
inline size_t nbd_extent_size(NbdHeaders headers) {
  return headers == NbdHeaders::kExtended ? NBD_EXTENDED_EXTENT_SIZE : NBD_EXTENT_SIZE;
}
void nbd_put_extent(NbdHeaders headers, uint64_t length, uint32_t status, std::byte* to);

// "READ", for the log.
const char* nbd_command_text(uint16_t type);

}  // namespace netblk::proto
