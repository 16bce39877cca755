// SPDX-License-Identifier: GPL-2.0-only
// Any bytes into the server's half of NBD's handshake: what is accepted is what was there, and within its limits.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <string_view>

#include "proto/nbd/server_options.h"

namespace {

using namespace netblk::proto;

void expect(bool true_always) {
  if (!true_always) std::abort();
}

void go(std::span<const std::byte> data) {
  NbdGo wish;
  if (decode_nbd_go(data, wish) != nullptr) return;
  expect(is_nbd_string(wish.name));
  const size_t infos = data.size() - sizeof(uint32_t) - wish.name.size() - sizeof(uint16_t);
  expect(wish.name.size() < data.size() && infos % sizeof(uint16_t) == 0);
  const size_t wanted = size_t{wish.wants_name} + size_t{wish.wants_description} + size_t{wish.wants_block_size};
  expect(wanted <= infos / sizeof(uint16_t));
}

void contexts(std::span<const std::byte> data) {
  NbdContextQuery query;
  if (decode_nbd_context_query(data, query) != nullptr) return;
  expect(is_nbd_string(query.name));
  size_t bytes = 2 * sizeof(uint32_t) + query.name.size();
  for (const std::string_view text : query.queries) {
    expect(is_nbd_string(text));
    bytes += sizeof(uint32_t) + text.size();
  }
  expect(bytes == data.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  // As a handshake goes: one option after the other; each one's data are read by both decoders, whatever its type.
  while (bytes.size() >= NBD_OPTION_SIZE) {
    NbdOption option;
    if (decode_nbd_option(bytes.data(), option) != nullptr) break;
    expect(!nbd_option_text(option.type).empty());
    bytes = bytes.subspan(NBD_OPTION_SIZE);
    if (option.length > bytes.size()) break;
    go(bytes.first(option.length));
    contexts(bytes.first(option.length));
    bytes = bytes.subspan(option.length);
  }
  go(bytes);
  contexts(bytes);
  return 0;
}
