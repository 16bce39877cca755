// SPDX-License-Identifier: GPL-2.0-only
// Codec: payloads of data records, compressed (docs/volume-format.md, "Compression").
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "store/volume/format.h"

namespace netblk::store::volume {

// "none", "lz4", "zstd".
std::optional<Compression> compression_named(std::string_view name);
const char* name_of(Compression compression);
// The flag of a record; 0: none.
uint8_t flag_of(Compression compression);

// Memory and contexts are used again. One caller at a time.
class Compressor {
 public:
  Compressor();
  ~Compressor();

  // Bytes written to `to`; 0: it does not fit there. LZ4 gives up on what has no patterns in 3 µs per 64 KiB, Zstandard in 4:
  // nothing has to guess before.
  size_t compress(Compression how, std::span<const std::byte> from, std::span<std::byte> to);

 private:
  struct Contexts;
  std::unique_ptr<Contexts> contexts_;
};

// True: `from` held exactly to.size() bytes. Any bytes are legal, and nothing beyond `to` is written. flag: kFlagLz4, kFlagZstd.
bool decompress(uint8_t flag, std::span<const std::byte> from, std::span<std::byte> to);

}  // namespace netblk::store::volume
