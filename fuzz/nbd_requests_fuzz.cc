// SPDX-License-Identifier: GPL-2.0-only
// Any bytes as NBD requests, with every kind of header: what is taken is what was there, and a reply has its own length.
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>

#include "base/endian.h"
#include "proto/nbd/server_requests.h"

namespace {

using namespace netblk::proto;
using netblk::load_be;

constexpr uint32_t kContexts[] = {1, 7};

void expect(bool true_always) {
  if (!true_always) std::abort();
}

// The length that a reply's header says.
uint64_t payload_of(NbdHeaders headers, const std::byte* reply) {
  if (headers == NbdHeaders::kExtended) return load_be<uint64_t>(reply + offsetof(nbd_extended_reply, length));
  return load_be<uint32_t>(reply + offsetof(nbd_structured_reply, length));
}

void replies(NbdHeaders headers, const NbdRequest& request) {
  const NbdAnswered asked{request.cookie, request.offset};
  std::array<std::byte, kNbdHoleBytes> reply;
  expect(nbd_reply_done(headers, asked, reply.data()) <= kNbdReplyBytes);
  const auto length = static_cast<uint32_t>(request.length % (64u << 20));
  size_t bytes = nbd_reply_data(headers, asked, request.offset, length, true, reply.data());
  expect(bytes <= kNbdReplyBytes);
  if (headers == NbdHeaders::kSimple) return;
  const size_t header = headers == NbdHeaders::kExtended ? NBD_EXTENDED_REPLY_SIZE : NBD_STRUCTURED_REPLY_SIZE;
  expect(payload_of(headers, reply.data()) == bytes - header + length);
  bytes = nbd_reply_hole(headers, asked, request.offset, length, false, reply.data());
  expect(bytes <= kNbdHoleBytes && payload_of(headers, reply.data()) == bytes - header);
  bytes = nbd_reply_error(headers, asked, NBD_EIO, "text", reply.data());
  expect(bytes <= kNbdReplyBytes && payload_of(headers, reply.data()) == bytes - header + 4);
  const uint32_t count = length % 8192 + 1;
  bytes = nbd_reply_status(headers, asked, kContexts[0], count, true, reply.data());
  expect(bytes <= kNbdReplyBytes &&
         payload_of(headers, reply.data()) == bytes - header + count * nbd_extent_size(headers));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const auto headers = static_cast<NbdHeaders>(data[0] % 3);
  std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  const uint32_t header_bytes = nbd_request_size(headers);
  while (bytes.size() >= header_bytes) {
    NbdRequest request;
    if (decode_nbd_request(bytes.data(), headers, request) != nullptr) break;
    bytes = bytes.subspan(header_bytes);
    expect(nbd_command_text(request.type) != nullptr);
    const uint16_t allowed = nbd_allowed_flags(request.type, headers, true);
    expect((allowed & NBD_CMD_FLAG_FUA) != 0);
    expect(headers == NbdHeaders::kExtended || (allowed & NBD_CMD_FLAG_PAYLOAD_LEN) == 0);
    replies(headers, request);
    const uint64_t payload = nbd_payload_bytes(request, headers);
    expect(payload == 0 || payload == request.length);
    if (payload > bytes.size()) break;
    const auto carried = bytes.first(static_cast<size_t>(payload));
    uint64_t length = 0;
    std::vector<uint32_t> asked;
    if (decode_nbd_status_payload(carried, kContexts, length, asked) == nullptr) {
      expect(length == load_be<uint64_t>(carried.data()));
      expect(!asked.empty() && asked.size() <= std::size(kContexts));
    }
    bytes = bytes.subspan(carried.size());
  }
  return 0;
}
