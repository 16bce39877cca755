// SPDX-License-Identifier: GPL-2.0-only
// Any text as a configuration file, an export, a listen address and an address range: an answer or an error in words.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "server/config.h"

namespace {

template <class T>
void expect_words(const netblk::Result<T>& result) {
  if (!result && result.error().message.empty()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  expect_words(netblk::server::parse_config(text, "fuzz.toml"));
  expect_words(netblk::server::parse_export(text));
  expect_words(netblk::server::parse_listen(text));
  expect_words(netblk::server::parse_cidr(text));
  return 0;
}
