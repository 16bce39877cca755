// SPDX-License-Identifier: GPL-2.0-only
// A volume that somebody has written who knows its checksums, or whose disk has gone wrong: whatever is in the file, opening it
// ends with an error or with a volume that can be read, checked, written and closed. Every block whose read fails is one that
// `check` names.
#include <algorithm>
#include <charconv>
#include <set>
#include <string_view>

#include <fmt/format.h>

#include "volume_image.h"

namespace netblk::fuzz {
namespace {

using namespace store::volume;
using block::Command;

constexpr uint64_t kMostRead = 320;  // blocks of a point: more than an image's disk has
constexpr uint64_t kBlocksAtOnce = 32;
constexpr size_t kMostPoints = 40;

// A volume that has been opened, and what of it could not be read.
struct Opened {
  Loop& loop;
  Volume& volume;
  std::set<uint64_t> bad;
};

coro::Task<int> read_blocks(Loop& loop, block::Device& disk, uint64_t block, uint64_t blocks, Bytes& bytes) {
  const uint64_t at = block * kBlockBytes, length = std::min(blocks * kBlockBytes, disk.size_bytes() - at);
  const int error = co_await ask(loop, disk, Command::kRead, at, length, bytes.data());
  check(error == 0 || error == EIO, "a read ends with EIO, or well", std::to_string(error));
  co_return error;
}

coro::Task<void> read_all(Opened& opened, PointName point) {
  auto device = opened.volume.open_device(point);
  if (!device.ok()) {
    check(!device.error().message.empty(), "an error has words");
    co_return;
  }
  block::Device& disk = *device.value();
  const uint64_t size = disk.size_bytes(), blocks = (size + kBlockBytes - 1) / kBlockBytes;
  check(size != 0, "a disk has a size");
  // Several at once, and one by one what cannot be read so; and the end of one that somebody has made much larger.
  Bytes bytes(kBlocksAtOnce * kBlockBytes);
  const uint64_t most = std::min(blocks, kMostRead);
  for (uint64_t block = 0; block < most; block += kBlocksAtOnce) {
    const uint64_t part = std::min(kBlocksAtOnce, most - block);
    const int error = co_await read_blocks(opened.loop, disk, block, part, bytes);
    for (uint64_t each = block; error != 0 && each < block + part; ++each) {
      const int one = co_await read_blocks(opened.loop, disk, each, 1, bytes);
      if (one != 0) opened.bad.insert(each);
    }
  }
  for (uint64_t block = blocks - std::min(blocks, kBlocksAtOnce); block < blocks; ++block) {
    const int error = co_await read_blocks(opened.loop, disk, block, 1, bytes);
    if (error != 0) opened.bad.insert(block);
  }
  std::vector<block::Extent> extents;
  Asked status(opened.loop, Command::kBlockStatus, 0, size);
  status.extents = &extents;
  status.max_extents = 64;
  const int error = co_await status.run(disk);
  check(error != 0 || !extents.empty(), "a block status has an extent");
}

// The number behind `word` in the line, if it is there.
std::optional<uint64_t> number_behind(std::string_view line, std::string_view word) {
  const size_t at = line.find(word);
  if (at == std::string_view::npos) return std::nullopt;
  uint64_t number = 0;
  const auto read = std::from_chars(line.data() + at + word.size(), line.data() + line.size(), number);
  return read.ec == std::errc() ? std::optional(number) : std::nullopt;
}

coro::Task<void> look_at_check(Opened& opened) {
  CheckOptions options;
  options.alone = true;
  const auto report = co_await opened.volume.check(options);
  check(report.ok(), "a check can be made", report.ok() ? "" : report.error().message);
  if (report.value().damaged > report.value().damage.size()) co_return;  // not all of it has a line
  std::set<uint64_t> named;
  std::vector<std::pair<uint64_t, uint64_t>> parts;
  for (const std::string& line : report.value().damage) {
    const auto begin = number_behind(line, ": from block "), count = number_behind(line, " on, ");
    if (begin && count) parts.emplace_back(*begin, *count);
    else if (const auto block = number_behind(line, ": block ")) named.insert(*block);
  }
  for (const uint64_t block : opened.bad) {
    const bool is_named = named.contains(block) || std::any_of(parts.begin(), parts.end(), [&](const auto& part) {
                            return part.first <= block && block - part.first < part.second;
                          });
    check(is_named, "a block whose read fails is named by check", fmt::format("block {} in\n{}", block, fmt::join(report.value().damage, "\n")));
  }
}

coro::Task<void> look(Opened& opened) {
  Volume& volume = opened.volume;
  const VolumeInfo info = volume.info();
  (void)volume.settings();
  (void)volume.receiving();
  (void)volume.keys();
  co_await read_all(opened, PointName());
  size_t points = 0;
  const auto branches = volume.branches();
  for (size_t i = 0; i < branches.size() && points++ < kMostPoints; ++i)
    if (!branches[i].name.empty()) co_await read_all(opened, PointName(branches[i].name));
  const auto snapshots = volume.snapshots();
  for (size_t i = 0; i < snapshots.size() && points++ < kMostPoints; ++i) co_await read_all(opened, PointName(snapshots[i].name));
  co_await look_at_check(opened);
  // Moments are not named by check one by one.
  for (const uint64_t lsn : {uint64_t{0}, uint64_t{1}, info.history_from_lsn, info.last_lsn / 2, info.last_lsn})
    co_await read_all(opened, PointName(PointName::Kind::kLsn, lsn));
  (void)volume.find_point(PointName(PointName::Kind::kTime, info.history_from_ns));
  (void)volume.find_point(PointName(PointName::Kind::kAgo, 1'000'000'000));
}

// What changes it may fail, as long as it ends.
coro::Task<void> use(Opened& opened) {
  Loop& loop = opened.loop;
  Volume& volume = opened.volume;
  Bytes bytes(65536, std::byte{0x5a});
  if (auto device = volume.open_device(); device.ok()) {
    block::Device& disk = *device.value();
    const uint64_t size = disk.size_bytes();
    for (const uint64_t at : {uint64_t{0}, uint64_t{36'864}, uint64_t{258'048}, size - std::min<uint64_t>(size, 8192)}) {
      const uint64_t room = size - std::min(size, at);
      if (room == 0) continue;
      (void)co_await ask(loop, disk, Command::kWrite, at, std::min<uint64_t>(room, bytes.size()), bytes.data());
      (void)co_await ask(loop, disk, Command::kTrim, at, std::min<uint64_t>(room, 4096));
    }
    (void)co_await ask(loop, disk, Command::kFlush, 0, 0);
    (void)co_await ask(loop, disk, Command::kRead, 0, std::min<uint64_t>(size, bytes.size()), bytes.data());
  }
  (void)co_await volume.snapshot("of-the-target");
  (void)co_await volume.clone(PointName("d"), "clone-of-the-target");
  (void)co_await volume.remove("c");
  (void)co_await volume.remove("b");
  (void)co_await volume.rewind(PointName("d"));
  (void)co_await volume.resize(uint64_t{2} << 20);
  if (volume.receiving()) (void)co_await volume.give_up_receiving();
  // The collector and the checkpoints of a volume that rests.
  for (int i = 0; i < 8; ++i) co_await io::SleepUntil(loop, loop.now_ms() + 1000);
}

coro::Task<int> run(Loop& loop, Disk& disk, std::shared_ptr<const UserKey> key, bool writes) {
  VolumeOptions options;
  options.read_only = !writes;
  options.checkpoint_bytes = 128u << 10;
  options.cache_bytes = 1u << 20;
  options.spare_segments = 2;
  options.key = std::move(key);
  Environment environment(2);
  auto opened = co_await open_volume(loop, std::make_unique<File>(disk), options, environment);
  if (!opened.ok()) {
    check(opened.error().code > 0 && !opened.error().message.empty(), "an error has a number and words");
    co_return 0;
  }
  const std::unique_ptr<Volume> volume = std::move(opened).value();
  Opened state{loop, *volume, {}};
  co_await look(state);
  if (writes) co_await use(state);
  (void)co_await volume->close();
  co_return 0;
}

}  // namespace
}  // namespace netblk::fuzz

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  netblk::fuzz::begin_process();
  return 0;
}

// Which image, whether it is opened for writing, and with which key; then the changes.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace netblk::fuzz;
  Input input({data, size});
  const Image& of = image(input.byte());
  const uint8_t how = input.byte();
  Disk disk;
  disk.bytes = of.bytes;
  change(of, input, disk.bytes);
  Clock clock;
  Loop loop(clock);
  (void)loop.now(run(loop, disk, (how & 6) == 6 ? nullptr : of.key, (how & 1) != 0));
  return 0;
}
