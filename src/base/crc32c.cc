// SPDX-License-Identifier: GPL-2.0-only
#include "base/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace netblk {

uint32_t crc32c(std::span<const std::byte> bytes, uint32_t before) {
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
