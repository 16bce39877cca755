// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/format.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/crc32c.h"
#include "base/endian.h"
#include "store/volume/crypt.h"

namespace netblk::store::volume {
namespace {

using Bytes = std::span<const std::byte>;

constexpr std::string_view kSuperblockMagic = "NETBLKVL";
constexpr std::string_view kRecordMagic = "NVR1";
constexpr std::string_view kPageMagic = "NVP1";
constexpr std::array<std::byte, 4> kNoCrc{};

static_assert(std::bit_ceil(kBlockBytes) == kBlockBytes && kBlockBytes % kUnitBytes == 0);
static_assert(kMaxHeaderBytes == 448 && kMinHeaderBytes == 128 && record_header_bytes(kMaxSums) == 192);
static_assert(record_header_bytes(1, 1) == record_header_bytes(1) && record_header_bytes(0, 1) == record_header_bytes(0));
static_assert(kPageHeaderBytes + kLeafEntries * kLeafEntryBytes <= kPageBytes);
static_assert(kPageHeaderBytes + kInnerEntries * kInnerEntryBytes <= kPageBytes);
static_assert(most_compressed_bytes(kMaxRecordBlocks) / kUnitBytes < 1024, "Place has ten bits for it");
static_assert(live_bytes_of({.blocks = 1, .place = Place::make(kSegmentsAt, 15, 16, 1)}) > 0);
static_assert(kSuperblockAt[1] + kSuperblockBytes <= kSegmentsAt);

void put_text(std::byte* to, std::string_view text) { std::memcpy(to, text.data(), text.size()); }
bool has_text(const std::byte* from, std::string_view text) { return std::memcmp(from, text.data(), text.size()) == 0; }
void put_id(std::byte* to, const Id& id) { std::memcpy(to, id.bytes.data(), id.bytes.size()); }
Id get_id(const std::byte* from) {
  Id id;
  std::memcpy(id.bytes.data(), from, id.bytes.size());
  return id;
}

// Of bytes whose CRC field, of four bytes, is taken as zero.
uint32_t crc_around(Bytes bytes, size_t field, uint32_t before) {
  const uint32_t upto = crc32c(bytes.first(field), before);
  return crc32c(bytes.subspan(field + 4), crc32c(kNoCrc, upto));
}

template <class T>
T load(Bytes bytes, size_t at) {
  return load_le<T>(bytes.data() + at);
}
template <class T>
void store(std::span<std::byte> bytes, size_t at, T value) {
  store_le(bytes.data() + at, value);
}

}  // namespace

Sums::Sums(const Id& uuid, bool encrypted) : uuid_(crc32c(std::as_bytes(std::span(uuid.bytes)))), encrypted_(encrypted) {}

uint32_t Sums::volume(Bytes bytes) const { return crc32c(bytes, uuid_); }

uint32_t Sums::page(uint64_t offset, Bytes bytes) const {
  std::array<std::byte, 8> place;
  store_le(place.data(), offset);
  // The page's own field, behind its magic.
  return crc_around(bytes, 4, crc32c(place, uuid_));
}

uint32_t Sums::block(uint32_t branch, uint64_t block, uint64_t lsn, Bytes bytes) const {
  std::array<std::byte, 20> address;
  store_le(address.data(), branch);
  store_le(address.data() + 4, block);
  store_le(address.data() + 12, lsn);
  return crc32c(bytes, crc32c(address, uuid_));
}

// --- Superblock -----------------------------------------------------------------------------------------------------

SuperblockBytes encode(const Superblock& superblock, uint32_t version) {
  SuperblockBytes bytes{};
  put_text(bytes.data(), kSuperblockMagic);
  store(bytes, 12, version);
  store(bytes, 16, superblock.compatible);
  store(bytes, 24, superblock.read_only_compatible);
  store(bytes, 32, superblock.incompatible);
  put_id(bytes.data() + 40, superblock.uuid);
  store(bytes, 56, superblock.sequence);
  store(bytes, 64, superblock.generation);
  store(bytes, 72, uint32_t{superblock.open});
  store(bytes, 76, superblock.segment_shift);
  put_id(bytes.data() + 80, superblock.incarnation);
  store(bytes, 96, superblock.manifest_offset);
  store(bytes, 104, superblock.manifest_bytes);
  store(bytes, 112, superblock.manifest_crc);
  store(bytes, 120, superblock.checkpoint);
  std::copy(superblock.key_slots.begin(), superblock.key_slots.end(), bytes.begin() + kKeySlotsAt);
  store(bytes, 8, crc_around(bytes, 8, 0));
  return bytes;
}

uint32_t version_of_superblock(Bytes bytes) { return load<uint32_t>(bytes, 12); }

Result<Superblock> decode_superblock(Bytes bytes, uint32_t version) {
  if (bytes.size() < kSuperblockBytes || !has_text(bytes.data(), kSuperblockMagic))
    return make_error(EBADMSG, "it does not begin as a superblock does");
  bytes = bytes.first(kSuperblockBytes);
  if (load<uint32_t>(bytes, 8) != crc_around(bytes, 8, 0)) return make_error(EBADMSG, "its checksum is wrong");
  const uint32_t found = version_of_superblock(bytes);
  if (found < version)
    return make_error(EPROTONOSUPPORT, "it has format version {}, and this program works with {}: `netblk volume upgrade` brings it there",
                      found, version);
  if (found > version)
    return make_error(EPROTONOSUPPORT, "it has format version {}, and this program knows {}: use a newer one", found, version);
  Superblock superblock;
  superblock.compatible = load<uint64_t>(bytes, 16);
  superblock.read_only_compatible = load<uint64_t>(bytes, 24);
  superblock.incompatible = load<uint64_t>(bytes, 32);
  if (const uint64_t unknown = superblock.incompatible & ~kKnownIncompatible; unknown != 0)
    return make_error(EPROTONOSUPPORT, "it has incompatible feature {}, which this program does not know", std::countr_zero(unknown));
  superblock.uuid = get_id(bytes.data() + 40);
  superblock.sequence = load<uint64_t>(bytes, 56);
  superblock.generation = load<uint64_t>(bytes, 64);
  const auto state = load<uint32_t>(bytes, 72);
  superblock.open = state == 1;
  superblock.segment_shift = load<uint32_t>(bytes, 76);
  superblock.incarnation = get_id(bytes.data() + 80);
  superblock.manifest_offset = load<uint64_t>(bytes, 96);
  superblock.manifest_bytes = load<uint64_t>(bytes, 104);
  superblock.manifest_crc = load<uint32_t>(bytes, 112);
  superblock.checkpoint = load<uint64_t>(bytes, 120);
  std::copy_n(bytes.begin() + kKeySlotsAt, superblock.key_slots.size(), superblock.key_slots.begin());
  if (state > 1 || superblock.segment_shift < kMinSegmentShift || superblock.segment_shift > kMaxSegmentShift ||
      superblock.uuid.is_zero() || superblock.manifest_bytes > superblock.segment_bytes() ||
      superblock.manifest_offset < kSegmentsAt || superblock.manifest_offset > Place::kMaxUnit * kUnitBytes)
    return make_error(EBADMSG, "its checksum is right and its contents make no sense");
  return superblock;
}

// --- Records --------------------------------------------------------------------------------------------------------

namespace {

size_t tags_at(const RecordHeader& header) { return kRecordFixedBytes + size_t{4} * header.sum_count(); }

}  // namespace

void encode(RecordHeader& header, const Sums& sums, std::span<std::byte> into) {
  const uint32_t length = header.header_bytes();
  NETBLK_CHECK(into.size() >= length, "no room for a record's header");
  into = into.first(length);
  std::fill(into.begin(), into.end(), std::byte{0});
  put_text(into.data(), kRecordMagic);
  store(into, 8, static_cast<uint8_t>(header.type));
  store(into, 9, header.flags);
  store(into, 10, static_cast<uint16_t>(length));
  store(into, 12, header.payload_bytes);
  store(into, 16, header.lsn);
  store(into, 24, header.durable_lsn);
  store(into, 32, header.time_ns);
  put_id(into.data() + 40, header.incarnation);
  store(into, 56, header.branch);
  store(into, 60, header.blocks);
  store(into, 64, header.block);
  store(into, 72, header.chain);
  for (uint32_t i = 0; i < header.sum_count(); ++i) store(into, kRecordFixedBytes + 4 * i, header.sums[i]);
  std::memcpy(into.data() + tags_at(header), header.tags.data(), sizeof(Tag) * header.tag_count());
  // The field is zero as yet.
  header.crc = sums.volume(into);
  store(into, 4, header.crc);
}

std::optional<RecordHeader> decode_record(Bytes bytes, const Sums& sums) {
  if (bytes.size() < kMinHeaderBytes || !has_text(bytes.data(), kRecordMagic)) return std::nullopt;
  const uint32_t length = load<uint16_t>(bytes, 10);
  if (length < kMinHeaderBytes || length > kMaxHeaderBytes || length % kUnitBytes != 0 || length > bytes.size())
    return std::nullopt;
  std::array<std::byte, kMaxHeaderBytes> copy;
  std::memcpy(copy.data(), bytes.data(), length);
  store(std::span(copy), 4, uint32_t{0});
  RecordHeader header;
  header.crc = load<uint32_t>(bytes, 4);
  if (header.crc != sums.volume(std::span(copy).first(length))) return std::nullopt;
  const auto type = load<uint8_t>(bytes, 8);
  if (type < 1 || type > 6 || type == 5) return std::nullopt;
  header.type = static_cast<RecordType>(type);
  header.flags = load<uint8_t>(bytes, 9);
  header.payload_bytes = load<uint32_t>(bytes, 12);
  header.lsn = load<uint64_t>(bytes, 16);
  if (header.lsn == 0 || header.lsn > kMaxLsn) return std::nullopt;
  header.durable_lsn = load<uint64_t>(bytes, 24);
  header.time_ns = load<uint64_t>(bytes, 32);
  header.incarnation = get_id(bytes.data() + 40);
  header.branch = load<uint32_t>(bytes, 56);
  header.blocks = load<uint32_t>(bytes, 60);
  header.block = load<uint64_t>(bytes, 64);
  header.chain = load<uint32_t>(bytes, 72);
  if ((header.flags & ~(kFlagCopy | kFlagContinued | kFlagEncrypted | kCompressed)) != 0) return std::nullopt;
  if (header.is_encrypted() != sums.encrypted()) return std::nullopt;
  const bool has_blocks = header.type <= RecordType::kTrim;
  const bool is_data = header.type == RecordType::kData;
  if (has_blocks ? header.blocks == 0 : header.blocks != 0) return std::nullopt;
  if (has_blocks && (header.block > kMaxBlock || header.block + header.blocks - 1 > kMaxBlock)) return std::nullopt;
  if (is_data && header.blocks > kMaxRecordBlocks) return std::nullopt;
  if (header.is_compressed()) {
    if (!is_data || (header.flags & kCompressed) == kCompressed || header.payload_bytes == 0 ||
        header.payload_bytes > most_compressed_bytes(header.blocks))
      return std::nullopt;
  } else if (is_data && header.payload_bytes != header.blocks * kBlockBytes) {
    return std::nullopt;
  }
  if (header.type == RecordType::kPoint ? header.payload_bytes > kMaxChangeBytes
                                        : !is_data && header.payload_bytes != 0)
    return std::nullopt;
  if (length != header.header_bytes()) return std::nullopt;
  for (uint32_t i = 0; i < header.sum_count(); ++i) header.sums[i] = load<uint32_t>(bytes, kRecordFixedBytes + 4 * i);
  std::memcpy(header.tags.data(), bytes.data() + tags_at(header), sizeof(Tag) * header.tag_count());
  return header;
}

bool payload_passes(const RecordHeader& header, const Sums& sums, Bytes payload) {
  if (payload.size() < header.payload_bytes) return false;
  if (header.type == RecordType::kPoint || header.is_compressed())
    return header.sums[0] == sums.block(header.branch, header.block, header.lsn, payload.first(header.payload_bytes));
  if (header.type != RecordType::kData) return true;
  for (uint32_t i = 0; i < header.blocks; ++i) {
    const Bytes block = payload.subspan(size_t{i} * kBlockBytes, kBlockBytes);
    if (header.sums[i] != sums.block(header.branch, header.block + i, header.lsn, block)) return false;
  }
  return true;
}

// --- Index pages ----------------------------------------------------------------------------------------------------

void encode_leaf_entry(const Entry& entry, uint32_t at, std::span<std::byte, kPageBytes> page) {
  std::byte* const to = page.data() + kPageHeaderBytes + size_t{at} * kLeafEntryBytes;
  store_le(to, entry.branch);
  store_le(to + 4, entry.blocks);
  store_le(to + 8, entry.block);
  store_le(to + 16, entry.lsn);
  store_le(to + 24, entry.place);
}

void encode_child(const Child& child, uint32_t at, std::span<std::byte, kPageBytes> page) {
  std::byte* const to = page.data() + kPageHeaderBytes + size_t{at} * kInnerEntryBytes;
  store_le(to, child.branch);
  store_le(to + 4, child.blocks);
  store_le(to + 8, child.block);
  store_le(to + 16, child.lsn);
  store_le(to + 24, child.offset);
  store_le(to + 32, child.crc);
  store_le(to + 36, child.flags);
}

uint32_t seal_page(const PageHeader& header, uint64_t offset, const Sums& sums, std::span<std::byte, kPageBytes> page,
                   MetadataCipher* cipher) {
  NETBLK_CHECK(header.entries <= (header.level == 0 ? kLeafEntries : kInnerEntries), "too many entries for a page");
  std::fill_n(page.begin(), kPageHeaderBytes, std::byte{0});
  put_text(page.data(), kPageMagic);
  store(page, 8, header.level);
  store(page, 10, header.entries);
  store(page, 16, header.checkpoint);
  if (cipher != nullptr) cipher->seal_page(offset, page);
  const uint32_t crc = sums.page(offset, page);
  store(page, 4, crc);
  return crc;
}

std::optional<PageHeader> check_page(uint64_t offset, const Sums& sums, std::span<std::byte, kPageBytes> page,
                                     const MetadataCipher* cipher) {
  PageHeader header;
  header.crc = load<uint32_t>(page, 4);
  header.level = load<uint16_t>(page, 8);
  header.entries = load<uint16_t>(page, 10);
  header.checkpoint = load<uint64_t>(page, 16);
  if (!has_text(page.data(), kPageMagic) || header.crc != sums.page(offset, page)) return std::nullopt;
  if (header.entries > (header.level == 0 ? kLeafEntries : kInnerEntries)) return std::nullopt;
  if (cipher != nullptr && (header.entries > (header.level == 0 ? kSealedLeafEntries : kSealedInnerEntries) || !cipher->open_page(offset, page)))
    return std::nullopt;
  return header;
}

}  // namespace netblk::store::volume
