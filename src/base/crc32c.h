// SPDX-License-Identifier: GPL-2.0-only
// CRC32C (Castagnoli, RFC 3720 appendix B.4), by the processor's own instructions where it has them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace netblk {

// The checksum of `bytes`; or, given that of the bytes before them, of both.
uint32_t crc32c(std::span<const std::byte> bytes, uint32_t before = 0);

}  // namespace netblk
