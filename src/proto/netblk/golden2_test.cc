// SPDX-License-Identifier: GPL-2.0-only
// The codec against tests/compat/golden: bytes that an independent implementation wrote.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "base/crc32c.h"
#include "proto/netblk/codec2.h"

namespace netblk::proto {
namespace {

const std::filesystem::path kFolder =
    std::filesystem::path(__FILE__).parent_path().parent_path().parent_path().parent_path() / "tests/compat/golden";

using Bytes = std::vector<std::byte>;

// Hexadecimal words; '#' begins a comment, '*N' repeats the byte before to N in all.
Bytes golden(const std::string& name) {
  std::ifstream file(kFolder / (name + ".hex"));
  EXPECT_TRUE(file) << name;
  Bytes bytes;
  for (std::string line; std::getline(file, line);) {
    std::istringstream words(line.substr(0, line.find('#')));
    for (std::string word; words >> word;) {
      if (word[0] == '*') {
        bytes.insert(bytes.end(), std::stoul(word.substr(1)) - 1, bytes.back());
      } else {
        bytes.push_back(static_cast<std::byte>(std::stoul(word, nullptr, 16)));
      }
    }
  }
  return bytes;
}

Id id_from(uint8_t first) {
  Id id;
  for (uint8_t& byte : id.bytes) byte = first++;
  return id;
}
const Id kClient = id_from(0x00), kSession = id_from(0x10), kUuid = id_from(0x20);

std::map<std::string, Hello2> hellos() {
  Hello2 first;
  first.flags = NETBLK2_HELLO_WRITE | NETBLK2_HELLO_BEGIN;
  first.slots = 64;
  first.client_id = kClient;
  first.session_id = kSession;
  first.epoch = 1;
  first.features = {make_feature(NETBLK2_FEATURE_CRC32C, 0, true), make_feature(NETBLK2_FEATURE_HEARTBEAT, 5000),
                    make_feature(NETBLK2_FEATURE_RESIZE)};
  first.export_name = "disk";
  Hello2 resume = first;
  resume.flags = NETBLK2_HELLO_WRITE;
  resume.connection = 1;
  resume.epoch = 7;
  resume.store_uuid = kUuid;
  resume.generation = 3;
  Hello2 plain;
  plain.flags = NETBLK2_HELLO_BEGIN;
  plain.session_id = kSession;
  plain.client_id = kClient;
  plain.epoch = 1;
  Hello2 info;
  info.flags = NETBLK2_HELLO_INFO;
  info.export_name = "disk";
  Hello2 list;
  list.flags = NETBLK2_HELLO_LIST;
  list.list_from = 2;
  Hello2 unknown = plain;
  unknown.features = {{900, true, 5, "teleport"}};
  return {{"hello-new", first},  {"hello-resume", resume}, {"hello-plain", plain},
          {"hello-info", info}, {"hello-list", list},     {"hello-unknown-feature", unknown}};
}

std::map<std::string, Welcome2> welcomes() {
  Welcome2 fresh;
  fresh.flags = NETBLK2_WELCOME_NEW | NETBLK2_WELCOME_TRIM;
  fresh.max_connections = 8;
  fresh.session_id = kSession;
  fresh.store_uuid = kUuid;
  fresh.generation = 3;
  fresh.size_bytes = 100u << 20;
  fresh.block_bytes = 512;
  fresh.preferred_bytes = 4096;
  fresh.max_payload_bytes = 8u << 20;
  fresh.slots = 64;
  Welcome2 adopted = fresh;
  fresh.features = {make_feature(NETBLK2_FEATURE_CRC32C), make_feature(NETBLK2_FEATURE_HEARTBEAT, 5000),
                    make_feature(NETBLK2_FEATURE_RESIZE)};
  adopted.flags = NETBLK2_WELCOME_ADOPTED | NETBLK2_WELCOME_READ_ONLY;
  Welcome2 busy;
  busy.max_connections = 0;
  busy.block_bytes = busy.preferred_bytes = busy.max_payload_bytes = busy.slots = 0;
  Welcome2 list = busy;
  busy.status = NETBLK2_EBUSY;
  busy.body = "client " + id_text(kClient) + " writes";
  list.flags = NETBLK2_WELCOME_MORE;
  append_export(list.body, {100u << 20, 0, "disk"});
  append_export(list.body, {4096, NETBLK2_WELCOME_READ_ONLY, "golden image"});
  return {{"welcome-new", fresh}, {"welcome-adopted", adopted}, {"welcome-busy", busy}, {"welcome-list", list}};
}

constexpr uint64_t kCookie = 0x1122334455667788;
constexpr uint32_t kSequence = 0x80000001;

std::map<std::string, Request2> requests() {
  const auto ranged = [](uint8_t type, uint8_t flags, uint32_t length, uint32_t payload) {
    return Request2{.type = type, .flags = flags, .slot = 5, .sequence = kSequence, .cookie = kCookie,
                    .offset = 1u << 20, .length = length, .payload_length = payload};
  };
  const auto bare = [](uint8_t type) {
    return Request2{.type = type, .slot = 5, .sequence = kSequence, .cookie = kCookie};
  };
  return {{"request-read", ranged(NETBLK2_READ, 0, 512, 0)},
          {"request-write", ranged(NETBLK2_WRITE, NETBLK2_FUA, 512, 512)},
          {"request-write-lz4", ranged(NETBLK2_WRITE, NETBLK2_LZ4, 512, 12)},
          {"request-flush", bare(NETBLK2_FLUSH)},
          {"request-trim", ranged(NETBLK2_TRIM, 0, UINT32_MAX - 511, 0)},
          {"request-write-zeroes", ranged(NETBLK2_WRITE_ZEROES, NETBLK2_FUA | NETBLK2_NO_UNMAP, 512, 0)},
          {"request-nop", bare(NETBLK2_NOP)},
          {"request-goodbye", {.type = NETBLK2_GOODBYE, .flags = NETBLK2_END_SESSION, .cookie = kCookie}},
          {"request-heartbeat", {.type = NETBLK2_HEARTBEAT}}};
}

std::map<std::string, Reply2> replies() {
  const auto reply = [](uint8_t type, uint32_t status = NETBLK2_OK, uint8_t flags = 0, uint32_t payload = 0) {
    return Reply2{.type = type, .flags = flags, .slot = 5, .sequence = kSequence, .cookie = kCookie, .status = status,
                  .payload_length = payload};
  };
  return {{"reply-read", reply(NETBLK2_READ, NETBLK2_OK, 0, 512)},
          {"reply-read-lz4", reply(NETBLK2_READ, NETBLK2_OK, NETBLK2_LZ4, 12)},
          {"reply-read-eio", reply(NETBLK2_READ, NETBLK2_EIO)},
          {"reply-write", reply(NETBLK2_WRITE)},
          {"reply-write-enospc", reply(NETBLK2_WRITE, NETBLK2_ENOSPC)},
          {"reply-flush", reply(NETBLK2_FLUSH)},
          {"reply-trim", reply(NETBLK2_TRIM)},
          {"reply-write-zeroes", reply(NETBLK2_WRITE_ZEROES)},
          {"reply-nop", reply(NETBLK2_NOP)},
          {"reply-goodbye", {.type = NETBLK2_GOODBYE, .cookie = kCookie}},
          {"reply-heartbeat", {.type = NETBLK2_HEARTBEAT}},
          {"reply-resize", {.type = NETBLK2_RESIZE, .cookie = 200u << 20}}};
}

TEST(Golden2, Hellos) {
  for (const auto& [name, hello] : hellos()) {
    const Bytes bytes = golden(name);
    EXPECT_EQ(encode_hello(hello), bytes) << name;
    EXPECT_EQ(hello_length(bytes).value(), bytes.size()) << name;
    EXPECT_EQ(decode_hello(bytes).value(), hello) << name;
  }
}

TEST(Golden2, Welcomes) {
  for (const auto& [name, welcome] : welcomes()) {
    const Bytes bytes = golden(name);
    EXPECT_EQ(encode_welcome(welcome), bytes) << name;
    EXPECT_EQ(welcome_length(bytes).value(), bytes.size()) << name;
    EXPECT_EQ(decode_welcome(bytes).value(), welcome) << name;
  }
}

// The header is encoded with the checksum of the payload that the file has behind it.
template <class Message, class Encode, class Decode>
void check_messages(const std::map<std::string, Message>& messages, size_t header, Encode encode, Decode decode) {
  for (const bool crc : {true, false})
    for (const auto& [plain_name, plain] : messages) {
      const std::string name = plain_name + (crc ? "-crc" : "-plain");
      const Bytes bytes = golden(name);
      Message message = plain;
      ASSERT_EQ(bytes.size(), header + message.payload_length) << name;
      if (crc && message.payload_length > 0) message.payload_crc = crc32c(std::span(bytes).subspan(header));
      Bytes ours(header);
      encode(message, crc, ours.data());
      EXPECT_EQ(ours, Bytes(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(header))) << name;
      const Framing2 framing{.crc = crc, .lz4 = true, .zstd = true, .max_payload_bytes = NETBLK2_MIN_MAX_PAYLOAD};
      Message got;
      const char* wrong = decode(std::span(bytes).first(header), framing, got);
      EXPECT_EQ(wrong, nullptr) << name << ": " << wrong;
      EXPECT_EQ(got, message) << name;
    }
}

TEST(Golden2, Requests) { check_messages(requests(), NETBLK2_REQUEST_SIZE, encode_request, decode_request); }

TEST(Golden2, Replies) { check_messages(replies(), NETBLK2_REPLY_SIZE, encode_reply, decode_reply); }

TEST(Golden2, Times) {
  const Times2 times{.request_type = NETBLK2_WRITE, .count = 3, .server_ns = 1'500'000, .store_ns = 5'000'000'000};
  for (const bool crc : {true, false}) {
    const Bytes bytes = golden(crc ? "times-write-crc" : "times-write-plain");
    Bytes ours(NETBLK2_TIMES_SIZE);
    encode_times(times, crc, ours.data());
    EXPECT_EQ(ours, bytes);
    Reply2 reply;
    EXPECT_EQ(decode_reply(bytes, {.crc = crc, .times = true}, reply), nullptr);
    EXPECT_EQ(reply, Reply2{.type = NETBLK2_TIMES});
    Times2 got;
    EXPECT_EQ(decode_times(bytes, got), nullptr);
    EXPECT_EQ(got, times);
    EXPECT_NE(decode_reply(bytes, {.crc = crc}, reply), nullptr) << "without the feature";
  }
}

TEST(Golden2, EveryFileIsChecked) {
  std::set<std::string> known;
  for (const auto& [name, hello] : hellos()) known.insert(name);
  for (const auto& [name, welcome] : welcomes()) known.insert(name);
  for (const char* end : {"-crc", "-plain"}) {
    for (const auto& [name, request] : requests()) known.insert(name + end);
    for (const auto& [name, reply] : replies()) known.insert(name + end);
    known.insert(std::string("times-write") + end);
  }
  std::set<std::string> there;
  for (const auto& entry : std::filesystem::directory_iterator(kFolder)) there.insert(entry.path().stem().string());
  EXPECT_EQ(there, known);
}

}  // namespace
}  // namespace netblk::proto
