// SPDX-License-Identifier: GPL-2.0-only
#include "proto/netblk/codec2.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/crc32c.h"
#include "base/endian.h"

namespace netblk::proto {
namespace {

constexpr size_t kLengthAt = offsetof(netblk2_hello, length);
constexpr size_t kCrcAt = offsetof(netblk2_hello, crc);
static_assert(kLengthAt == offsetof(netblk2_welcome, length) && kCrcAt == offsetof(netblk2_welcome, crc));
static_assert(kGreetingPrefix == kLengthAt + 4);

constexpr std::string_view kNames[] = {"", "crc32c", "lz4", "zstd", "heartbeat", "resize", "times"};
static_assert(std::size(kNames) == NETBLK2_FEATURE_LAST + 1);

// Fields by their offsets in the C header: one place says where they are.
template <class T>
T get(std::span<const std::byte> from, size_t at) {
  return load_be<T>(from.data() + at);
}
Id get_id(std::span<const std::byte> from, size_t at) {
  Id id;
  std::memcpy(id.bytes.data(), from.data() + at, id.bytes.size());
  return id;
}
template <class T>
void put(std::byte* to, size_t at, T value) {
  store_be(to + at, value);
}
void put_id(std::byte* to, size_t at, const Id& id) { std::memcpy(to + at, id.bytes.data(), id.bytes.size()); }

size_t padded(size_t bytes) { return (bytes + 7) / 8 * 8; }

Result<size_t> greeting_length(std::span<const std::byte> prefix, const char* what, size_t least, size_t most) {
  NETBLK_CHECK(prefix.size() >= kGreetingPrefix, "a greeting's length is asked too early");
  if (std::memcmp(prefix.data(), NETBLK2_MAGIC, NETBLK2_MAGIC_SIZE) != 0)
    return make_error(EPROTO, "what came is no netblk/2 {}", what);
  const auto length = get<uint32_t>(prefix, kLengthAt);
  if (length < least || length > most || length % 8 != 0)
    return make_error(EPROTO, "a {} of {} bytes: it has {} to {}, a multiple of 8", what, length, least, most);
  return size_t{length};
}

uint32_t greeting_crc(std::span<const std::byte> whole) {
  constexpr std::byte kZero[4] = {};
  uint32_t crc = crc32c(whole.first(kCrcAt));
  crc = crc32c(kZero, crc);
  return crc32c(whole.subspan(kCrcAt + 4), crc);
}

void seal(std::vector<std::byte>& whole) {
  std::memcpy(whole.data(), NETBLK2_MAGIC, NETBLK2_MAGIC_SIZE);
  put(whole.data(), kLengthAt, static_cast<uint32_t>(whole.size()));
  put(whole.data(), kCrcAt, uint32_t{0});
  put(whole.data(), kCrcAt, greeting_crc(whole));
}

Status check_greeting(std::span<const std::byte> whole, const char* what, size_t fixed, size_t tail) {
  const size_t length = get<uint32_t>(whole, kLengthAt);
  if (length != whole.size() || padded(fixed + tail) != length)
    return make_error(EPROTO, "the parts of the {} do not add up to its {} bytes", what, length);
  if (get<uint32_t>(whole, kCrcAt) != greeting_crc(whole))
    return make_error(EPROTO, "the checksum of the {} is wrong", what);
  for (const std::byte byte : whole.subspan(fixed + tail))
    if (byte != std::byte{0}) return make_error(EPROTO, "the {} is not padded with zero bytes", what);
  return Ok{};
}

void encode_features(const std::vector<Feature2>& features, std::byte* to) {
  for (const Feature2& feature : features) {
    NETBLK_CHECK(feature.name.size() <= NETBLK2_FEATURE_NAME_SIZE, "a feature's name is too long");
    put(to, offsetof(netblk2_feature, number), feature.number);
    put(to, offsetof(netblk2_feature, flags), static_cast<uint16_t>(feature.mandatory ? NETBLK2_FEATURE_MANDATORY : 0));
    put(to, offsetof(netblk2_feature, value), feature.value);
    std::memcpy(to + offsetof(netblk2_feature, name), feature.name.data(), feature.name.size());
    to += NETBLK2_FEATURE_SIZE;
  }
}

Status decode_features(std::span<const std::byte> from, size_t count, std::vector<Feature2>& features) {
  for (size_t i = 0; i < count; ++i) {
    const auto at = from.subspan(i * NETBLK2_FEATURE_SIZE, NETBLK2_FEATURE_SIZE);
    Feature2 feature;
    feature.number = get<uint16_t>(at, offsetof(netblk2_feature, number));
    const auto flags = get<uint16_t>(at, offsetof(netblk2_feature, flags));
    feature.mandatory = (flags & NETBLK2_FEATURE_MANDATORY) != 0;
    feature.value = get<uint32_t>(at, offsetof(netblk2_feature, value));
    const char* name = reinterpret_cast<const char*>(at.data()) + offsetof(netblk2_feature, name);
    feature.name.assign(name, ::strnlen(name, NETBLK2_FEATURE_NAME_SIZE));
    const bool printable = !feature.name.empty() &&
                           std::all_of(feature.name.begin(), feature.name.end(), [](char c) { return c > 32 && c < 127; });
    if (feature.number == 0 || !printable)
      return make_error(EPROTO, "feature {} of the list has no number or no name", i + 1);
    if (flags & ~unsigned{NETBLK2_FEATURE_MANDATORY})
      return make_error(EPROTO, "feature '{}' has the unknown flags {:#x}", feature.name, flags);
    if (!features.empty() && features.back().number >= feature.number)
      return make_error(EPROTO, "feature '{}' is not in its place in the list", feature.name);
    features.push_back(std::move(feature));
  }
  return Ok{};
}

}  // namespace

std::string_view feature_name(uint16_t number) { return number <= NETBLK2_FEATURE_LAST ? kNames[number] : ""; }

Feature2 make_feature(netblk2_feature_number number, uint32_t value, bool mandatory) {
  return {static_cast<uint16_t>(number), mandatory, value, std::string(feature_name(static_cast<uint16_t>(number)))};
}

const Feature2* find_feature(const std::vector<Feature2>& features, uint16_t number) {
  for (const Feature2& feature : features)
    if (feature.number == number) return &feature;
  return nullptr;
}

Result<size_t> hello_length(std::span<const std::byte> prefix) {
  return greeting_length(prefix, "hello", NETBLK2_HELLO_SIZE, NETBLK2_MAX_HELLO);
}

Result<size_t> welcome_length(std::span<const std::byte> prefix) {
  return greeting_length(prefix, "welcome", NETBLK2_WELCOME_SIZE, NETBLK2_MAX_WELCOME);
}

std::vector<std::byte> encode_hello(const Hello2& hello) {
  NETBLK_CHECK(hello.features.size() <= NETBLK2_MAX_FEATURES && hello.export_name.size() <= NETBLK2_MAX_NAME,
               "a hello is too long");
  const size_t features = hello.features.size() * NETBLK2_FEATURE_SIZE;
  std::vector<std::byte> whole(padded(NETBLK2_HELLO_SIZE + features + hello.export_name.size()));
  std::byte* to = whole.data();
  put(to, offsetof(netblk2_hello, flags), hello.flags);
  put(to, offsetof(netblk2_hello, connection), hello.connection);
  put(to, offsetof(netblk2_hello, slots), hello.slots);
  put_id(to, offsetof(netblk2_hello, client_id), hello.client_id);
  put_id(to, offsetof(netblk2_hello, session_id), hello.session_id);
  put(to, offsetof(netblk2_hello, epoch), hello.epoch);
  put_id(to, offsetof(netblk2_hello, store_uuid), hello.store_uuid);
  put(to, offsetof(netblk2_hello, generation), hello.generation);
  put(to, offsetof(netblk2_hello, list_from), hello.list_from);
  put(to, offsetof(netblk2_hello, feature_count), static_cast<uint16_t>(hello.features.size()));
  put(to, offsetof(netblk2_hello, name_length), static_cast<uint16_t>(hello.export_name.size()));
  encode_features(hello.features, to + NETBLK2_HELLO_SIZE);
  std::memcpy(to + NETBLK2_HELLO_SIZE + features, hello.export_name.data(), hello.export_name.size());
  seal(whole);
  return whole;
}

Result<Hello2> decode_hello(std::span<const std::byte> whole) {
  NETBLK_CHECK(whole.size() >= NETBLK2_HELLO_SIZE, "a hello is decoded before it is whole");
  const size_t count = get<uint16_t>(whole, offsetof(netblk2_hello, feature_count));
  const size_t name = get<uint16_t>(whole, offsetof(netblk2_hello, name_length));
  if (count > NETBLK2_MAX_FEATURES) return make_error(EPROTO, "a hello with {} features: {} at most", count, NETBLK2_MAX_FEATURES);
  if (name > NETBLK2_MAX_NAME) return make_error(EPROTO, "an export's name of {} bytes: {} at most", name, NETBLK2_MAX_NAME);
  const size_t features = count * NETBLK2_FEATURE_SIZE;
  if (auto sound = check_greeting(whole, "hello", NETBLK2_HELLO_SIZE, features + name); !sound)
    return std::move(sound).error();
  Hello2 hello;
  hello.flags = get<uint16_t>(whole, offsetof(netblk2_hello, flags));
  hello.connection = get<uint16_t>(whole, offsetof(netblk2_hello, connection));
  hello.slots = get<uint32_t>(whole, offsetof(netblk2_hello, slots));
  hello.client_id = get_id(whole, offsetof(netblk2_hello, client_id));
  hello.session_id = get_id(whole, offsetof(netblk2_hello, session_id));
  hello.epoch = get<uint64_t>(whole, offsetof(netblk2_hello, epoch));
  hello.store_uuid = get_id(whole, offsetof(netblk2_hello, store_uuid));
  hello.generation = get<uint64_t>(whole, offsetof(netblk2_hello, generation));
  hello.list_from = get<uint32_t>(whole, offsetof(netblk2_hello, list_from));
  if (hello.flags & ~unsigned{NETBLK2_HELLO_KNOWN_FLAGS})
    return make_error(EPROTO, "a hello with the unknown flags {:#x}", hello.flags);
  if (auto sound = decode_features(whole.subspan(NETBLK2_HELLO_SIZE), count, hello.features); !sound)
    return std::move(sound).error();
  hello.export_name.assign(reinterpret_cast<const char*>(whole.data()) + NETBLK2_HELLO_SIZE + features, name);
  if (hello.export_name.find('\0') != std::string::npos)
    return make_error(EPROTO, "the export's name has a zero byte in it");
  return hello;
}

std::vector<std::byte> encode_welcome(const Welcome2& welcome) {
  const size_t features = welcome.features.size() * NETBLK2_FEATURE_SIZE;
  const size_t size = padded(NETBLK2_WELCOME_SIZE + features + welcome.body.size());
  NETBLK_CHECK(welcome.features.size() <= NETBLK2_MAX_FEATURES && size <= NETBLK2_MAX_WELCOME, "a welcome is too long");
  std::vector<std::byte> whole(size);
  std::byte* to = whole.data();
  put(to, offsetof(netblk2_welcome, status), welcome.status);
  put(to, offsetof(netblk2_welcome, flags), welcome.flags);
  put(to, offsetof(netblk2_welcome, max_connections), welcome.max_connections);
  put_id(to, offsetof(netblk2_welcome, session_id), welcome.session_id);
  put_id(to, offsetof(netblk2_welcome, store_uuid), welcome.store_uuid);
  put(to, offsetof(netblk2_welcome, generation), welcome.generation);
  put(to, offsetof(netblk2_welcome, size_bytes), welcome.size_bytes);
  put(to, offsetof(netblk2_welcome, block_bytes), welcome.block_bytes);
  put(to, offsetof(netblk2_welcome, preferred_bytes), welcome.preferred_bytes);
  put(to, offsetof(netblk2_welcome, max_payload_bytes), welcome.max_payload_bytes);
  put(to, offsetof(netblk2_welcome, slots), welcome.slots);
  put(to, offsetof(netblk2_welcome, body_length), static_cast<uint32_t>(welcome.body.size()));
  put(to, offsetof(netblk2_welcome, feature_count), static_cast<uint16_t>(welcome.features.size()));
  encode_features(welcome.features, to + NETBLK2_WELCOME_SIZE);
  std::memcpy(to + NETBLK2_WELCOME_SIZE + features, welcome.body.data(), welcome.body.size());
  seal(whole);
  return whole;
}

Result<Welcome2> decode_welcome(std::span<const std::byte> whole) {
  NETBLK_CHECK(whole.size() >= NETBLK2_WELCOME_SIZE, "a welcome is decoded before it is whole");
  const size_t count = get<uint16_t>(whole, offsetof(netblk2_welcome, feature_count));
  const size_t body = get<uint32_t>(whole, offsetof(netblk2_welcome, body_length));
  if (count > NETBLK2_MAX_FEATURES)
    return make_error(EPROTO, "a welcome with {} features: {} at most", count, NETBLK2_MAX_FEATURES);
  if (body > NETBLK2_MAX_WELCOME) return make_error(EPROTO, "a welcome with a body of {} bytes", body);
  const size_t features = count * NETBLK2_FEATURE_SIZE;
  if (auto sound = check_greeting(whole, "welcome", NETBLK2_WELCOME_SIZE, features + body); !sound)
    return std::move(sound).error();
  Welcome2 welcome;
  welcome.status = get<uint32_t>(whole, offsetof(netblk2_welcome, status));
  welcome.flags = get<uint16_t>(whole, offsetof(netblk2_welcome, flags));
  welcome.max_connections = get<uint16_t>(whole, offsetof(netblk2_welcome, max_connections));
  welcome.session_id = get_id(whole, offsetof(netblk2_welcome, session_id));
  welcome.store_uuid = get_id(whole, offsetof(netblk2_welcome, store_uuid));
  welcome.generation = get<uint64_t>(whole, offsetof(netblk2_welcome, generation));
  welcome.size_bytes = get<uint64_t>(whole, offsetof(netblk2_welcome, size_bytes));
  welcome.block_bytes = get<uint32_t>(whole, offsetof(netblk2_welcome, block_bytes));
  welcome.preferred_bytes = get<uint32_t>(whole, offsetof(netblk2_welcome, preferred_bytes));
  welcome.max_payload_bytes = get<uint32_t>(whole, offsetof(netblk2_welcome, max_payload_bytes));
  welcome.slots = get<uint32_t>(whole, offsetof(netblk2_welcome, slots));
  if (auto sound = decode_features(whole.subspan(NETBLK2_WELCOME_SIZE), count, welcome.features); !sound)
    return std::move(sound).error();
  welcome.body.assign(reinterpret_cast<const char*>(whole.data()) + NETBLK2_WELCOME_SIZE + features, body);
  return welcome;
}

void append_export(std::string& body, const Export2& entry) {
  std::string record(padded(NETBLK2_EXPORT_SIZE + entry.name.size()), '\0');
  auto* to = reinterpret_cast<std::byte*>(record.data());
  put(to, offsetof(netblk2_export, size_bytes), entry.size_bytes);
  put(to, offsetof(netblk2_export, flags), entry.flags);
  put(to, offsetof(netblk2_export, name_length), static_cast<uint32_t>(entry.name.size()));
  std::memcpy(to + NETBLK2_EXPORT_SIZE, entry.name.data(), entry.name.size());
  body += record;
}

Result<std::vector<Export2>> decode_exports(std::string_view body) {
  std::vector<Export2> exports;
  auto bytes = std::as_bytes(std::span(body));
  while (!bytes.empty()) {
    if (bytes.size() < NETBLK2_EXPORT_SIZE) return make_error(EPROTO, "the list of exports is cut off");
    const size_t name = get<uint32_t>(bytes, offsetof(netblk2_export, name_length));
    if (name > NETBLK2_MAX_NAME || padded(NETBLK2_EXPORT_SIZE + name) > bytes.size())
      return make_error(EPROTO, "the list of exports has a name of {} bytes that is not there", name);
    exports.push_back({get<uint64_t>(bytes, offsetof(netblk2_export, size_bytes)),
                       get<uint32_t>(bytes, offsetof(netblk2_export, flags)),
                       std::string(reinterpret_cast<const char*>(bytes.data()) + NETBLK2_EXPORT_SIZE, name)});
    bytes = bytes.subspan(padded(NETBLK2_EXPORT_SIZE + name));
  }
  return exports;
}

// ---- messages

void encode_request(const Request2& request, bool crc, std::byte* to) {
  put(to, offsetof(netblk2_request, type), request.type);
  put(to, offsetof(netblk2_request, flags), request.flags);
  put(to, offsetof(netblk2_request, slot), request.slot);
  put(to, offsetof(netblk2_request, sequence), request.sequence);
  put(to, offsetof(netblk2_request, cookie), request.cookie);
  put(to, offsetof(netblk2_request, offset), request.offset);
  put(to, offsetof(netblk2_request, length), request.length);
  put(to, offsetof(netblk2_request, payload_length), request.payload_length);
  put(to, offsetof(netblk2_request, payload_crc), request.payload_crc);
  constexpr size_t at = offsetof(netblk2_request, crc);
  put(to, at, crc ? crc32c({to, at}) : 0u);
}

void encode_reply(const Reply2& reply, bool crc, std::byte* to) {
  put(to, offsetof(netblk2_reply, type), reply.type);
  put(to, offsetof(netblk2_reply, flags), reply.flags);
  put(to, offsetof(netblk2_reply, slot), reply.slot);
  put(to, offsetof(netblk2_reply, sequence), reply.sequence);
  put(to, offsetof(netblk2_reply, cookie), reply.cookie);
  put(to, offsetof(netblk2_reply, status), reply.status);
  put(to, offsetof(netblk2_reply, payload_length), reply.payload_length);
  put(to, offsetof(netblk2_reply, payload_crc), reply.payload_crc);
  constexpr size_t at = offsetof(netblk2_reply, crc);
  put(to, at, crc ? crc32c({to, at}) : 0u);
}

void encode_times(const Times2& times, bool crc, std::byte* to) {
  put(to, offsetof(netblk2_times, type), uint8_t{NETBLK2_TIMES});
  put(to, offsetof(netblk2_times, flags), uint8_t{0});
  put(to, offsetof(netblk2_times, request_type), uint16_t{times.request_type});
  put(to, offsetof(netblk2_times, count), times.count);
  put(to, offsetof(netblk2_times, server_ns), times.server_ns);
  put(to, offsetof(netblk2_times, store_ns), times.store_ns);
  put(to, offsetof(netblk2_times, reserved), uint32_t{0});
  constexpr size_t at = offsetof(netblk2_times, crc);
  static_assert(at == offsetof(netblk2_reply, crc));
  put(to, at, crc ? crc32c({to, at}) : 0u);
}

namespace {

constexpr uint8_t kCompressed = NETBLK2_LZ4 | NETBLK2_ZSTD;

// The flags that a request of this type may carry.
uint8_t legal_flags(uint8_t type) {
  switch (type) {
    case NETBLK2_WRITE: return NETBLK2_FUA | kCompressed;
    case NETBLK2_TRIM: return NETBLK2_FUA;
    case NETBLK2_WRITE_ZEROES: return NETBLK2_FUA | NETBLK2_NO_UNMAP;
    case NETBLK2_GOODBYE: return NETBLK2_END_SESSION;
    default: return 0;
  }
}

// Null, or what is wrong with the compression of a payload.
const char* check_compression(uint8_t flags, const Framing2& framing) {
  if ((flags & kCompressed) == kCompressed) return "a payload is compressed in two ways";
  if ((flags & NETBLK2_LZ4) && !framing.lz4) return "a payload is compressed by LZ4, which was not negotiated";
  if ((flags & NETBLK2_ZSTD) && !framing.zstd) return "a payload is compressed by Zstandard, which was not negotiated";
  return nullptr;
}

}  // namespace

const char* decode_request(std::span<const std::byte> from, const Framing2& framing, Request2& request) {
  NETBLK_CHECK(from.size() >= NETBLK2_REQUEST_SIZE, "a request is decoded before its header is whole");
  if (framing.crc) {
    constexpr size_t at = offsetof(netblk2_request, crc);
    if (get<uint32_t>(from, at) != crc32c(from.first(at))) return "the checksum of a request's header is wrong";
  }
  request.type = get<uint8_t>(from, offsetof(netblk2_request, type));
  request.flags = get<uint8_t>(from, offsetof(netblk2_request, flags));
  request.slot = get<uint16_t>(from, offsetof(netblk2_request, slot));
  request.sequence = get<uint32_t>(from, offsetof(netblk2_request, sequence));
  request.cookie = get<uint64_t>(from, offsetof(netblk2_request, cookie));
  request.offset = get<uint64_t>(from, offsetof(netblk2_request, offset));
  request.length = get<uint32_t>(from, offsetof(netblk2_request, length));
  request.payload_length = get<uint32_t>(from, offsetof(netblk2_request, payload_length));
  request.payload_crc = get<uint32_t>(from, offsetof(netblk2_request, payload_crc));
  if (request.type < NETBLK2_READ || request.type > NETBLK2_HEARTBEAT) return "a request has an unknown type";
  if (request.flags & ~legal_flags(request.type)) return "a request has a flag that its type does not have";
  if (request.type == NETBLK2_WRITE) {
    if (const char* wrong = check_compression(request.flags, framing)) return wrong;
    const bool compressed = (request.flags & kCompressed) != 0;
    if (request.length > framing.max_payload_bytes) return "a WRITE is longer than was negotiated";
    if (compressed ? request.payload_length == 0 || request.payload_length >= request.length
                   : request.payload_length != request.length)
      return "the payload of a WRITE does not fit its length";
  } else {
    if (request.payload_length != 0) return "a request has a payload that its type does not have";
    if (request.payload_crc != 0) return "a request has a payload's checksum without a payload";
  }
  if (request.type == NETBLK2_READ && request.length > framing.max_payload_bytes)
    return "a READ is longer than was negotiated";
  const bool has_range = request.type == NETBLK2_READ || request.type == NETBLK2_WRITE ||
                         request.type == NETBLK2_TRIM || request.type == NETBLK2_WRITE_ZEROES;
  if (!has_range && (request.offset != 0 || request.length != 0)) return "a request has a range that its type does not have";
  const bool has_slot = request.type != NETBLK2_GOODBYE && request.type != NETBLK2_HEARTBEAT;
  if (!has_slot && (request.slot != 0 || request.sequence != 0)) return "a request has a slot that its type does not have";
  if (request.type == NETBLK2_HEARTBEAT && request.cookie != 0) return "a heartbeat has a cookie";
  return nullptr;
}

const char* decode_reply(std::span<const std::byte> from, const Framing2& framing, Reply2& reply) {
  NETBLK_CHECK(from.size() >= NETBLK2_REPLY_SIZE, "a reply is decoded before its header is whole");
  if (framing.crc) {
    constexpr size_t at = offsetof(netblk2_reply, crc);
    if (get<uint32_t>(from, at) != crc32c(from.first(at))) return "the checksum of a reply's header is wrong";
  }
  reply.type = get<uint8_t>(from, offsetof(netblk2_reply, type));
  if (reply.type == NETBLK2_TIMES) {
    reply = {.type = NETBLK2_TIMES};
    return framing.times ? nullptr : "the server tells its times, which was not negotiated";
  }
  reply.flags = get<uint8_t>(from, offsetof(netblk2_reply, flags));
  reply.slot = get<uint16_t>(from, offsetof(netblk2_reply, slot));
  reply.sequence = get<uint32_t>(from, offsetof(netblk2_reply, sequence));
  reply.cookie = get<uint64_t>(from, offsetof(netblk2_reply, cookie));
  reply.status = get<uint32_t>(from, offsetof(netblk2_reply, status));
  reply.payload_length = get<uint32_t>(from, offsetof(netblk2_reply, payload_length));
  reply.payload_crc = get<uint32_t>(from, offsetof(netblk2_reply, payload_crc));
  if (reply.type < NETBLK2_READ || reply.type > NETBLK2_RESIZE) return "a reply has an unknown type";
  const bool carries = reply.type == NETBLK2_READ && reply.status == NETBLK2_OK;
  if (reply.flags & ~(carries ? kCompressed : 0)) return "a reply has a flag that it may not have";
  if (const char* wrong = check_compression(reply.flags, framing)) return wrong;
  if (carries) {
    if (reply.payload_length == 0 || reply.payload_length > framing.max_payload_bytes)
      return "a reply has a payload of a length that was not asked for";
  } else if (reply.payload_length != 0 || reply.payload_crc != 0) {
    return "a reply has a payload where none is due";
  }
  if ((reply.type == NETBLK2_HEARTBEAT || reply.type == NETBLK2_RESIZE) &&
      (reply.slot != 0 || reply.sequence != 0 || reply.status != 0))
    return "a message that answers nothing names a slot";
  if (reply.type == NETBLK2_HEARTBEAT && reply.cookie != 0) return "a heartbeat has a cookie";
  return nullptr;
}

const char* decode_times(std::span<const std::byte> from, Times2& times) {
  const auto type = get<uint16_t>(from, offsetof(netblk2_times, request_type));
  times.request_type = static_cast<uint8_t>(type);
  times.count = get<uint32_t>(from, offsetof(netblk2_times, count));
  times.server_ns = get<uint64_t>(from, offsetof(netblk2_times, server_ns));
  times.store_ns = get<uint64_t>(from, offsetof(netblk2_times, store_ns));
  if (get<uint8_t>(from, offsetof(netblk2_times, flags)) != 0 || get<uint32_t>(from, offsetof(netblk2_times, reserved)) != 0)
    return "the server's times have fields that are not zero";
  if (type < NETBLK2_READ || type > NETBLK2_NOP) return "the server tells times of no type of requests";
  if (times.count == 0) return "the server tells times of no requests";
  return nullptr;
}

namespace {

constexpr uint32_t kStatuses[] = {NETBLK2_OK,     NETBLK2_EPERM,  NETBLK2_ENOENT, NETBLK2_EIO,    NETBLK2_EAGAIN,
                                  NETBLK2_ENOMEM, NETBLK2_EBUSY,  NETBLK2_EINVAL, NETBLK2_ENOSPC, NETBLK2_EROFS,
                                  NETBLK2_EPROTO, NETBLK2_EOPNOTSUPP, NETBLK2_ESHUTDOWN, NETBLK2_ESTALE};
static_assert(NETBLK2_EPERM == EPERM && NETBLK2_ENOENT == ENOENT && NETBLK2_EIO == EIO && NETBLK2_EAGAIN == EAGAIN &&
              NETBLK2_ENOMEM == ENOMEM && NETBLK2_EBUSY == EBUSY && NETBLK2_EINVAL == EINVAL &&
              NETBLK2_ENOSPC == ENOSPC && NETBLK2_EROFS == EROFS && NETBLK2_EPROTO == EPROTO &&
              NETBLK2_EOPNOTSUPP == EOPNOTSUPP && NETBLK2_ESHUTDOWN == ESHUTDOWN && NETBLK2_ESTALE == ESTALE);

bool is_status(uint32_t value) { return std::find(std::begin(kStatuses), std::end(kStatuses), value) != std::end(kStatuses); }

}  // namespace

uint32_t status_of(int error) {
  const auto value = static_cast<uint32_t>(error);
  return is_status(value) ? value : uint32_t{NETBLK2_EIO};
}

int error_of(uint32_t status) { return static_cast<int>(is_status(status) ? status : uint32_t{NETBLK2_EIO}); }

}  // namespace netblk::proto
