// SPDX-License-Identifier: GPL-2.0-only
#include "store/partition.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <random>
#include <vector>

namespace netblk::store {
namespace {

struct Disk {
  explicit Disk(size_t bytes) : contents(bytes) {}
  void put(size_t at, uint64_t value, size_t width) {
    for (size_t i = 0; i < width; ++i) contents[at + i] = static_cast<std::byte>(value >> (8 * i));
  }
  void entry(size_t table, size_t index, uint64_t type, uint64_t first, uint64_t sectors) {
    const size_t at = table * 512 + 446 + 16 * index;
    put(at + 4, type, 1);
    put(at + 8, first, 4);
    put(at + 12, sectors, 4);
    put(table * 512 + 510, 0xaa55, 2);
  }
  uint32_t crc(size_t at, size_t bytes) const {
    uint32_t sum = ~uint32_t{0};
    for (size_t i = 0; i < bytes; ++i) {
      sum ^= std::to_integer<uint32_t>(contents[at + i]);
      for (int bit = 0; bit < 8; ++bit) sum = (sum >> 1) ^ ((sum & 1) != 0 ? 0xedb88320u : 0);
    }
    return ~sum;
  }
  // Partition 1 of 10 sectors and partition 3 of 5, at 40 and 60.
  void gpt(size_t sector, size_t header, size_t table) {
    const auto part = [&](size_t index, uint64_t first, uint64_t last) {
      const size_t at = table * sector + index * 128;
      put(at, 0x1234, 8);
      put(at + 32, first, 8);
      put(at + 40, last, 8);
    };
    part(0, 40, 49);
    part(2, 60, 64);
    const size_t at = header * sector;
    std::memcpy(&contents[at], "EFI PART", 8);
    put(at + 12, 92, 4);
    put(at + 24, header, 8);
    put(at + 72, table, 8);
    put(at + 80, 128, 4);
    put(at + 84, 128, 4);
    put(at + 88, crc(table * sector, 128 * 128), 4);
    seal(at);
  }
  void seal(size_t header_at) {
    put(header_at + 16, 0, 4);
    put(header_at + 16, crc(header_at, 92), 4);
  }
  Result<Partition> find(uint64_t number) const {
    return find_partition(
        [this](uint64_t offset, std::span<std::byte> into) -> Status {
          EXPECT_LE(offset + into.size(), contents.size()) << "a read beyond the disk";
          if (offset + into.size() > contents.size()) return make_error(EIO, "beyond");
          std::memcpy(into.data(), &contents[offset], into.size());
          return Ok{};
        },
        contents.size(), number);
  }
  std::vector<std::byte> contents;
};

TEST(PartitionTable, MbrPrimary) {
  Disk disk(1 << 20);
  disk.entry(0, 0, 0x83, 64, 100);
  disk.entry(0, 2, 0x83, 200, 1848);
  EXPECT_EQ(disk.find(1).value(), (Partition{64 * 512, 100 * 512}));
  EXPECT_EQ(disk.find(3).value(), (Partition{200 * 512, 1848 * 512}));
  EXPECT_EQ(disk.find(2).error().code, ENOENT);
  EXPECT_EQ(disk.find(5).error().code, ENOENT);
  EXPECT_EQ(disk.find(0).error().code, EINVAL);
}

TEST(PartitionTable, MbrLogical) {
  Disk disk(1 << 20);
  disk.entry(0, 0, 0x83, 64, 100);
  disk.entry(0, 1, 0x0f, 200, 1000);
  disk.entry(200, 0, 0x83, 10, 90);    // partition 5
  disk.entry(200, 1, 0x05, 100, 200);  // the next table, from the extended partition's beginning
  disk.entry(300, 0, 0x83, 10, 50);
  disk.entry(300, 1, 0x05, 400, 100);
  disk.entry(600, 0, 0x82, 1, 20);
  EXPECT_EQ(disk.find(5).value(), (Partition{210 * 512, 90 * 512}));
  EXPECT_EQ(disk.find(6).value(), (Partition{310 * 512, 50 * 512}));
  EXPECT_EQ(disk.find(7).value(), (Partition{601 * 512, 20 * 512}));
  EXPECT_EQ(disk.find(8).error().code, ENOENT);
  EXPECT_EQ(disk.find(2).error().code, ENOTBLK) << "the extended one itself";
}

TEST(PartitionTable, AChainThatTurnsBackEnds) {
  Disk disk(1 << 20);
  disk.entry(0, 0, 0x05, 200, 1000);
  disk.entry(200, 0, 0x83, 10, 90);
  disk.entry(200, 1, 0x05, 0, 100);
  EXPECT_EQ(disk.find(5).value(), (Partition{210 * 512, 90 * 512}));
  EXPECT_EQ(disk.find(100'000).error().code, ENOENT);
}

TEST(PartitionTable, WhatIsNotInsideTheDiskIsRefused) {
  for (const auto& [first, sectors] : std::vector<std::pair<uint64_t, uint64_t>>{
           {64, 2048}, {2048, 1}, {0, 10}, {0xffffffff, 0xffffffff}, {64, 0xffffffff}}) {
    Disk disk(1 << 20);
    disk.entry(0, 0, 0x83, first, sectors);
    EXPECT_EQ(disk.find(1).error().code, EBADMSG) << first;
    disk.entry(0, 0, 0x05, first, sectors);
    EXPECT_FALSE(disk.find(5).ok()) << first;
  }
}

TEST(PartitionTable, Gpt) {
  for (const size_t sector : {size_t{512}, size_t{4096}}) {
    Disk disk(2 << 20);
    disk.entry(0, 0, 0xee, 1, 4095);
    disk.gpt(sector, 1, 2);
    EXPECT_EQ(disk.find(1).value(), (Partition{40 * sector, 10 * sector}));
    EXPECT_EQ(disk.find(3).value(), (Partition{60 * sector, 5 * sector}));
    EXPECT_EQ(disk.find(2).error().code, ENOENT);
    EXPECT_EQ(disk.find(129).error().code, ENOENT);
  }
}

TEST(PartitionTable, TheCopyOfAGptCountsWhereTheFirstIsDamaged) {
  Disk disk(2 << 20);
  disk.entry(0, 0, 0xee, 1, 4095);
  disk.gpt(512, 1, 2);
  disk.gpt(512, 4095, 4063);
  disk.contents[512 + 80] ^= std::byte{1};
  EXPECT_EQ(disk.find(1).value(), (Partition{40 * 512, 10 * 512}));
  disk.contents[4063 * 512 + 5] ^= std::byte{1};
  EXPECT_EQ(disk.find(1).error().code, EBADMSG) << "both are damaged";
}

TEST(PartitionTable, AHostileGptIsRefused) {
  Disk good(2 << 20);
  good.entry(0, 0, 0xee, 1, 4095);
  good.gpt(512, 1, 2);
  for (const auto& [at, value] : std::vector<std::pair<size_t, uint64_t>>{
           {72, UINT64_MAX}, {72, 4095}, {72, uint64_t{1} << 55}, {80, 0xffffffff}, {84, 0xffffffff}, {84, 1}, {12, 0xffff}}) {
    Disk disk = good;
    disk.put(512 + at, value, at == 72 ? 8 : 4);
    disk.seal(512);
    EXPECT_EQ(disk.find(1).error().code, EBADMSG) << at << ' ' << value;
  }
}

TEST(PartitionTable, NoTable) {
  EXPECT_EQ(Disk(1 << 20).find(1).error().code, ENOENT);
  EXPECT_EQ(Disk(0).find(1).error().code, ENOENT);
  EXPECT_EQ(Disk(512).find(1).error().code, ENOENT);
}

TEST(PartitionTable, AnyBytesGetAnAnswer) {
  const uint64_t seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 2000; ++round) {
    Disk disk(256 << 10);
    disk.entry(0, 0, random() % 2 ? 0xee : 0x05, random() % 600, random() % 600);
    disk.gpt(512, 1, 2);
    for (int i = 0; i < 4; ++i) disk.entry(random() % 512, random() % 4, random() % 16, random() % 600, random() % 600);
    for (int i = 0; i < 4; ++i) disk.contents[random() % 2048] = static_cast<std::byte>(random());
    if (random() % 2) disk.seal(512);
    const auto found = disk.find(1 + random() % 10);
    if (found) {
      EXPECT_GT(found.value().size_bytes, 0u);
      EXPECT_LE(found.value().offset_bytes + found.value().size_bytes, disk.contents.size());
    }
  }
}

}  // namespace
}  // namespace netblk::store
