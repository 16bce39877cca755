// SPDX-License-Identifier: GPL-2.0-only
// Numbers and sizes as people type them. Nothing but the whole text is taken: no sign, no blanks, no rest.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace netblk {

// A decimal number in [minimum, maximum]; nothing else.
std::optional<uint64_t> parse_unsigned(std::string_view text, uint64_t minimum, uint64_t maximum);

// Bytes, or K, M, G, T as powers of 1024 (DESIGN 5): "4096", "64K", "10G". Lower case is taken too.
// Nothing on garbage or on a size above limits::kMaxDeviceBytes.
std::optional<uint64_t> parse_size(std::string_view text);

// %XX stands for a byte. Nothing where a % has no two hexadecimal digits behind it.
std::optional<std::string> percent_decoded(std::string_view text);
// The same, but a % that begins no %XX stands for itself.
std::string percent_decoded_loosely(std::string_view text);
// What stands for itself in the path of a URI stays as it is.
std::string percent_encoded(std::string_view text);

// "100 MiB", "1.5 GiB", "512 bytes".
std::string size_text(uint64_t bytes);

}  // namespace netblk
