// SPDX-License-Identifier: GPL-2.0-only
#include "proto/nbd/server_requests.h"

#include <algorithm>
#include <cerrno>

#include "base/endian.h"

namespace netblk::proto {
namespace {

// A chunk's header. Simple replies have none.
size_t put_chunk(NbdHeaders headers, const NbdAnswered& request, uint16_t type, bool last, uint32_t length,
                 std::byte* to) {
  const uint16_t flags = last ? NBD_REPLY_FLAG_DONE : 0;
  if (headers == NbdHeaders::kExtended) {
    store_be<uint32_t>(to + offsetof(nbd_extended_reply, magic), NBD_EXTENDED_REPLY_MAGIC);
    store_be<uint16_t>(to + offsetof(nbd_extended_reply, flags), flags);
    store_be<uint16_t>(to + offsetof(nbd_extended_reply, type), type);
    store_be<uint64_t>(to + offsetof(nbd_extended_reply, cookie), request.cookie);
    store_be<uint64_t>(to + offsetof(nbd_extended_reply, offset), request.offset);
    store_be<uint64_t>(to + offsetof(nbd_extended_reply, length), length);
    return NBD_EXTENDED_REPLY_SIZE;
  }
  store_be<uint32_t>(to + offsetof(nbd_structured_reply, magic), NBD_STRUCTURED_REPLY_MAGIC);
  store_be<uint16_t>(to + offsetof(nbd_structured_reply, flags), flags);
  store_be<uint16_t>(to + offsetof(nbd_structured_reply, type), type);
  store_be<uint64_t>(to + offsetof(nbd_structured_reply, cookie), request.cookie);
  store_be<uint32_t>(to + offsetof(nbd_structured_reply, length), length);
  return NBD_STRUCTURED_REPLY_SIZE;
}

size_t put_simple(const NbdAnswered& request, uint32_t error, std::byte* to) {
  store_be<uint32_t>(to + offsetof(nbd_simple_reply, magic), NBD_SIMPLE_REPLY_MAGIC);
  store_be<uint32_t>(to + offsetof(nbd_simple_reply, error), error);
  store_be<uint64_t>(to + offsetof(nbd_simple_reply, cookie), request.cookie);
  return NBD_SIMPLE_REPLY_SIZE;
}

}  // namespace

const char* decode_nbd_request(const std::byte* from, NbdHeaders headers, NbdRequest& request) {
  static_assert(offsetof(nbd_request, flags) == offsetof(nbd_extended_request, flags) &&
                offsetof(nbd_request, type) == offsetof(nbd_extended_request, type) &&
                offsetof(nbd_request, cookie) == offsetof(nbd_extended_request, cookie) &&
                offsetof(nbd_request, offset) == offsetof(nbd_extended_request, offset) &&
                offsetof(nbd_request, length) == offsetof(nbd_extended_request, length));
  const bool extended = headers == NbdHeaders::kExtended;
  const auto magic = load_be<uint32_t>(from + offsetof(nbd_request, magic));
  if (magic != (extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC)) return "a request without its magic number";
  request.flags = load_be<uint16_t>(from + offsetof(nbd_request, flags));
  request.type = load_be<uint16_t>(from + offsetof(nbd_request, type));
  request.cookie = load_be<uint64_t>(from + offsetof(nbd_request, cookie));
  request.offset = load_be<uint64_t>(from + offsetof(nbd_request, offset));
  const std::byte* const length = from + offsetof(nbd_request, length);
  request.length = extended ? load_be<uint64_t>(length) : load_be<uint32_t>(length);
  return nullptr;
}

uint16_t nbd_allowed_flags(uint16_t type, NbdHeaders headers, bool status_payload) {
  const bool extended = headers == NbdHeaders::kExtended;
  uint16_t allowed = NBD_CMD_FLAG_FUA;  // "MUST accept all commands with this bit set"
  switch (type) {
    case NBD_CMD_READ:
      if (headers != NbdHeaders::kSimple) allowed |= NBD_CMD_FLAG_DF;
      break;
    case NBD_CMD_WRITE:
      if (extended) allowed |= NBD_CMD_FLAG_PAYLOAD_LEN;
      break;
    case NBD_CMD_WRITE_ZEROES: allowed |= NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO; break;
    case NBD_CMD_BLOCK_STATUS:
      allowed |= NBD_CMD_FLAG_REQ_ONE;
      if (extended && status_payload) allowed |= NBD_CMD_FLAG_PAYLOAD_LEN;
      break;
    default: break;
  }
  return allowed;
}

const char* decode_nbd_status_payload(std::span<const std::byte> payload, std::span<const uint32_t> selected, uint64_t& length,
                                      std::vector<uint32_t>& asked) {
  constexpr const char* kWrong = "a payload that does not name contexts that were selected, each once";
  asked.clear();
  if (payload.size() <= NBD_STATUS_PAYLOAD_SIZE || (payload.size() - NBD_STATUS_PAYLOAD_SIZE) % NBD_CONTEXT_ID_SIZE != 0)
    return kWrong;
  for (auto ids = payload.subspan(NBD_STATUS_PAYLOAD_SIZE); !ids.empty(); ids = ids.subspan(NBD_CONTEXT_ID_SIZE)) {
    const auto id = load_be<uint32_t>(ids.data());
    if (std::find(selected.begin(), selected.end(), id) == selected.end() ||
        std::find(asked.begin(), asked.end(), id) != asked.end())
      return kWrong;
    asked.push_back(id);
  }
  length = load_be<uint64_t>(payload.data());
  return nullptr;
}

uint32_t nbd_error(int error) {
  switch (error) {
    case 0: return NBD_SUCCESS;
    case EPERM:
    case EROFS: return NBD_EPERM;
    case ENOMEM: return NBD_ENOMEM;
    case EINVAL: return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG: return NBD_ENOSPC;
    case EOVERFLOW: return NBD_EOVERFLOW;
    case EOPNOTSUPP: return NBD_ENOTSUP;
    case ESHUTDOWN: return NBD_ESHUTDOWN;
    default: return NBD_EIO;
  }
}

size_t nbd_reply_done(NbdHeaders headers, const NbdAnswered& request, std::byte* to) {
  // With structured replies a simple one is allowed here, and shorter.
  if (headers != NbdHeaders::kExtended) return put_simple(request, NBD_SUCCESS, to);
  return put_chunk(headers, request, NBD_REPLY_TYPE_NONE, true, 0, to);
}

size_t nbd_reply_error(NbdHeaders headers, const NbdAnswered& request, uint32_t error, std::string_view text,
                       std::byte* to) {
  if (headers == NbdHeaders::kSimple) return put_simple(request, error, to);
  const size_t used = put_chunk(headers, request, NBD_REPLY_TYPE_ERROR, true,
                                static_cast<uint32_t>(NBD_CHUNK_ERROR_SIZE + text.size()), to);
  store_be<uint32_t>(to + used + offsetof(nbd_chunk_error, error), error);
  store_be<uint16_t>(to + used + offsetof(nbd_chunk_error, length), static_cast<uint16_t>(text.size()));
  return used + NBD_CHUNK_ERROR_SIZE;
}

size_t nbd_reply_data(NbdHeaders headers, const NbdAnswered& request, uint64_t at, uint32_t length, bool last,
                      std::byte* to) {
  if (headers == NbdHeaders::kSimple) return put_simple(request, NBD_SUCCESS, to);
  const size_t used =
      put_chunk(headers, request, NBD_REPLY_TYPE_OFFSET_DATA, last, NBD_CHUNK_OFFSET_SIZE + length, to);
  store_be<uint64_t>(to + used, at);
  return used + NBD_CHUNK_OFFSET_SIZE;
}

size_t nbd_reply_hole(NbdHeaders headers, const NbdAnswered& request, uint64_t at, uint32_t length, bool last,
                      std::byte* to) {
  const size_t used = put_chunk(headers, request, NBD_REPLY_TYPE_OFFSET_HOLE, last, NBD_CHUNK_HOLE_SIZE, to);
  store_be<uint64_t>(to + used + offsetof(nbd_chunk_hole, offset), at);
  store_be<uint32_t>(to + used + offsetof(nbd_chunk_hole, length), length);
  return used + NBD_CHUNK_HOLE_SIZE;
}

size_t nbd_reply_status(NbdHeaders headers, const NbdAnswered& request, uint32_t id, uint32_t count, bool last, std::byte* to) {
  const bool extended = headers == NbdHeaders::kExtended;
  const size_t fixed = extended ? NBD_CHUNK_EXTENDED_STATUS_SIZE : NBD_CHUNK_STATUS_SIZE;
  const size_t used =
      put_chunk(headers, request, extended ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS, last,
                static_cast<uint32_t>(fixed + count * nbd_extent_size(headers)), to);
  store_be<uint32_t>(to + used, id);
  if (extended) store_be<uint32_t>(to + used + sizeof id, count);
  return used + fixed;
}

void nbd_put_extent(NbdHeaders headers, uint64_t length, uint32_t status, std::byte* to) {
  if (headers == NbdHeaders::kExtended) {
    store_be<uint64_t>(to + offsetof(nbd_extended_extent, length), length);
    store_be<uint64_t>(to + offsetof(nbd_extended_extent, status), status);
  } else {
    store_be<uint32_t>(to + offsetof(nbd_extent, length), static_cast<uint32_t>(length));
    store_be<uint32_t>(to + offsetof(nbd_extent, status), status);
  }
}

const char* nbd_command_text(uint16_t type) {
  static constexpr const char* kNames[] = {"READ", "WRITE", "DISC", "FLUSH", "TRIM", "CACHE", "WRITE_ZEROES",
                                           "BLOCK_STATUS"};
  return type < std::size(kNames) ? kNames[type] : "unknown command";
}

}  // namespace netblk::proto
