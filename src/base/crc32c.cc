// SPDX-License-Identifier: GPL-2.0-only
#include "base/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace netblk {

#if defined(__x86_64__)
namespace {

// A header: isa-l's way of starting and ending takes longer than this takes for all of it.
constexpr size_t kShort = 64;
const bool has_instruction = __builtin_cpu_supports("sse4.2") != 0;

[[gnu::target("sse4.2")]] uint32_t short_crc32c(std::span<const std::byte> bytes, uint32_t before) {
  uint64_t state = static_cast<uint32_t>(~before);
  const std::byte* at = bytes.data();
  size_t left = bytes.size();
  for (; left >= 8; at += 8, left -= 8) {
    uint64_t word;
    std::memcpy(&word, at, sizeof word);
    state = _mm_crc32_u64(state, word);
  }
  auto small = static_cast<uint32_t>(state);
  if (left >= 4) {
    uint32_t word;
    std::memcpy(&word, at, sizeof word);
    small = _mm_crc32_u32(small, word);
    at += 4;
    left -= 4;
  }
  for (; left > 0; ++at, --left) small = _mm_crc32_u8(small, std::to_integer<uint8_t>(*at));
  return ~small;
}

}  // namespace
#endif

uint32_t crc32c(std::span<const std::byte> bytes, uint32_t before) {
#if defined(__x86_64__)
  if (bytes.size() <= kShort && has_instruction) return short_crc32c(bytes, before);
#endif
  // isa-l takes and gives the register as it is, takes a length of int, and does not write to what it reads.
  constexpr size_t kMost = size_t{1} << 30;
  uint32_t state = ~before;
  while (!bytes.empty()) {
    const auto part = bytes.first(std::min(bytes.size(), kMost));
    auto* data = reinterpret_cast<unsigned char*>(const_cast<std::byte*>(part.data()));
    state = crc32_iscsi(data, static_cast<int>(part.size()), state);
    bytes = bytes.subspan(part.size());
  }
  return ~state;
}

}  // namespace netblk
