// SPDX-License-Identifier: GPL-2.0-only
// Compressed payloads of netblk/2 (protocol/netblk.md, "Compression"): one LZ4 block or one Zstandard frame.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "protocol/netblk_wire.h"

namespace netblk::proto {

// One thread's: contexts are kept between calls.
class Compressor {
 public:
  Compressor();
  ~Compressor();

  // flag: NETBLK2_LZ4 or NETBLK2_ZSTD. Bytes written to `to`, which is smaller than `from`; 0 when the result does not fit
  // there: the payload is then sent plain.
  size_t compress(uint8_t flag, std::span<const std::byte> from, std::span<std::byte> to);

  // True when `from` holds exactly to.size() bytes. Any bytes are legal input; nothing beyond `to` is written.
  bool decompress(uint8_t flag, std::span<const std::byte> from, std::span<std::byte> to);

 private:
  struct Contexts;
  std::unique_ptr<Contexts> contexts_;
};

// Whether compressing is worth its time: data that did not shrink lately is not tried for a while.
class CompressionLuck {
 public:
  bool worth_trying() {
    if (skip_ == 0) return true;
    --skip_;
    return false;
  }
  void note(bool shrank) {
    streak_ = shrank ? 0 : (streak_ < kLongest ? streak_ + 1 : streak_);
    skip_ = streak_ == 0 ? 0 : (1u << streak_) - 1;
  }

 private:
  static constexpr uint32_t kLongest = 6;
  uint32_t streak_ = 0;
  uint32_t skip_ = 0;
};

// A payload is compressed when that saves at least an eighth.
constexpr size_t worthwhile_bytes(size_t plain_bytes) { return plain_bytes - plain_bytes / 8; }

}  // namespace netblk::proto
