// SPDX-License-Identifier: GPL-2.0-only
// What leaves a volume: `send` (docs/volume-stream.md) and `export`.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/id.h"
#include "block_await.h"
#include "store/volume/stream.h"
#include "volume_commands.h"

namespace netblk::tools {
namespace {

namespace volume = store::volume;
using block::Command;

// One question about a disk's contents: how many extents its answer may have.
constexpr uint32_t kExtents = 1024;
constexpr uint64_t kPieceBytes = volume::kMaxStreamPayload;

Error cannot_read(uint64_t offset, int error) {
  return make_error(error, "byte {} of the disk cannot be read: {}", offset, errno_text(error));
}

// What of a disk is another than at `since`, or all that it has: the extents, in order.
class Walk {
 public:
  Walk(VolumeWork& on, block::Device& disk, std::shared_ptr<const block::Base> since, uint64_t from)
      : on_(on), disk_(disk), since_(std::move(since)), at_(from) {}

  uint64_t at() const { return at_; }
  // From at() on; none at the end.
  coro::Task<Result<std::optional<block::Extent>>> next() {
    std::optional<block::Extent> none;
    if (at_ >= disk_.size_bytes()) co_return none;
    if (on_.stopped && on_.stopped()) co_return make_error(ECANCELED, "it was stopped");
    if (told_ == extents_.size()) {
      told_ = 0;
      const int error = co_await AskedStatus(disk_, on_.loop, at_, disk_.size_bytes() - at_, extents_, kExtents, since_.get());
      if (error != 0) co_return cannot_read(at_, error);
    }
    std::optional<block::Extent> extent = extents_[told_++];
    at_ += extent->length;
    co_return extent;
  }

 private:
  VolumeWork& on_;
  block::Device& disk_;
  const std::shared_ptr<const block::Base> since_;
  uint64_t at_;
  std::vector<block::Extent> extents_;
  size_t told_ = 0;
};

Result<volume::SnapshotInfo> snapshot_of(VolumeWork& on, const std::string& name) {
  const auto snapshots = on.volume.snapshots();
  const auto found = std::find_if(snapshots.begin(), snapshots.end(), [&](const auto& each) { return each.name == name; });
  if (found != snapshots.end()) return *found;
  return make_error(ENOENT, "it has no snapshot '{}': only a snapshot is sent, and `netblk volume snapshot {}@{}` makes one of the disk as "
                            "it is now", name, on.folder, name);
}

// "B", or "A..B"; dots may be in names, too.
struct Range {
  std::string from, to;
};
Result<Range> range_of(VolumeWork& on, const std::string& text) {
  const auto snapshots = on.volume.snapshots();
  const auto is_there = [&](const std::string& name) {
    return std::any_of(snapshots.begin(), snapshots.end(), [&](const auto& each) { return each.name == name; });
  };
  Range range{.from = {}, .to = text};
  if (is_there(text)) return range;
  bool is_range = false;
  for (size_t at = text.find(".."); at != std::string::npos; at = text.find("..", at + 1)) {
    Range split{.from = text.substr(0, at), .to = text.substr(at + 2)};
    if (!volume::is_name(split.from) || !volume::is_name(split.to)) continue;
    const bool both = is_there(split.from) && is_there(split.to);
    if (!is_range || both) range = std::move(split);
    is_range = true;
    if (both) break;
  }
  if (!is_range && !volume::is_name(text))
    return make_error(EINVAL, "bad snapshot '{}': write B for the whole of snapshot B, or A..B for what changed since A", text);
  if (range.from == range.to) return make_error(EINVAL, "nothing changes from snapshot '{}' to itself", range.to);
  return range;
}

class Sending {
 public:
  Sending(VolumeWork& on, const volume::StreamHeader& header) : on_(on), header_(header), bytes_(encode(header)), writer_(bytes_) {}

  coro::Task<Status> run(block::Device& disk, std::shared_ptr<const block::Base> since);
  uint64_t data_bytes() const { return data_bytes_; }

 private:
  coro::Task<Status> data(block::Device& disk, uint64_t offset, uint64_t length);
  void tell(uint64_t offset);

  VolumeWork& on_;
  const volume::StreamHeader header_;
  const std::array<std::byte, volume::kStreamHeaderBytes> bytes_;
  volume::StreamWriter writer_;
  std::vector<std::byte> buffer_;
  uint64_t data_bytes_ = 0;
  Telling telling_{on_};
};

void Sending::tell(uint64_t offset) {
  if (telling_.is_due()) on_.tell({{"done_bytes", offset}, {"total_bytes", header_.what.size_bytes}});
}

coro::Task<Status> Sending::data(block::Device& disk, uint64_t offset, uint64_t length) {
  constexpr size_t kFixed = volume::kStreamRecordBytes;
  buffer_.resize(kFixed + kPieceBytes);
  while (length > 0) {
    if (on_.stopped && on_.stopped()) co_return make_error(ECANCELED, "it was stopped");
    const uint64_t part = std::min(length, kPieceBytes);
    const auto payload = std::span(buffer_).subspan(kFixed, part);
    const int error = co_await Asked(disk, on_.loop, Command::kRead, offset, part, payload.data());
    if (error != 0) co_return cannot_read(offset, error);
    const auto record = writer_.record(volume::StreamKind::kData, offset, part, payload);
    std::copy(record.begin(), record.end(), buffer_.begin());
    const auto all = std::span<const std::byte>(buffer_).first(kFixed + part);
    Status written = co_await on_.output->write(all);
    if (!written) co_return written;
    data_bytes_ += part;
    offset += part;
    length -= part;
    tell(offset);
  }
  co_return Ok{};
}

coro::Task<Status> Sending::run(block::Device& disk, std::shared_ptr<const block::Base> since) {
  const bool whole = since == nullptr;
  Status status = co_await on_.output->write(bytes_);
  if (!status) co_return status;
  Walk walk(on_, disk, std::move(since), header_.start_offset);
  for (;;) {
    const uint64_t offset = walk.at();
    const auto next = co_await walk.next();
    if (!next) co_return next.error();
    if (!next.value()) break;
    const block::Extent extent = *next.value();
    // A hole of a whole disk is what a new one has there.
    if (whole ? extent.hole : !extent.changed) continue;
    if (extent.zero) {
      const auto record = writer_.record(extent.hole ? volume::StreamKind::kHole : volume::StreamKind::kZero, offset, extent.length);
      status = co_await on_.output->write(record);
    } else {
      status = co_await data(disk, offset, extent.length);
    }
    if (!status) co_return status;
    tell(walk.at());
  }
  const auto end = writer_.end();
  status = co_await on_.output->write(end);
  co_return status;
}

}  // namespace

coro::Task<Result<Json>> volume_send(VolumeWork& on, const Json& asked) {
  const auto name = text_in(asked, "name");
  const auto token = text_in(asked, "resume", "");
  if (!name) co_return name.error();
  if (!token) co_return token.error();
  const auto range = range_of(on, name.value());
  if (!range) co_return range.error();
  const auto to = snapshot_of(on, range.value().to);
  if (!to) co_return to.error();
  volume::StreamHeader header;
  const Id uuid = on.volume.info().uuid;
  header.what.to = identity_of(to.value(), uuid);
  header.what.to_name = to.value().name;
  header.what.size_bytes = to.value().size_bytes;
  auto disk = on.volume.open_device(to.value().name);
  if (!disk) co_return disk.error();
  std::shared_ptr<const block::Base> since;
  if (!range.value().from.empty()) {
    const auto from = snapshot_of(on, range.value().from);
    if (!from) co_return from.error();
    header.what.from = identity_of(from.value(), uuid);
    header.what.from_name = from.value().name;
    header.what.from_size_bytes = from.value().size_bytes;
    since = disk.value()->base(from.value().name);
    if (since == nullptr) co_return make_error(ENOENT, "snapshot '{}' has just been deleted", from.value().name);
  }
  if (!token.value().empty()) {
    const auto offset = volume::parse_resume_token(token.value(), header.what);
    if (!offset) co_return offset.error();
    header.start_offset = offset.value();
  }
  Sending sending(on, header);
  const Status sent = co_await sending.run(*disk.value(), std::move(since));
  if (!sent) co_return sent.error();
  Json answer = {{"name", header.what.to_name}, {"since", header.what.from_name}, {"data_bytes", sending.data_bytes()}};
  co_return answer;
}

// The disk from its first byte to its last. Nobody writes to a snapshot; of a disk that somebody writes to it is a mixture.
coro::Task<Result<Json>> volume_export(VolumeWork& on, const Json& asked) {
  const auto name = text_in(asked, "name", "");
  if (!name) co_return name.error();
  const auto branches = on.volume.branches();
  const bool changes = std::any_of(branches.begin(), branches.end(),
                                   [&](const volume::BranchInfo& branch) { return branch.name == name.value(); });
  if (on.served && changes)
    co_return make_error(EBUSY, "a server has the volume open, and may write to it meanwhile: take a snapshot (`netblk volume snapshot "
                                "{}{}@NAME`), and export that", name.value().empty() ? "" : "--of " + name.value() + " ", on.folder);
  volume::PointName point;
  if (!name.value().empty()) {
    auto parsed = volume::parse_point_name(name.value());
    if (!parsed) co_return parsed.error();
    point = std::move(parsed).value();
  }
  auto disk = on.volume.open_device(point);
  if (!disk) co_return disk.error();
  const uint64_t size = disk.value()->size_bytes();
  Walk walk(on, *disk.value(), nullptr, 0);
  std::vector<std::byte> buffer(kPieceBytes);
  Telling telling(on);
  for (;;) {
    uint64_t offset = walk.at();
    const auto next = co_await walk.next();
    if (!next) co_return next.error();
    if (!next.value()) break;
    if (next.value()->zero) std::fill(buffer.begin(), buffer.end(), std::byte{0});
    while (offset < walk.at()) {
      if (on.stopped && on.stopped()) co_return make_error(ECANCELED, "it was stopped");
      const uint64_t part = std::min(walk.at() - offset, kPieceBytes);
      if (!next.value()->zero) {
        const int error = co_await Asked(*disk.value(), on.loop, Command::kRead, offset, part, buffer.data());
        if (error != 0) co_return cannot_read(offset, error);
      }
      const auto bytes = std::span<const std::byte>(buffer).first(part);
      const Status written = co_await on.output->write(bytes);
      if (!written) co_return written.error();
      offset += part;
      if (telling.is_due()) on.tell({{"done_bytes", offset}, {"total_bytes", size}});
    }
  }
  Json answer = {{"name", name.value()}, {"size_bytes", size}};
  co_return answer;
}

}  // namespace netblk::tools
