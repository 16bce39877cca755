// SPDX-License-Identifier: GPL-2.0-only
// The stream of `netblk volume send` and `receive` (docs/volume-stream.md), without I/O. Decoders take any bytes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"
#include "store/volume/transfer.h"

namespace netblk::store::volume {

inline constexpr uint32_t kStreamVersion = 1;
inline constexpr size_t kStreamHeaderBytes = 512;
inline constexpr size_t kStreamRecordBytes = 48;
inline constexpr uint32_t kMaxStreamPayload = 1u << 20;

struct StreamHeader {
  Transfer what;
  uint64_t start_offset = 0;  // what is before it was sent by an earlier stream
  bool operator==(const StreamHeader&) const = default;
};

std::array<std::byte, kStreamHeaderBytes> encode(const StreamHeader& header);
// EBADMSG: not a stream, or not whole. EPROTONOSUPPORT: of another version.
Result<StreamHeader> decode_stream_header(std::span<const std::byte, kStreamHeaderBytes> bytes);

enum class StreamKind : uint32_t { kData = 1, kZero = 2, kHole = 3, kEnd = 4 };

struct StreamRecord {
  StreamKind kind = StreamKind::kEnd;
  uint32_t payload_bytes = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
};

// Numbers and sums the records of one stream, as it is written.
class StreamWriter {
 public:
  explicit StreamWriter(std::span<const std::byte, kStreamHeaderBytes> header);
  // kData: the payload is `length` bytes. kEnd: offset is the size, length the bytes of data that were sent.
  std::array<std::byte, kStreamRecordBytes> record(StreamKind kind, uint64_t offset, uint64_t length,
                                                   std::span<const std::byte> payload = {});
  std::array<std::byte, kStreamRecordBytes> end();

 private:
  const uint64_t size_bytes_;
  const uint32_t seed_;
  uint64_t number_ = 0;
  uint64_t data_bytes_ = 0;
  uint32_t sum_ = 0;  // of the sums of all records
};

// And as it is read: first a record's fixed part, then its payload. An error ends the stream, and nothing of that record counts.
class StreamReader {
 public:
  // The header was decoded.
  StreamReader(const StreamHeader& header, std::span<const std::byte, kStreamHeaderBytes> bytes);
  // What is asked to be read, in range and in order; its sum is not known to be right before passes().
  Result<StreamRecord> record(std::span<const std::byte, kStreamRecordBytes> bytes);
  Status passes(std::span<const std::byte> payload);

  // Everything below has come.
  uint64_t offset() const { return offset_; }
  bool ended() const { return ended_; }

 private:
  Error bad(std::string_view what) const;

  const uint64_t size_bytes_;
  const uint32_t seed_;
  std::array<std::byte, kStreamRecordBytes> bytes_{};
  StreamRecord now_;
  uint64_t number_ = 0;
  uint64_t offset_;
  uint64_t data_bytes_ = 0;
  uint32_t sum_ = 0;
  bool ended_ = false;
};

// Where a receiver is, as a text that a sender goes on from: the offset, and what is being sent.
std::string resume_token(const Transfer& what, uint64_t offset);
// As one is written, whatever it is of.
bool looks_like_token(std::string_view text);
// The offset. EINVAL: no token. ESTALE: of another transfer.
Result<uint64_t> parse_resume_token(std::string_view text, const Transfer& what);

}  // namespace netblk::store::volume
