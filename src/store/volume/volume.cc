// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/volume.h"

#include <bit>
#include <cerrno>
#include <utility>

#include "base/check.h"
#include "base/limits.h"
#include "base/parse.h"
#include "store/volume/file_io.h"
#include "store/volume/open_volume.h"

namespace netblk::store::volume {
namespace {

// A small volume stays small: a few segments are taken beforehand.
uint32_t segment_shift_for(uint64_t size_bytes) {
  if (size_bytes <= uint64_t{1} << 30) return 20;
  return size_bytes <= uint64_t{16} << 30 ? 22 : kDefaultSegmentShift;
}

}  // namespace

coro::Task<Status> create_volume(io::Loop& loop, io::File& file, const CreateOptions& options, Environment& environment) {
  if (options.size_bytes == 0 || options.size_bytes % limits::kSectorBytes != 0 || options.size_bytes > limits::kMaxDeviceBytes)
    co_return make_error(EINVAL, "a volume's size is a multiple of {} bytes, and {} is none", limits::kSectorBytes, options.size_bytes);
  Superblock superblock;
  superblock.segment_shift = segment_shift_for(options.size_bytes);
  if (options.segment_bytes != 0) {
    if (!std::has_single_bit(options.segment_bytes) || options.segment_bytes < uint64_t{1} << kMinSegmentShift ||
        options.segment_bytes > uint64_t{1} << kMaxSegmentShift)
      co_return make_error(EINVAL, "a segment is a power of two, from {} to {}, and {} is none", size_text(1u << kMinSegmentShift),
                           size_text(1u << kMaxSegmentShift), options.segment_bytes);
    superblock.segment_shift = static_cast<uint32_t>(std::countr_zero(options.segment_bytes));
  }
  superblock.uuid = random_id_of(environment);
  superblock.incarnation = random_id_of(environment);
  superblock.checkpoint = 1;
  superblock.sequence = 1;
  // Segment 0 has the manifest, and the log begins in segment 1.
  Manifest manifest;
  manifest.log.segment = 1;
  manifest.log.incarnation = superblock.incarnation;
  manifest.log.time_ns = environment.wall_ns();
  manifest.segments = {{SegmentState::kMetadata, kPageBytes, 0}, {SegmentState::kLog, 0, 0}};
  for (const Setting& setting : options.settings) {
    Status put = put_setting(manifest.settings, setting.key, setting.value);
    if (!put) co_return put;
  }
  if (parse_settings(manifest.settings).history.value != 0) manifest.history = {.from_lsn = 0, .log_bytes = 0, .moments = {{manifest.log.time_ns, 0, 0}}};
  BranchInfo head;
  head.size_bytes = options.size_bytes;
  manifest.branches.push_back(head);
  std::vector<std::byte> bytes = encode(manifest);
  superblock.manifest_offset = kSegmentsAt;
  if (options.key != nullptr) {
    Secret volume_key(kVolumeKeyBytes);
    environment.random_bytes(volume_key.bytes());
    const RandomBytes random = [&environment](std::span<std::byte> into) { environment.random_bytes(into); };
    auto slot = add_key(superblock.key_slots, volume_key, *options.key, environment.wall_ns(), random, options.scrypt_log2_n);
    if (!slot.ok()) co_return std::move(slot).error();
    superblock.incompatible |= kEncrypted;
    MetadataCipher cipher(std::make_shared<Cipher>(std::move(volume_key)));
    cipher.begin(superblock.incarnation);
    bytes = cipher.seal_manifest(superblock, bytes);
  }
  NETBLK_CHECK(bytes.size() <= kPageBytes, "the first manifest is longer than a page");
  superblock.manifest_bytes = bytes.size();
  superblock.manifest_crc = Sums(superblock.uuid).volume(bytes);
  const int32_t room = co_await io::await([&](io::Op& op) {
    return file.allocate(loop, op, 0, kSegmentsAt + 2 * superblock.segment_bytes());
  });
  int error = room == -EOPNOTSUPP ? 0 : -room;
  if (error == 0) error = co_await write_bytes(loop, file, bytes, superblock.manifest_offset);
  for (int i = 0; i < 2 && error == 0; ++i, ++superblock.sequence) {
    const int32_t synced = co_await datasync(loop, file);
    error = -synced;
    if (error != 0) break;
    const SuperblockBytes block = encode(superblock);
    error = co_await write_bytes(loop, file, block, kSuperblockAt[superblock.sequence % 2]);
  }
  if (error == 0) {
    const int32_t synced = co_await datasync(loop, file);
    error = -synced;
  }
  if (error != 0) co_return make_error(error, "the volume cannot be written: {}", errno_text(error));
  co_return Ok{};
}

coro::Task<Result<std::unique_ptr<Volume>>> open_volume(io::Loop& loop, std::unique_ptr<io::File> file,
                                                        const VolumeOptions& options, Environment& environment) {
  Result<Start> start = co_await find_start(loop, *file, options.key.get());
  if (!start) co_return make_error(start.error().code, "{} cannot be opened: {}", options.name, start.error().message);
  auto volume = std::make_unique<OpenVolume>(loop, std::move(file), options, environment, start.value());
  Status opened = co_await volume->open();
  if (!opened) co_return make_error(opened.error().code, "{} cannot be opened: {}", options.name, opened.error().message);
  co_return std::unique_ptr<Volume>(std::move(volume));
}

}  // namespace netblk::store::volume
