// SPDX-License-Identifier: GPL-2.0-only
#include "proto/netblk/codec2.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace netblk::proto {
namespace {

Id id_of(uint8_t first) {
  Id id;
  for (uint8_t& byte : id.bytes) byte = first++;
  return id;
}

Hello2 a_hello() {
  Hello2 hello;
  hello.flags = NETBLK2_HELLO_WRITE;
  hello.connection = 3;
  hello.slots = 256;
  hello.client_id = id_of(1);
  hello.session_id = id_of(32);
  hello.epoch = 7;
  hello.store_uuid = id_of(64);
  hello.generation = 9;
  hello.features = {make_feature(NETBLK2_FEATURE_CRC32C, 0, true), make_feature(NETBLK2_FEATURE_HEARTBEAT, 5000)};
  hello.export_name = "disk";
  return hello;
}

Welcome2 a_welcome() {
  Welcome2 welcome;
  welcome.flags = NETBLK2_WELCOME_NEW | NETBLK2_WELCOME_TRIM;
  welcome.max_connections = 8;
  welcome.session_id = id_of(1);
  welcome.store_uuid = id_of(2);
  welcome.generation = 3;
  welcome.size_bytes = uint64_t{1} << 40;
  welcome.features = {make_feature(NETBLK2_FEATURE_CRC32C)};
  return welcome;
}

TEST(Codec2, HelloAndBack) {
  const Hello2 hello = a_hello();
  const auto whole = encode_hello(hello);
  EXPECT_EQ(whole.size() % 8, 0u);
  EXPECT_EQ(hello_length(std::span(whole).first(kGreetingPrefix)).value(), whole.size());
  EXPECT_EQ(decode_hello(whole).value(), hello);
}

TEST(Codec2, WelcomeAndBack) {
  Welcome2 welcome = a_welcome();
  EXPECT_EQ(decode_welcome(encode_welcome(welcome)).value(), welcome);
  welcome.status = NETBLK2_EBUSY;
  welcome.body = "another client writes";
  EXPECT_EQ(decode_welcome(encode_welcome(welcome)).value(), welcome);
}

TEST(Codec2, EveryFlippedBitOfAGreetingIsNoticed) {
  auto whole = encode_hello(a_hello());
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    whole[bit / 8] ^= std::byte{1} << (bit % 8);
    const auto length = hello_length(std::span(whole).first(kGreetingPrefix));
    EXPECT_TRUE(!length || length.value() != whole.size() || !decode_hello(whole)) << "bit " << bit;
    whole[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

TEST(Codec2, AListOutOfOrderIsRefused) {
  Hello2 hello = a_hello();
  std::swap(hello.features[0], hello.features[1]);
  EXPECT_FALSE(decode_hello(encode_hello(hello)));
  hello.features = {make_feature(NETBLK2_FEATURE_LZ4), make_feature(NETBLK2_FEATURE_LZ4)};
  EXPECT_FALSE(decode_hello(encode_hello(hello)));
}

TEST(Codec2, AnUnknownFeatureKeepsItsName) {
  Hello2 hello = a_hello();
  hello.features.push_back({900, true, 5, "teleport"});
  const Hello2 got = decode_hello(encode_hello(hello)).value();
  EXPECT_EQ(got.features.back().name, "teleport");
  EXPECT_TRUE(got.features.back().mandatory);
}

TEST(Codec2, ExportsAndBack) {
  const std::vector<Export2> exports = {{4096, 0, "a"}, {8192, NETBLK2_WELCOME_READ_ONLY, "a longer name"}};
  std::string body;
  for (const Export2& entry : exports) append_export(body, entry);
  EXPECT_EQ(decode_exports(body).value(), exports);
  EXPECT_FALSE(decode_exports(body.substr(0, body.size() - 8)));
}

Request2 a_request(uint8_t type) {
  Request2 request;
  request.type = type;
  request.slot = 5;
  request.sequence = 6;
  request.cookie = 7;
  request.offset = 4096;
  request.length = 4096;
  if (type == NETBLK2_WRITE) request.payload_length = 4096;
  return request;
}

const char* refusal(const Request2& request, Framing2 framing = {.crc = true}) {
  std::byte header[NETBLK2_REQUEST_SIZE];
  encode_request(request, framing.crc, header);
  Request2 got;
  const char* wrong = decode_request(header, framing, got);
  if (wrong == nullptr) {
    EXPECT_EQ(got, request);
  }
  return wrong;
}

TEST(Codec2, RequestsAndBack) {
  for (const uint8_t type : {NETBLK2_READ, NETBLK2_WRITE, NETBLK2_TRIM, NETBLK2_WRITE_ZEROES})
    EXPECT_EQ(refusal(a_request(type)), nullptr) << int{type};
  EXPECT_EQ(refusal({.type = NETBLK2_FLUSH, .slot = 1, .sequence = 2, .cookie = 3}), nullptr);
  EXPECT_EQ(refusal({.type = NETBLK2_GOODBYE, .flags = NETBLK2_END_SESSION, .cookie = 3}), nullptr);
  EXPECT_EQ(refusal({.type = NETBLK2_HEARTBEAT}), nullptr);
}

TEST(Codec2, RequestsThatAreNone) {
  Request2 request = a_request(NETBLK2_READ);
  request.payload_length = 1;
  EXPECT_NE(refusal(request), nullptr);
  request = a_request(NETBLK2_READ);
  request.flags = NETBLK2_FUA;
  EXPECT_NE(refusal(request), nullptr);
  request = a_request(NETBLK2_WRITE);
  request.length = 512;
  EXPECT_NE(refusal(request), nullptr);
  request = a_request(NETBLK2_WRITE);
  request.flags = NETBLK2_LZ4;
  request.payload_length = 100;
  EXPECT_NE(refusal(request), nullptr);
  EXPECT_EQ(refusal(request, {.crc = true, .lz4 = true}), nullptr);
  request.flags = NETBLK2_LZ4 | NETBLK2_ZSTD;
  EXPECT_NE(refusal(request, {.lz4 = true, .zstd = true}), nullptr);
  request = a_request(NETBLK2_READ);
  request.length = NETBLK2_MAX_PAYLOAD + 512;
  EXPECT_NE(refusal(request), nullptr);
  for (int type = 0; type < 256; ++type)
    if (type < NETBLK2_READ || type > NETBLK2_HEARTBEAT) {
      EXPECT_NE(refusal({.type = static_cast<uint8_t>(type)}), nullptr);
    }
}

TEST(Codec2, EveryFlippedBitOfAHeaderIsNoticed) {
  std::byte header[NETBLK2_REQUEST_SIZE];
  encode_request(a_request(NETBLK2_WRITE), true, header);
  for (size_t bit = 0; bit < sizeof header * 8; ++bit) {
    header[bit / 8] ^= std::byte{1} << (bit % 8);
    Request2 got;
    EXPECT_NE(decode_request(header, {.crc = true}, got), nullptr) << "bit " << bit;
    header[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

TEST(Codec2, RepliesAndBack) {
  const auto refused = [](const Reply2& reply) {
    std::byte header[NETBLK2_REPLY_SIZE];
    encode_reply(reply, true, header);
    Reply2 got;
    const char* wrong = decode_reply(header, {.crc = true}, got);
    return wrong != nullptr || !(got == reply);
  };
  EXPECT_FALSE(refused({.type = NETBLK2_READ, .slot = 1, .sequence = 2, .cookie = 3, .payload_length = 512}));
  EXPECT_FALSE(refused({.type = NETBLK2_WRITE, .slot = 1, .status = NETBLK2_ENOSPC}));
  EXPECT_FALSE(refused({.type = NETBLK2_RESIZE, .cookie = uint64_t{1} << 40}));
  EXPECT_TRUE(refused({.type = NETBLK2_READ, .payload_length = 0}));
  EXPECT_TRUE(refused({.type = NETBLK2_READ, .status = NETBLK2_EIO, .payload_length = 512}));
  EXPECT_TRUE(refused({.type = NETBLK2_WRITE, .payload_length = 512}));
  EXPECT_TRUE(refused({.type = NETBLK2_READ, .flags = NETBLK2_LZ4, .payload_length = 100}));
  EXPECT_TRUE(refused({.type = 77}));
}

TEST(Codec2, WhatIsNotInTheListOfStatusesIsEio) {
  EXPECT_EQ(status_of(ENOSPC), uint32_t{NETBLK2_ENOSPC});
  EXPECT_EQ(status_of(ECANCELED), uint32_t{NETBLK2_EIO});
  EXPECT_EQ(error_of(12345), EIO);
  EXPECT_EQ(error_of(NETBLK2_EROFS), EROFS);
}

}  // namespace
}  // namespace netblk::proto
