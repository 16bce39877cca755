// SPDX-License-Identifier: GPL-2.0-only
#include "proto/netblk/compress.h"

#include <lz4.h>
#include <zstd.h>

namespace netblk::proto {
namespace {

// The fastest of Zstandard's standard levels: a disk's bytes are in a hurry.
constexpr int kZstdLevel = 1;

struct FreeCompress {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
};
struct FreeDecompress {
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

}  // namespace

struct Compressor::Contexts {
  std::unique_ptr<ZSTD_CCtx, FreeCompress> compress;
  std::unique_ptr<ZSTD_DCtx, FreeDecompress> decompress;
};

Compressor::Compressor() : contexts_(std::make_unique<Contexts>()) {}
Compressor::~Compressor() = default;

size_t Compressor::compress(uint8_t flag, std::span<const std::byte> from, std::span<std::byte> to) {
  if (flag == NETBLK2_LZ4) {
    const int got = LZ4_compress_default(reinterpret_cast<const char*>(from.data()), reinterpret_cast<char*>(to.data()),
                                         static_cast<int>(from.size()), static_cast<int>(to.size()));
    return got > 0 ? static_cast<size_t>(got) : 0;
  }
  if (contexts_->compress == nullptr) contexts_->compress.reset(ZSTD_createCCtx());
  if (contexts_->compress == nullptr) return 0;
  const size_t got =
      ZSTD_compressCCtx(contexts_->compress.get(), to.data(), to.size(), from.data(), from.size(), kZstdLevel);
  return ZSTD_isError(got) ? 0 : got;
}

bool Compressor::decompress(uint8_t flag, std::span<const std::byte> from, std::span<std::byte> to) {
  if (flag == NETBLK2_LZ4) {
    const int got = LZ4_decompress_safe(reinterpret_cast<const char*>(from.data()), reinterpret_cast<char*>(to.data()),
                                        static_cast<int>(from.size()), static_cast<int>(to.size()));
    return got >= 0 && static_cast<size_t>(got) == to.size();
  }
  // Exactly one frame: a second one, or an empty one before it, is not a payload.
  if (ZSTD_findFrameCompressedSize(from.data(), from.size()) != from.size()) return false;
  if (contexts_->decompress == nullptr) contexts_->decompress.reset(ZSTD_createDCtx());
  if (contexts_->decompress == nullptr) return false;
  const size_t got = ZSTD_decompressDCtx(contexts_->decompress.get(), to.data(), to.size(), from.data(), from.size());
  return !ZSTD_isError(got) && got == to.size();
}

}  // namespace netblk::proto
