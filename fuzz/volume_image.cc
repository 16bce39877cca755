// SPDX-License-Identifier: GPL-2.0-only
#include "volume_image.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>

#include "base/crc32c.h"
#include "base/endian.h"
#include "store/volume/crypt.h"

namespace netblk::fuzz {
namespace {

using namespace store::volume;
using block::Command;

constexpr uint64_t kDiskBytes = 1u << 20;
constexpr uint32_t kIndexSection = 0x80000005;

// --- Making one -----------------------------------------------------------------------------------------------------

// Half of each 128 bytes compresses.
Bytes contents(uint64_t at, uint64_t size, unsigned seed) {
  Bytes bytes(size);
  uint32_t state = seed * 2654435761u + static_cast<uint32_t>(at);
  for (size_t i = 0; i < size; ++i) {
    if (i / 64 % 2 == 0) state = state * 1664525 + 1013904223;
    bytes[i] = static_cast<std::byte>(state >> 24);
  }
  return bytes;
}

// A volume's life, up to its end or to a crash. All of it is expected to go well.
class Life {
 public:
  Life(Loop& loop, Disk& disk, size_t number) : loop_(loop), disk_(disk), number_(number) {}

  coro::Task<int> run(std::shared_ptr<const UserKey> key) {
    options_.key = key;
    options_.checkpoint_bytes = 128u << 10;
    CreateOptions how{.size_bytes = kDiskBytes, .segment_bytes = 1u << 16, .key = key};
    if (number_ != 1) how.settings = {{"history", "1h"}};
    if (number_ >= 2) how.settings.push_back({"compress", number_ == 2 ? "lz4" : "zstd"});
    {
      File file(disk_);
      const Status made = co_await create_volume(loop_, file, how, environment_);
      must(made.ok(), "create");
    }
    co_await open();
    co_await many();
    co_await names();
    co_await close();
    co_await open();
    co_await more();
    if (number_ == 4) co_await receive();
    // As a crash leaves it: the log behind the checkpoint is there to be replayed.
    Bytes crashed = disk_.bytes;
    co_await close();
    if (number_ != 1) disk_.bytes = std::move(crashed);
    co_return 0;
  }

 private:
  void must(bool holds, const char* what) { check(holds, "an image cannot be made", what); }

  coro::Task<void> open() {
    auto opened = co_await open_volume(loop_, std::make_unique<File>(disk_), options_, environment_);
    must(opened.ok(), "open");
    volume_ = std::move(opened).value();
    device_ = volume_->open_device().value();
  }
  coro::Task<void> close() {
    device_.reset();
    const Status closed = co_await volume_->close();
    must(closed.ok(), "close");
    volume_.reset();
  }
  coro::Task<void> put(block::Device& on, uint64_t at, uint64_t size, unsigned seed) {
    Bytes bytes = contents(at, size, seed);
    const int error = co_await ask(loop_, on, Command::kWrite, at, size, bytes.data());
    must(error == 0, "write");
  }
  coro::Task<void> simple(Command command, uint64_t at, uint64_t size) {
    const int error = co_await ask(loop_, *device_, command, at, size);
    must(error == 0, "a request");
  }

  // Enough extents for an index of two levels.
  coro::Task<void> many() {
    for (uint64_t at = 0; at < kDiskBytes; at += 8192) {
      Asked zeroes(loop_, Command::kWriteZeroes, at, 4096);
      zeroes.keep_allocated = true;
      const int error = co_await zeroes.run(*device_);
      must(error == 0, "zeroes");
      if (at % 65536 == 0) co_await put(*device_, at + 4096, 4096, 1);
    }
    co_await put(*device_, 262'144, 65536, 2);
  }
  coro::Task<void> names() {
    auto done = co_await volume_->snapshot("a");
    must(done.ok(), "snapshot");
    co_await put(*device_, 266'240, 16384, 3);
    done = co_await volume_->clone(PointName("a"), "c");
    must(done.ok(), "clone");
    {
      auto clone = volume_->open_device(PointName("c")).value();
      co_await put(*clone, 0, 8192, 4);
    }
    done = co_await volume_->snapshot("b");
    must(done.ok(), "snapshot");
    co_await simple(Command::kTrim, 524'288, 65536);
    device_.reset();
    done = co_await volume_->rewind(PointName("b"));
    must(done.ok(), "rewind");
    Status changed = co_await volume_->resize(kDiskBytes + 65536);
    must(changed.ok(), "resize");
    changed = co_await volume_->resize(kDiskBytes - 2048);
    must(changed.ok(), "resize");
    device_ = volume_->open_device().value();
    const Status kept = co_await device_->keep_owners(loop_, Bytes(40, std::byte{7}));
    must(kept.ok(), "owners");
  }
  // What stays in the log.
  coro::Task<void> more() {
    co_await put(*device_, 4096, 65536 + 4096, 5);
    co_await simple(Command::kTrim, 8192, 4096);
    co_await simple(Command::kWriteZeroes, 16384, 8192);
    auto done = co_await volume_->snapshot("d");
    must(done.ok(), "snapshot");
    Status changed = co_await volume_->set("space-factor", "1.5");
    must(changed.ok(), "set");
    changed = co_await volume_->remove("a");
    must(changed.ok(), "remove");
    co_await put(*device_, 131'072, 512, 6);
    co_await simple(Command::kFlush, 0, 0);
  }
  // A snapshot of elsewhere, of which a half has come.
  coro::Task<void> receive() {
    device_.reset();
    const auto snapshots = volume_->snapshots();
    Transfer what;
    what.from = identity_of(snapshots.back(), volume_->info().uuid);
    what.from_name = snapshots.back().name;
    what.from_size_bytes = snapshots.back().size_bytes;
    what.to = {.volume = what.from.volume, .branch = 1, .lsn = 9'999, .time_ns = 77};
    what.to.volume.bytes[3] ^= 1;
    what.to_name = "from-elsewhere";
    what.size_bytes = kDiskBytes;
    const auto back = co_await volume_->rewind(PointName(what.from_name));
    must(back.ok(), "rewind");
    auto disk = co_await volume_->receive(what);
    must(disk.ok(), "receive");
    co_await put(*disk.value(), 0, 65536, 8);
    const Status kept = co_await volume_->keep_received(65536);
    must(kept.ok(), "keep");
  }

  Loop& loop_;
  Disk& disk_;
  const size_t number_;
  Environment environment_;
  VolumeOptions options_;
  std::unique_ptr<Volume> volume_;
  std::unique_ptr<block::Device> device_;
};

// --- What is where --------------------------------------------------------------------------------------------------

class Finder {
 public:
  explicit Finder(Image& image) : image_(image) {}

  void find() {
    const auto bytes = std::span<const std::byte>(image_.bytes);
    for (unsigned slot = 0; slot < 2; ++slot) {
      const auto superblock = decode_superblock(bytes.subspan(kSuperblockAt[slot], kSuperblockBytes));
      check(superblock.ok(), "an image has two superblocks");
      image_.uuid = superblock.value().uuid;
      // Sealed ones are changed as a whole: what is in them is behind more than a sum.
      if (superblock.value().encrypted()) continue;
      const auto manifest = decode_manifest(bytes.subspan(superblock.value().manifest_offset, superblock.value().manifest_bytes));
      check(manifest.ok(), "an image's manifests are right");
      const IndexRoot& root = manifest.value().index;
      if (root.offset == 0) continue;
      page(root.offset, static_cast<uint16_t>(root.level));
      found_[root.offset].roots.push_back(slot);
    }
    std::vector<uint64_t> order;
    for (const auto& [offset, page] : found_) order.push_back(offset);
    std::stable_sort(order.begin(), order.end(), [&](uint64_t a, uint64_t b) { return found_[a].level < found_[b].level; });
    std::map<uint64_t, size_t> number;
    for (size_t i = 0; i < order.size(); ++i) number[order[i]] = i;
    for (const uint64_t offset : order) {
      image_.pages.push_back(std::move(found_[offset]));
      for (auto& [parent, child] : image_.pages.back().parents) parent = number[parent];
    }
    const Sums sums(image_.uuid, image_.key != nullptr);
    for (uint64_t at = kSegmentsAt; at + kMinHeaderBytes <= bytes.size(); at += kUnitBytes) {
      const auto header = decode_record(bytes.subspan(at, std::min<size_t>(kMaxHeaderBytes, bytes.size() - at)), sums);
      if (header) image_.records.push_back({at, header->lsn, (header->flags & kFlagCopy) != 0});
    }
    std::stable_sort(image_.records.begin(), image_.records.end(), [](const auto& a, const auto& b) { return a.lsn < b.lsn; });
    check(image_.key != nullptr || image_.pages.size() >= 3, "an image's index has two levels");
    check(image_.records.size() >= 100, "an image has records");
  }

 private:
  void page(uint64_t offset, uint16_t level) {
    const bool is_new = !found_.contains(offset);
    found_[offset].offset = offset;
    found_[offset].level = level;
    if (!is_new || level == 0) return;
    const auto bytes = std::span<const std::byte>(image_.bytes).subspan(offset).first<kPageBytes>();
    for (uint32_t at = 0; at < load_le<uint16_t>(bytes.data() + 10); ++at) {
      const Child child = decode_child(at, bytes);
      page(child.offset, static_cast<uint16_t>(level - 1));
      found_[child.offset].parents.emplace_back(offset, at);
    }
  }
  Image& image_;
  std::map<uint64_t, Image::Page> found_;
};

Image make(size_t number) {
  Image made;
  if (number == 3) {
    made.key = std::make_shared<UserKey>(UserKey{UserKey::Kind::kFile, Secret(std::as_bytes(std::span("the key of all inputs of this target")))});
  }
  Clock clock;
  Loop loop(clock);
  Disk disk;
  Life life(loop, disk, number);
  (void)loop.now(life.run(made.key));
  made.bytes = std::move(disk.bytes);
  Finder(made).find();
  return made;
}

// --- Changes --------------------------------------------------------------------------------------------------------

class Changes {
 public:
  Changes(const Image& image, Bytes& bytes) : image_(image), bytes_(bytes), sums_(image.uuid, image.key != nullptr) {}

  void take(Input& input) {
    while (!input.at_end() && taken_++ < 64) {
      const uint8_t what = input.byte();
      const bool mends = (what & 0x80) == 0;
      switch (what & 7) {
        case 0: superblock(input, mends); break;
        case 1: manifest(input, mends); break;
        case 2: section(input); break;
        case 3: record(input, mends, false); break;
        case 4: record(input, mends, true); break;
        case 5: page(input, mends); break;
        case 6: move(input); break;
        default: raw(input); break;
      }
    }
    mend();
  }

 private:
  std::span<std::byte> at(uint64_t offset, uint64_t length) {
    const uint64_t from = std::min<uint64_t>(offset, bytes_.size());
    return std::span(bytes_).subspan(from, std::min(length, bytes_.size() - from));
  }
  std::span<std::byte> slot(unsigned number) { return at(kSuperblockAt[number], kSuperblockBytes); }
  std::span<std::byte> manifest_of(unsigned number) {
    return at(load_le<uint64_t>(slot(number).data() + 96), load_le<uint64_t>(slot(number).data() + 104));
  }

  void superblock(Input& input, bool mends) {
    const unsigned number = input.byte() & 1;
    edit(slot(number).first((input.byte() & 1) != 0 ? 128 : kSuperblockBytes), input);
    if (mends) superblocks_.insert(number);
  }
  void manifest(Input& input, bool mends) {
    const unsigned number = input.byte() & 1;
    edit(manifest_of(number), input);
    if (mends) manifests_.insert(number);
  }
  // A section becomes longer or shorter, or goes, and what says how long it is is right.
  void section(Input& input) {
    const unsigned number = input.byte() & 1;
    unsigned left = input.byte() % 16;
    const uint8_t how = input.byte();
    const uint64_t where = input.number(2), count = 1 + input.byte() % 64;
    if (image_.key != nullptr) return;
    const auto whole = manifest_of(number);
    Bytes manifest(whole.begin(), whole.end());
    for (size_t begin = 0; begin + 12 <= manifest.size();) {
      const uint64_t length = load_le<uint64_t>(manifest.data() + begin + 4);
      if (length > manifest.size() - begin - 12) return;
      if (left-- != 0) {
        begin += 12 + length;
        continue;
      }
      const auto inside = manifest.begin() + static_cast<ptrdiff_t>(begin + 12);
      const uint64_t spot = std::min(where, length), gone = std::min(count, length - spot);
      uint64_t now = length;
      if (how % 4 == 0) {
        manifest.insert(inside + static_cast<ptrdiff_t>(spot), count, static_cast<std::byte>(how >> 2));
        now += count;
      } else if (how % 4 == 1) {
        manifest.erase(inside + static_cast<ptrdiff_t>(spot), inside + static_cast<ptrdiff_t>(spot + gone));
        now -= gone;
      } else if (how % 4 == 2) {
        // The same again.
        const Bytes same(manifest.begin() + static_cast<ptrdiff_t>(begin), inside + static_cast<ptrdiff_t>(length));
        manifest.insert(manifest.begin() + static_cast<ptrdiff_t>(begin), same.begin(), same.end());
      } else {
        manifest.erase(manifest.begin() + static_cast<ptrdiff_t>(begin), inside + static_cast<ptrdiff_t>(length));
      }
      if (how % 4 < 2) store_le(manifest.data() + begin + 4, now);
      break;
    }
    const uint64_t offset = load_le<uint64_t>(slot(number).data() + 96);
    if (offset > bytes_.size() || manifest.size() > bytes_.size() - offset) return;
    std::copy(manifest.begin(), manifest.end(), bytes_.begin() + static_cast<ptrdiff_t>(offset));
    store_le(slot(number).data() + 104, uint64_t{manifest.size()});
    manifests_.insert(number);
  }
  void record(Input& input, bool mends, bool of_payload) {
    const size_t number = input.number(2) % image_.records.size();
    const uint64_t offset = image_.records[number].offset;
    if (of_payload) {
      const uint64_t length = std::clamp<uint64_t>(load_le<uint16_t>(at(offset, 12).data() + 10), kMinHeaderBytes, kMaxHeaderBytes);
      edit(at(offset + length, 65536), input);
    } else {
      edit(at(offset, kMaxHeaderBytes), input);
    }
    (mends ? records_ : broken_).insert(number);
  }
  void page(Input& input, bool mends) {
    const uint64_t number = input.number(1);
    if (image_.pages.empty()) return;
    const size_t which = number % image_.pages.size();
    edit(at(image_.pages[which].offset, kPageBytes), input);
    if (mends) pages_.insert(which);
  }
  // A misdirected or lost write: bytes of one place are at another.
  void move(Input& input) {
    const uint64_t from = place(input), to = place(input);
    const uint64_t length = std::min<uint64_t>(uint64_t{512} << input.byte() % 8, bytes_.size() - std::max(from, to));
    std::memmove(bytes_.data() + to, bytes_.data() + from, length);
  }
  void raw(Input& input) {
    const uint64_t from = place(input);
    if (input.byte() % 8 == 0) return bytes_.resize(from);
    edit(at(from, 65536), input);
  }
  uint64_t place(Input& input) { return std::min<uint64_t>(input.number(2) * 512, bytes_.size()); }

  // --- What the sums are of, from below.

  void mend() {
    mend_records();
    for (size_t i = 0; i < image_.pages.size(); ++i) {
      if (!pages_.contains(i)) continue;
      const Image::Page& page = image_.pages[i];
      const auto bytes = at(page.offset, kPageBytes);
      if (bytes.size() < kPageBytes) continue;
      const uint32_t crc = sums_.page(page.offset, bytes);
      store_le(bytes.data() + 4, crc);
      for (const auto& [parent, child] : page.parents) {
        const auto above = at(image_.pages[parent].offset, kPageBytes);
        if (above.size() < kPageBytes) continue;
        store_le(above.data() + kPageHeaderBytes + child * kInnerEntryBytes + 32, crc);
        pages_.insert(parent);
      }
      for (const unsigned number : page.roots) put_root(number, crc);
    }
    for (const unsigned number : manifests_) {
      store_le(slot(number).data() + 112, sums_.volume(manifest_of(number)));
      superblocks_.insert(number);
    }
    for (const unsigned number : superblocks_) {
      const auto bytes = slot(number);
      if (bytes.size() < kSuperblockBytes) continue;
      store_le(bytes.data() + 8, uint32_t{0});
      store_le(bytes.data() + 8, crc32c(bytes));
    }
  }
  void put_root(unsigned number, uint32_t crc) {
    const auto manifest = manifest_of(number);
    for (size_t begin = 0; begin + 12 + 24 <= manifest.size();) {
      const auto length = load_le<uint64_t>(manifest.data() + begin + 4);
      if (load_le<uint32_t>(manifest.data() + begin) == kIndexSection) {
        store_le(manifest.data() + begin + 12 + 12, crc);
        manifests_.insert(number);
        return;
      }
      if (length > manifest.size() - begin - 12) return;
      begin += 12 + length;
    }
  }
  void mend_records() {
    bool chained = false;
    uint32_t chain = 0;
    for (size_t i = 0; i < image_.records.size(); ++i) {
      const bool mends = records_.contains(i);
      if (image_.records[i].copy) {
        if (mends) (void)seal_record(i, true);
        continue;
      }
      if (broken_.contains(i)) {
        chained = false;
        continue;
      }
      const auto header = at(image_.records[i].offset, kMaxHeaderBytes);
      if (header.size() < kMaxHeaderBytes) return;
      if (chained) store_le(header.data() + 72, chain);
      if (!chained && !mends) continue;
      chain = seal_record(i, mends);
      chained = true;
    }
  }
  uint32_t seal_record(size_t number, bool with_sums) {
    const uint64_t offset = image_.records[number].offset;
    const auto header = at(offset, kMaxHeaderBytes);
    if (header.size() < kMaxHeaderBytes) return 0;
    const auto length = std::clamp<uint32_t>(load_le<uint16_t>(header.data() + 10), kMinHeaderBytes, kMaxHeaderBytes);
    const auto type = std::to_integer<uint8_t>(header[8]), flags = std::to_integer<uint8_t>(header[9]);
    const auto branch = load_le<uint32_t>(header.data() + 56);
    const auto blocks = std::min<uint32_t>(load_le<uint32_t>(header.data() + 60), kMaxRecordBlocks);
    const auto block = load_le<uint64_t>(header.data() + 64), lsn = load_le<uint64_t>(header.data() + 16);
    if (with_sums && (type == static_cast<uint8_t>(RecordType::kPoint) || (flags & kCompressed) != 0)) {
      store_le(header.data() + kRecordFixedBytes, sums_.block(branch, block, lsn, at(offset + length, load_le<uint32_t>(header.data() + 12))));
    } else if (with_sums && type == static_cast<uint8_t>(RecordType::kData)) {
      for (uint32_t i = 0; i < blocks; ++i)
        store_le(header.data() + kRecordFixedBytes + 4 * i,
                 sums_.block(branch, block + i, lsn, at(offset + length + uint64_t{i} * kBlockBytes, kBlockBytes)));
    }
    store_le(header.data() + 4, uint32_t{0});
    const uint32_t crc = sums_.volume(header.first(length));
    store_le(header.data() + 4, crc);
    return crc;
  }

  const Image& image_;
  Bytes& bytes_;
  const Sums sums_;
  unsigned taken_ = 0;
  std::set<unsigned> superblocks_, manifests_;
  std::set<size_t> pages_, records_, broken_;
};

}  // namespace

const Image& image(size_t number) {
  static const std::array<Image, kImages> images = {make(0), make(1), make(2), make(3), make(4)};
  return images[number % kImages];
}

void change(const Image& image, Input& input, Bytes& bytes) { Changes(image, bytes).take(input); }

}  // namespace netblk::fuzz
