// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <vector>

#include "base/check.h"
#include "base/crc32c.h"
#include "base/endian.h"
#include "store/volume/format.h"

namespace netblk::store::volume {
namespace {

constexpr std::string_view kMagic = "NETBLKVS";
constexpr std::string_view kRecordMagic = "NVSR";
constexpr std::array<std::byte, 4> kNoCrc{};

// Of the header.
constexpr size_t kCrc = 8, kVersion = 12, kFeatures = 16, kStart = 24, kBlock = 32, kWhat = 40, kRest = kWhat + kTransferBytes;
static_assert(kRest <= kStreamHeaderBytes);
// Of a record.
constexpr size_t kRecordCrc = 4, kNumber = 8, kKind = 16, kPayload = 20, kOffset = 24, kLength = 32, kSum = 40, kZero = 44;

using Header = std::span<const std::byte, kStreamHeaderBytes>;
using Record = std::span<const std::byte, kStreamRecordBytes>;

uint32_t crc_around(std::span<const std::byte> bytes, size_t field, uint32_t before) {
  const uint32_t upto = crc32c(bytes.first(field), before);
  return crc32c(bytes.subspan(field + 4), crc32c(kNoCrc, upto));
}

uint32_t add_to(uint32_t sum, uint32_t crc) {
  std::array<std::byte, 4> bytes;
  store_le(bytes.data(), crc);
  return crc32c(bytes, sum);
}

}  // namespace

std::array<std::byte, kStreamHeaderBytes> encode(const StreamHeader& header) {
  std::array<std::byte, kStreamHeaderBytes> bytes{};
  std::memcpy(bytes.data(), kMagic.data(), kMagic.size());
  store_le(bytes.data() + kVersion, kStreamVersion);
  store_le(bytes.data() + kStart, header.start_offset);
  store_le(bytes.data() + kBlock, kBlockBytes);
  put_transfer(header.what, std::span(bytes).subspan<kWhat, kTransferBytes>());
  store_le(bytes.data() + kCrc, crc_around(bytes, kCrc, 0));
  return bytes;
}

Result<StreamHeader> decode_stream_header(Header bytes) {
  if (std::memcmp(bytes.data(), kMagic.data(), kMagic.size()) != 0)
    return make_error(EBADMSG, "this is no stream of `netblk volume send`");
  const auto version = load_le<uint32_t>(bytes.data() + kVersion);
  if (crc_around(bytes, kCrc, 0) != load_le<uint32_t>(bytes.data() + kCrc))
    return make_error(EBADMSG, "the stream's header is damaged: send it again");
  if (version != kStreamVersion || load_le<uint64_t>(bytes.data() + kFeatures) != 0)
    return make_error(EPROTONOSUPPORT, "the stream is of version {} with features {:#x}, and this program knows version {} without any",
                      version, load_le<uint64_t>(bytes.data() + kFeatures), kStreamVersion);
  const auto what = get_transfer(bytes.subspan<kWhat, kTransferBytes>());
  StreamHeader header;
  header.start_offset = load_le<uint64_t>(bytes.data() + kStart);
  const auto rest = bytes.subspan<kRest>();
  const bool zero = std::all_of(rest.begin(), rest.end(), [](std::byte each) { return each == std::byte{0}; });
  if (!what || !zero || load_le<uint32_t>(bytes.data() + kBlock) != kBlockBytes || load_le<uint32_t>(bytes.data() + kBlock + 4) != 0 ||
      header.start_offset > what->size_bytes || (header.start_offset % kBlockBytes != 0 && header.start_offset != what->size_bytes))
    return make_error(EBADMSG, "the stream's header makes no sense");
  header.what = *what;
  return header;
}

// --- Writing --------------------------------------------------------------------------------------------------------

StreamWriter::StreamWriter(Header header)
    : size_bytes_(load_le<uint64_t>(header.data() + kWhat + 2 * kIdentityBytes)),
      seed_(load_le<uint32_t>(header.data() + kCrc)) {}

std::array<std::byte, kStreamRecordBytes> StreamWriter::record(StreamKind kind, uint64_t offset, uint64_t length,
                                                               std::span<const std::byte> payload) {
  NETBLK_CHECK(payload.size() <= kMaxStreamPayload, "a payload is too long");
  std::array<std::byte, kStreamRecordBytes> bytes{};
  std::memcpy(bytes.data(), kRecordMagic.data(), kRecordMagic.size());
  store_le(bytes.data() + kNumber, ++number_);
  store_le(bytes.data() + kKind, static_cast<uint32_t>(kind));
  store_le(bytes.data() + kPayload, static_cast<uint32_t>(payload.size()));
  store_le(bytes.data() + kOffset, offset);
  store_le(bytes.data() + kLength, length);
  if (kind == StreamKind::kEnd) store_le(bytes.data() + kSum, sum_);
  const uint32_t crc = crc32c(payload, crc_around(bytes, kRecordCrc, seed_));
  store_le(bytes.data() + kRecordCrc, crc);
  sum_ = add_to(sum_, crc);
  data_bytes_ += payload.size();
  return bytes;
}

std::array<std::byte, kStreamRecordBytes> StreamWriter::end() { return record(StreamKind::kEnd, size_bytes_, data_bytes_); }

// --- Reading --------------------------------------------------------------------------------------------------------

StreamReader::StreamReader(const StreamHeader& header, Header bytes)
    : size_bytes_(header.what.size_bytes), seed_(load_le<uint32_t>(bytes.data() + kCrc)), offset_(header.start_offset) {}

Error StreamReader::bad(std::string_view what) const {
  return make_error(EBADMSG, "record {} of the stream {}", number_, what);
}

Result<StreamRecord> StreamReader::record(Record bytes) {
  NETBLK_CHECK(!ended_, "a stream is read beyond its end");
  ++number_;
  std::copy(bytes.begin(), bytes.end(), bytes_.begin());
  const auto kind = load_le<uint32_t>(bytes.data() + kKind);
  now_.payload_bytes = load_le<uint32_t>(bytes.data() + kPayload);
  now_.offset = load_le<uint64_t>(bytes.data() + kOffset);
  now_.length = load_le<uint64_t>(bytes.data() + kLength);
  if (std::memcmp(bytes.data(), kRecordMagic.data(), kRecordMagic.size()) != 0) return bad("does not begin as one: it is damaged");
  if (load_le<uint64_t>(bytes.data() + kNumber) != number_)
    return bad(fmt::format("has number {}: the stream is damaged, or parts of it are missing", load_le<uint64_t>(bytes.data() + kNumber)));
  if (kind < static_cast<uint32_t>(StreamKind::kData) || kind > static_cast<uint32_t>(StreamKind::kEnd) ||
      load_le<uint32_t>(bytes.data() + kZero) != 0)
    return bad("is of a kind that this program does not know: it is damaged");
  now_.kind = static_cast<StreamKind>(kind);
  if (now_.kind == StreamKind::kEnd) {
    if (now_.payload_bytes != 0 || now_.offset != size_bytes_) return bad("makes no sense: it is damaged");
    return now_;
  }
  const bool has_data = now_.kind == StreamKind::kData;
  // In order, inside the disk, in whole blocks but for the disk's own end.
  const bool in_range = now_.length != 0 && now_.offset >= offset_ && now_.offset <= size_bytes_ &&
                        now_.length <= size_bytes_ - now_.offset && now_.offset % kBlockBytes == 0 &&
                        (now_.length % kBlockBytes == 0 || now_.offset + now_.length == size_bytes_);
  if (!in_range || load_le<uint32_t>(bytes.data() + kSum) != 0 || now_.payload_bytes != (has_data ? now_.length : 0) ||
      now_.payload_bytes > kMaxStreamPayload)
    return bad("makes no sense: it is damaged");
  return now_;
}

Status StreamReader::passes(std::span<const std::byte> payload) {
  const uint32_t crc = crc32c(payload, crc_around(bytes_, kRecordCrc, seed_));
  if (payload.size() != now_.payload_bytes || crc != load_le<uint32_t>(bytes_.data() + kRecordCrc))
    return bad("does not have the sum that was sent: it is damaged");
  if (now_.kind == StreamKind::kEnd) {
    if (load_le<uint32_t>(bytes_.data() + kSum) != sum_ || now_.length != data_bytes_)
      return bad("is the end, and of another stream: parts of this one are missing");
    ended_ = true;
    offset_ = size_bytes_;
    return Ok{};
  }
  sum_ = add_to(sum_, crc);
  data_bytes_ += payload.size();
  offset_ = now_.offset + now_.length;
  return Ok{};
}

// --- Tokens ---------------------------------------------------------------------------------------------------------

namespace {

constexpr std::string_view kTokenStart = "nvr1-";
constexpr size_t kTokenBytes = 16;

// What is being sent, in four bytes: that a token of another transfer is refused is for its user's sake.
uint32_t sum_of(const Transfer& what) {
  std::array<std::byte, kTransferBytes> bytes;
  put_transfer(what, bytes);
  return crc32c(bytes);
}

}  // namespace

std::string resume_token(const Transfer& what, uint64_t offset) {
  std::array<std::byte, kTokenBytes> bytes;
  store_le(bytes.data(), offset);
  store_le(bytes.data() + 8, sum_of(what));
  store_le(bytes.data() + 12, crc32c(std::span(bytes).first<12>()));
  std::string text(kTokenStart);
  for (const std::byte each : bytes) text += fmt::format("{:02x}", std::to_integer<unsigned>(each));
  return text;
}

bool looks_like_token(std::string_view text) {
  return text.starts_with(kTokenStart) && text.size() == kTokenStart.size() + 2 * kTokenBytes &&
         text.find_first_not_of("0123456789abcdef", kTokenStart.size()) == std::string_view::npos;
}

Result<uint64_t> parse_resume_token(std::string_view text, const Transfer& what) {
  const Error wrong = make_error(EINVAL, "bad token '{}': `netblk volume receive --status` prints it", text);
  if (!looks_like_token(text)) return wrong;
  std::array<std::byte, kTokenBytes> bytes;
  for (size_t i = 0; i < kTokenBytes; ++i) {
    unsigned value = 0;
    for (const char digit : text.substr(kTokenStart.size() + 2 * i, 2)) {
      constexpr std::string_view kDigits = "0123456789abcdef";
      value = value * 16 + static_cast<unsigned>(kDigits.find(digit));
    }
    bytes[i] = static_cast<std::byte>(value);
  }
  if (load_le<uint32_t>(bytes.data() + 12) != crc32c(std::span(bytes).first<12>())) return wrong;
  if (load_le<uint32_t>(bytes.data() + 8) != sum_of(what))
    return make_error(ESTALE, "the token is of another transfer than that of '{}'{}: ask the receiver again",
                      what.to_name, what.is_whole() ? "" : fmt::format(" since '{}'", what.from_name));
  const auto offset = load_le<uint64_t>(bytes.data());
  if (offset > what.size_bytes || (offset % kBlockBytes != 0 && offset != what.size_bytes)) return wrong;
  return offset;
}

}  // namespace netblk::store::volume
