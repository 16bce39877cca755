// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/codec.h"

#include <lz4.h>
#include <zstd.h>

#include <array>
#include <utility>
#include <vector>

namespace netblk::store::volume {
namespace {

// The fastest of Zstandard's standard levels: a disk's bytes are in a hurry.
constexpr int kZstdLevel = 1;

constexpr std::array<std::pair<Compression, const char*>, 3> kNames = {
    {{Compression::kNone, "none"}, {Compression::kLz4, "lz4"}, {Compression::kZstd, "zstd"}}};

struct FreeCompress {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
};
struct FreeDecompress {
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

const char* chars(std::span<const std::byte> bytes) { return reinterpret_cast<const char*>(bytes.data()); }
char* chars(std::span<std::byte> bytes) { return reinterpret_cast<char*>(bytes.data()); }

}  // namespace

std::optional<Compression> compression_named(std::string_view name) {
  for (const auto& [compression, text] : kNames)
    if (name == text) return compression;
  return std::nullopt;
}

const char* name_of(Compression compression) { return kNames[static_cast<size_t>(compression)].second; }

uint8_t flag_of(Compression compression) {
  if (compression == Compression::kLz4) return kFlagLz4;
  return compression == Compression::kZstd ? kFlagZstd : 0;
}

struct Compressor::Contexts {
  std::vector<std::byte> lz4 = std::vector<std::byte>(static_cast<size_t>(LZ4_sizeofState()));
  std::unique_ptr<ZSTD_CCtx, FreeCompress> zstd;
};

Compressor::Compressor() = default;
Compressor::~Compressor() = default;

size_t Compressor::compress(Compression how, std::span<const std::byte> from, std::span<std::byte> to) {
  if (contexts_ == nullptr) contexts_ = std::make_unique<Contexts>();
  if (how == Compression::kLz4) {
    const int got = LZ4_compress_fast_extState(contexts_->lz4.data(), chars(from), chars(to), static_cast<int>(from.size()),
                                               static_cast<int>(to.size()), 1);
    return got > 0 ? static_cast<size_t>(got) : 0;
  }
  if (how == Compression::kNone) return 0;
  if (contexts_->zstd == nullptr) contexts_->zstd.reset(ZSTD_createCCtx());
  if (contexts_->zstd == nullptr) return 0;
  const size_t got = ZSTD_compressCCtx(contexts_->zstd.get(), to.data(), to.size(), from.data(), from.size(), kZstdLevel);
  return ZSTD_isError(got) ? 0 : got;
}

bool decompress(uint8_t flag, std::span<const std::byte> from, std::span<std::byte> to) {
  if (flag == kFlagLz4) {
    const int got = LZ4_decompress_safe(chars(from), chars(to), static_cast<int>(from.size()), static_cast<int>(to.size()));
    return got >= 0 && static_cast<size_t>(got) == to.size();
  }
  // One frame: a second one is no payload.
  if (flag != kFlagZstd || ZSTD_findFrameCompressedSize(from.data(), from.size()) != from.size()) return false;
  static thread_local std::unique_ptr<ZSTD_DCtx, FreeDecompress> context;
  if (context == nullptr) context.reset(ZSTD_createDCtx());
  if (context == nullptr) return false;
  const size_t got = ZSTD_decompressDCtx(context.get(), to.data(), to.size(), from.data(), from.size());
  return !ZSTD_isError(got) && got == to.size();
}

}  // namespace netblk::store::volume
