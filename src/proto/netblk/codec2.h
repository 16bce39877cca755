// SPDX-License-Identifier: GPL-2.0-only
// netblk/2 on the wire, without I/O: protocol/netblk.md, "Hello and welcome" and "Messages".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/id.h"
#include "base/result.h"
#include "protocol/netblk_wire.h"

namespace netblk::proto {

struct Feature2 {
  uint16_t number = 0;
  bool mandatory = false;
  uint32_t value = 0;
  std::string name;  // as the peer spells it

  bool operator==(const Feature2&) const = default;
};

// The name of a number that this side knows; empty for others.
std::string_view feature_name(uint16_t number);
Feature2 make_feature(netblk2_feature_number number, uint32_t value = 0, bool mandatory = false);
// Null: not in the list.
const Feature2* find_feature(const std::vector<Feature2>& features, uint16_t number);

struct Hello2 {
  uint16_t flags = 0;  // NETBLK2_HELLO_*
  uint16_t connection = 0;
  uint32_t slots = NETBLK2_MIN_SLOTS;
  Id client_id;
  Id session_id;
  uint64_t epoch = 0;
  Id store_uuid;
  uint64_t generation = 0;
  uint32_t list_from = 0;
  std::vector<Feature2> features;  // ascending by number
  std::string export_name;

  bool operator==(const Hello2&) const = default;
};

struct Welcome2 {
  uint32_t status = NETBLK2_OK;
  uint16_t flags = 0;  // NETBLK2_WELCOME_*
  uint16_t max_connections = 1;
  Id session_id;
  Id store_uuid;
  uint64_t generation = 0;
  uint64_t size_bytes = 0;
  uint32_t block_bytes = NETBLK_SECTOR_SIZE;
  uint32_t preferred_bytes = 4096;
  uint32_t max_payload_bytes = NETBLK2_MIN_MAX_PAYLOAD;
  uint32_t slots = NETBLK2_MIN_SLOTS;
  std::vector<Feature2> features;
  std::string body;  // a text where status is not OK, the exports' list for LIST, else empty

  bool operator==(const Welcome2&) const = default;
};

struct Export2 {
  uint64_t size_bytes = 0;
  uint32_t flags = 0;  // NETBLK2_WELCOME_READ_ONLY
  std::string name;

  bool operator==(const Export2&) const = default;
};

// What must have arrived before the length of a hello or welcome is known.
inline constexpr size_t kGreetingPrefix = 12;

// The whole length of the hello that begins with `prefix` (at least kGreetingPrefix bytes). EPROTO: it is none.
Result<size_t> hello_length(std::span<const std::byte> prefix);
Result<size_t> welcome_length(std::span<const std::byte> prefix);

// The fields must be within the limits of netblk_wire.h: checked.
std::vector<std::byte> encode_hello(const Hello2& hello);
std::vector<std::byte> encode_welcome(const Welcome2& welcome);

// `whole` has the length that hello_length() gave. EPROTO with words otherwise; any bytes are legal input. What the
// numbers mean (an unknown feature, say) is the caller's affair; flags that do not exist are refused here.
Result<Hello2> decode_hello(std::span<const std::byte> whole);
Result<Welcome2> decode_welcome(std::span<const std::byte> whole);

// The body of a welcome that answers LIST.
void append_export(std::string& body, const Export2& entry);
Result<std::vector<Export2>> decode_exports(std::string_view body);

struct Request2 {
  uint8_t type = 0;
  uint8_t flags = 0;
  uint16_t slot = 0;
  uint32_t sequence = 0;
  uint64_t cookie = 0;
  uint64_t offset = 0;
  uint32_t length = 0;
  uint32_t payload_length = 0;
  uint32_t payload_crc = 0;

  bool operator==(const Request2&) const = default;
};

struct Reply2 {
  uint8_t type = 0;
  uint8_t flags = 0;
  uint16_t slot = 0;
  uint32_t sequence = 0;
  uint64_t cookie = 0;
  uint32_t status = 0;
  uint32_t payload_length = 0;
  uint32_t payload_crc = 0;

  bool operator==(const Reply2&) const = default;
};

// What a server tells of the requests of one type.
struct Times2 {
  uint8_t request_type = NETBLK2_READ;
  uint32_t count = 0;
  uint64_t server_ns = 0;
  uint64_t store_ns = 0;

  bool operator==(const Times2&) const = default;
};

// What of the features changes how messages are read.
struct Framing2 {
  bool crc = false;
  bool lz4 = false;
  bool zstd = false;
  bool times = false;
  uint32_t max_payload_bytes = NETBLK2_MIN_MAX_PAYLOAD;
};

// Writes NETBLK2_REQUEST_SIZE or NETBLK2_REPLY_SIZE bytes. crc: fill in the header's checksum, else zero.
void encode_request(const Request2& request, bool crc, std::byte* to);
void encode_reply(const Reply2& reply, bool crc, std::byte* to);
void encode_times(const Times2& times, bool crc, std::byte* to);

// Decodes one header; `from` has the header's size. Null, or why the connection must be closed upon it: a wrong
// checksum, an unknown type or flag, a payload that the type does not carry or that is too long, or a field that the
// type does not use and that is not zero. Range and alignment are not checked: these are answered, not closed upon.
const char* decode_request(std::span<const std::byte> from, const Framing2& framing, Request2& request);
const char* decode_reply(std::span<const std::byte> from, const Framing2& framing, Reply2& reply);
// Of the same bytes, where decode_reply() has found a NETBLK2_TIMES, of which `reply` has the type alone.
const char* decode_times(std::span<const std::byte> from, Times2& times);

// A positive errno value as it goes on the wire: what is not in enum netblk2_status is EIO.
uint32_t status_of(int error);
// And back: what is not in the enum is EIO.
int error_of(uint32_t status);

}  // namespace netblk::proto
