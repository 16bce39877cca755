// SPDX-License-Identifier: GPL-2.0-only
#include "store/partition.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <string_view>
#include <vector>

namespace netblk::store {
namespace {

constexpr uint64_t kMbrSector = 512;
constexpr uint64_t kMaxLogical = 128;
constexpr uint64_t kMaxEntries = 1024;
constexpr uint64_t kMaxEntryBytes = 4096;
constexpr std::string_view kGptMagic = "EFI PART";

using Bytes = std::span<const std::byte>;

// Little-endian, as both tables are.
uint64_t number_at(Bytes bytes, size_t at, size_t width) {
  uint64_t value = 0;
  for (size_t i = width; i-- > 0;) value = value << 8 | std::to_integer<uint64_t>(bytes[at + i]);
  return value;
}

// CRC-32 of the GPT (IEEE 802.3, reflected).
uint32_t crc32(Bytes bytes) {
  uint32_t crc = ~uint32_t{0};
  for (const std::byte byte : bytes) {
    crc ^= std::to_integer<uint32_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0xedb88320u : 0);
  }
  return ~crc;
}

Error missing(uint64_t number) { return make_error(ENOENT, "it has no partition {}", number); }

Result<Partition> inside(uint64_t first_sector, uint64_t sectors, uint64_t sector_bytes, uint64_t disk_bytes, uint64_t number) {
  const uint64_t disk_sectors = disk_bytes / sector_bytes;
  if (sectors == 0) return missing(number);
  if (first_sector == 0 || first_sector >= disk_sectors || sectors > disk_sectors - first_sector)
    return make_error(EBADMSG, "its partition {} is not inside it: sector {}, {} sectors, of {}", number, first_sector,
                      sectors, disk_sectors);
  return Partition{first_sector * sector_bytes, sectors * sector_bytes};
}

// --- MBR ------------------------------------------------------------------------------------------------------------

struct MbrEntry {
  uint64_t type = 0, first = 0, sectors = 0;
  bool is_extended() const { return type == 0x05 || type == 0x0f || type == 0x85; }
};
using MbrTable = std::array<MbrEntry, 4>;

std::optional<MbrTable> mbr_table(Bytes sector) {
  if (number_at(sector, 510, 2) != 0xaa55) return std::nullopt;
  MbrTable table;
  for (size_t i = 0; i < table.size(); ++i) {
    const size_t at = 446 + 16 * i;
    table[i] = {number_at(sector, at + 4, 1), number_at(sector, at + 8, 4), number_at(sector, at + 12, 4)};
  }
  return table;
}

// A chain of small tables inside the extended partition: each names one logical partition and the next table.
Result<Partition> find_logical(const ReadDisk& read, uint64_t disk_bytes, const MbrEntry& extended, uint64_t number) {
  uint64_t table_at = extended.first;
  for (uint64_t logical = 5; logical < 5 + kMaxLogical; ++logical) {
    const auto place = inside(table_at, 1, kMbrSector, disk_bytes, number);
    if (!place) return place;
    std::array<std::byte, kMbrSector> sector{};
    if (auto got = read(place.value().offset_bytes, sector); !got) return std::move(got).error();
    const auto table = mbr_table(sector);
    if (!table) return missing(number);
    const MbrEntry& here = (*table)[0];
    if (logical == number && here.type != 0)
      return inside(table_at + here.first, here.sectors, kMbrSector, disk_bytes, number);
    const MbrEntry& next = (*table)[1];
    if (!next.is_extended() || next.sectors == 0) return missing(number);
    table_at = extended.first + next.first;
  }
  return missing(number);
}

Result<Partition> find_in_mbr(const ReadDisk& read, uint64_t disk_bytes, const MbrTable& table, uint64_t number) {
  if (number <= table.size()) {
    const MbrEntry& entry = table[number - 1];
    if (entry.type == 0) return missing(number);
    if (entry.is_extended())
      return make_error(ENOTBLK, "its partition {} is the extended one, which holds those from 5 on", number);
    return inside(entry.first, entry.sectors, kMbrSector, disk_bytes, number);
  }
  const auto extended = std::find_if(table.begin(), table.end(), [](const MbrEntry& entry) { return entry.is_extended(); });
  if (extended == table.end()) return missing(number);
  return find_logical(read, disk_bytes, *extended, number);
}

// --- GPT ------------------------------------------------------------------------------------------------------------

struct Gpt {
  uint64_t sector_bytes, entries_at, entries, entry_bytes, entries_crc;
};

std::optional<Gpt> gpt_header(Bytes sector, uint64_t header_at) {
  if (std::memcmp(sector.data(), kGptMagic.data(), kGptMagic.size()) != 0) return std::nullopt;
  const uint64_t bytes = number_at(sector, 12, 4);
  if (bytes < 92 || bytes > sector.size()) return std::nullopt;
  std::vector<std::byte> header(sector.begin(), sector.begin() + static_cast<std::ptrdiff_t>(bytes));
  std::fill_n(header.begin() + 16, 4, std::byte{0});
  if (crc32(header) != number_at(sector, 16, 4)) return std::nullopt;
  if (number_at(sector, 24, 8) != header_at) return std::nullopt;  // it says where it is
  const Gpt gpt{sector.size(), number_at(sector, 72, 8), number_at(sector, 80, 4), number_at(sector, 84, 4),
                number_at(sector, 88, 4)};
  if (gpt.entries > kMaxEntries || gpt.entry_bytes < 128 || gpt.entry_bytes > kMaxEntryBytes) return std::nullopt;
  return gpt;
}

// Nothing: this copy of the table is no good.
Result<std::optional<Partition>> find_in_gpt(const ReadDisk& read, uint64_t disk_bytes, const Gpt& gpt, uint64_t number) {
  const uint64_t bytes = gpt.entries * gpt.entry_bytes;
  if (gpt.entries_at > disk_bytes / gpt.sector_bytes || bytes > disk_bytes - gpt.entries_at * gpt.sector_bytes)
    return std::optional<Partition>();
  std::vector<std::byte> table(bytes);
  if (auto got = read(gpt.entries_at * gpt.sector_bytes, table); !got) return std::move(got).error();
  if (crc32(table) != gpt.entries_crc) return std::optional<Partition>();
  if (number > gpt.entries) return missing(number);
  const Bytes entry = Bytes(table).subspan((number - 1) * gpt.entry_bytes, gpt.entry_bytes);
  if (std::all_of(entry.begin(), entry.begin() + 16, [](std::byte one) { return one == std::byte{0}; }))
    return missing(number);
  const uint64_t first = number_at(entry, 32, 8), last = number_at(entry, 40, 8);
  if (last < first || last == UINT64_MAX)
    return make_error(EBADMSG, "its partition {} ends before it begins", number);
  auto found = inside(first, last - first + 1, gpt.sector_bytes, disk_bytes, number);
  if (!found) return std::move(found).error();
  return std::optional(found.value());
}

}  // namespace

Result<Partition> find_partition(const ReadDisk& read, uint64_t disk_bytes, uint64_t number) {
  if (number == 0) return make_error(EINVAL, "partitions are counted from 1");
  if (disk_bytes < kMbrSector) return make_error(ENOENT, "it has no partition table");
  std::array<std::byte, kMbrSector> first{};
  if (auto got = read(0, first); !got) return std::move(got).error();
  const auto mbr = mbr_table(first);
  const bool protective =
      mbr && std::any_of(mbr->begin(), mbr->end(), [](const MbrEntry& entry) { return entry.type == 0xee; });
  if (mbr && !protective) return find_in_mbr(read, disk_bytes, *mbr, number);

  // A GPT: in the second sector, whatever a sector is, and once more in the last.
  for (const uint64_t sector_bytes : {uint64_t{512}, uint64_t{4096}}) {
    const uint64_t sectors = disk_bytes / sector_bytes;
    if (sectors < 3) continue;
    for (const uint64_t header_at : {uint64_t{1}, sectors - 1}) {
      std::vector<std::byte> sector(sector_bytes);
      if (auto got = read(header_at * sector_bytes, sector); !got) return std::move(got).error();
      const auto gpt = gpt_header(sector, header_at);
      if (!gpt) continue;
      auto found = find_in_gpt(read, disk_bytes, *gpt, number);
      if (!found) return std::move(found).error();
      if (found.value()) return *found.value();
    }
  }
  if (protective) return make_error(EBADMSG, "its GPT is damaged, and so is the copy at its end");
  return make_error(ENOENT, "it has no partition table");
}

}  // namespace netblk::store
