// SPDX-License-Identifier: GPL-2.0-only
// Any bytes as a netblk/2 hello, welcome, list of exports and record of owners: a value that survives being encoded and
// decoded again, or words. Each input is also tried with its length and checksum put right, which chance never does.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string_view>
#include <vector>

#include "base/crc32c.h"
#include "base/endian.h"
#include "proto/netblk/codec2.h"
#include "server/owners.h"

namespace {

using netblk::Result;

template <class T>
void expect_words(const Result<T>& result) {
  if (!result && result.error().message.empty()) std::abort();
}

void check(bool holds) {
  if (!holds) std::abort();
}

void exports(std::string_view body) {
  const auto list = netblk::proto::decode_exports(body);
  expect_words(list);
  if (!list) return;
  std::string again;
  for (const auto& entry : list.value()) netblk::proto::append_export(again, entry);
  const auto twice = netblk::proto::decode_exports(again);
  check(twice.ok() && twice.value() == list.value());
}

void greeting(std::span<const std::byte> bytes) {
  if (bytes.size() < netblk::proto::kGreetingPrefix) return;
  const auto hello_length = netblk::proto::hello_length(bytes);
  expect_words(hello_length);
  if (hello_length) check(hello_length.value() >= NETBLK2_HELLO_SIZE && hello_length.value() <= NETBLK2_MAX_HELLO);
  if (hello_length && hello_length.value() <= bytes.size()) {
    const auto hello = netblk::proto::decode_hello(bytes.first(hello_length.value()));
    expect_words(hello);
    if (hello) {
      const auto again = netblk::proto::decode_hello(netblk::proto::encode_hello(hello.value()));
      check(again.ok() && again.value() == hello.value());
    }
  }
  const auto welcome_length = netblk::proto::welcome_length(bytes);
  expect_words(welcome_length);
  if (welcome_length && welcome_length.value() <= bytes.size()) {
    const auto welcome = netblk::proto::decode_welcome(bytes.first(welcome_length.value()));
    expect_words(welcome);
    if (welcome) {
      const auto again = netblk::proto::decode_welcome(netblk::proto::encode_welcome(welcome.value()));
      check(again.ok() && again.value() == welcome.value());
      exports(welcome.value().body);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span bytes(reinterpret_cast<const std::byte*>(data), size);
  greeting(bytes);
  exports({reinterpret_cast<const char*>(data), size});
  const auto owners = netblk::server::decode_owners(bytes);
  expect_words(owners);
  if (owners) {
    const auto again = netblk::server::decode_owners(netblk::server::encode_owners(owners.value()));
    check(again.ok() && again.value() == owners.value());
  }
  if (size < NETBLK2_HELLO_SIZE || size > NETBLK2_MAX_WELCOME) return 0;
  std::vector<std::byte> whole(bytes.begin(), bytes.begin() + static_cast<ptrdiff_t>(size / 8 * 8));
  std::copy_n(reinterpret_cast<const std::byte*>(NETBLK2_MAGIC), NETBLK2_MAGIC_SIZE, whole.begin());
  netblk::store_be(whole.data() + offsetof(netblk2_hello, length), static_cast<uint32_t>(whole.size()));
  netblk::store_be(whole.data() + offsetof(netblk2_hello, crc), uint32_t{0});
  netblk::store_be(whole.data() + offsetof(netblk2_hello, crc), netblk::crc32c(whole));
  greeting(whole);
  return 0;
}
