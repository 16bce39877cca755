// SPDX-License-Identifier: GPL-2.0-only
#include "sim/volume/backup.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "base/endian.h"
#include "sim/volume/asked.h"
#include "sim/volume/setup.h"

namespace netblk::sim {
namespace {

using block::Command;
using store::volume::PointName;
using store::volume::Receiving;
using store::volume::SnapshotIdentity;
using store::volume::StreamHeader;
using store::volume::StreamKind;
using store::volume::StreamReader;
using store::volume::StreamRecord;
using store::volume::Transfer;
using Loss = VolumeModel::Loss;

constexpr size_t kFixed = store::volume::kStreamRecordBytes;

template <class Bytes>
void append(std::vector<std::byte>& stream, const Bytes& bytes) {
  stream.insert(stream.end(), bytes.begin(), bytes.end());
}

}  // namespace

coro::Task<int> send_stream(io::Loop& loop, Random& random, block::Device& device, const block::Base* since, const StreamHeader& header,
                            std::vector<std::byte>& stream) {
  const auto head = encode(header);
  store::volume::StreamWriter writer(head);
  append(stream, head);
  std::vector<block::Extent> extents;
  std::vector<std::byte> payload;
  const uint64_t end = device.size_bytes();
  for (uint64_t at = header.start_offset; at < end;) {
    Asked status(loop, Command::kBlockStatus, at / kVolumeSector, (end - at) / kVolumeSector);
    extents.clear();
    status.extents = &extents;
    status.max_extents = static_cast<uint32_t>(random.between(1, 40));
    status.since = since;
    co_await status.run(device, [](int) {});
    if (status.error != 0) co_return status.error;
    for (const block::Extent& extent : extents) {
      const uint64_t until = at + extent.length;
      if (since == nullptr ? extent.hole : !extent.changed) {
        at = until;
        continue;
      }
      if (extent.zero) append(stream, writer.record(extent.hole ? StreamKind::kHole : StreamKind::kZero, at, extent.length));
      while (!extent.zero && at < until) {
        const uint64_t part = std::min(until - at, 4096 * random.between(1, 32));
        payload.resize(part);
        Asked read(loop, Command::kRead, at / kVolumeSector, part / kVolumeSector);
        read.data = payload.data();
        co_await read.run(device, [](int) {});
        if (read.error != 0) co_return read.error;
        append(stream, writer.record(StreamKind::kData, at, part, payload));
        append(stream, payload);
        at += part;
      }
      at = until;
    }
  }
  append(stream, writer.end());
  co_return 0;
}

// --- What the sender knows ------------------------------------------------------------------------------------------

std::optional<SnapshotIdentity> Backup::base() const {
  for (const Got& got : settled_.got)
    if (got.image == settled_.shown) return got.identity;
  return std::nullopt;
}

bool Backup::has(const SnapshotIdentity& identity) const {
  return std::any_of(settled_.got.begin(), settled_.got.end(), [&](const Got& got) { return got.identity == identity; });
}

void Backup::take(std::vector<std::byte> stream, const Transfer& what, const Image& image) {
  if (disk_ == nullptr || (what.is_whole() && !settled_.receiving)) make();
  stream_ = std::move(stream);
  what_ = what;
  image_ = image;
  const uint64_t kind = random_.below(12);
  breaks_ = kind < 7;
  if (kind < 4) {
    stream_.resize(random_.below(stream_.size()));
  } else if (kind < 5) {
    stream_[random_.below(stream_.size())] ^= static_cast<std::byte>(1u << random_.below(8));
  } else if (breaks_) {
    breaks_ = misplace();
  }
  world_.note("sent", stream_.size(), breaks_, what.is_whole());
}

// A record is missing, is there twice, or comes before the one that it follows: each of them is whole. False: there are too few.
bool Backup::misplace() {
  std::vector<size_t> begins;
  for (size_t at = store::volume::kStreamHeaderBytes; at < stream_.size();) {
    begins.push_back(at);
    at += kFixed + load_le<uint32_t>(stream_.data() + at + 20);
  }
  if (begins.size() < 3) return false;
  begins.push_back(stream_.size());
  // (The last one is the end.)
  const size_t which = random_.below(begins.size() - 3);
  const auto place = [&](size_t number) { return stream_.begin() + static_cast<ptrdiff_t>(begins[number]); };
  const std::vector<std::byte> record(place(which), place(which + 1));
  switch (random_.below(3)) {
    case 0: stream_.erase(place(which), place(which + 1)); break;
    case 1: stream_.insert(place(which + 2), record.begin(), record.end()); break;
    default: std::rotate(place(which), place(which + 1), place(which + 2)); break;
  }
  world_.count(Count::kMisplacedRecords);
  return true;
}

void Backup::make() {
  shape_ = choose_shape(random_, random_.percent(75) ? Mode::kCrashes : Mode::kFailures);
  shape_.sectors = 8 * random_.between(16, 96);
  shape_.create.size_bytes = shape_.sectors * kVolumeSector;
  disk_ = std::make_unique<LyingDisk>(world_);
  make_volume(world_, *disk_, shape_);
  settled_ = {.shown = empty_image(shape_.sectors), .got = {}, .receiving = {}};
  after_.reset();
  loss_ = Loss::kNothing;
  generation_ = 0;
}

// --- A life ---------------------------------------------------------------------------------------------------------

void Backup::run() {
  if (disk_ == nullptr) return;
  plan_ = choose_plan(random_, 30);
  steps_ = 0;
  dead_ = failed_ = poisoned_ = false;
  failures_before_ = disk_->failures();
  if (shape_.mode == Mode::kFailures) {
    disk_->faults().fail_nth = random_.between(1, 80);
    disk_->faults().fail_error = EIO;
  }
  world_.note("backup", static_cast<uint64_t>(loss_), static_cast<uint64_t>(plan_.ending));
  {
    SimLoop loop(world_);
    disk_->set_watcher([this](LyingDisk::Step step) { watch(step); });
    loop.run(live(loop));
    disk_->set_watcher(nullptr);
  }
  if (!dead_) crash();
  loss_ = Loss::kNothing;
  if (poisoned_) {
    loss_ = Loss::kUnflushed;
    if (random_.percent(50)) disk_->state().drop_clean();
  }
  if (plan_.ending == Ending::kPowerCut) {
    world_.count(Count::kPowerCuts);
    disk_->cut_power(any_survival(random_));
    loss_ = Loss::kUnflushed;
  }
  disk_->faults().fail_nth = 0;
}

void Backup::crash() {
  dead_ = true;
  disk_->end_process();
}

void Backup::watch(LyingDisk::Step step) {
  if (dead_ || step == LyingDisk::Step::kRead) return;
  if (plan_.ending != Ending::kClean && ++steps_ == plan_.crash_at_step) crash();
}

bool Backup::may_fail(int error) const { return dead_ || (error == EIO && disk_->failures() != failures_before_); }

bool Backup::end(const char* what, int error) {
  if (dead_) return false;
  world_.note("backed up", static_cast<uint64_t>(error));
  if (error == 0) {
    settled_ = std::move(*after_);
    after_.reset();
    return true;
  }
  if (!may_fail(error)) world_.fail("a request fails only where the disk does", "{} ended with error {}", what, error);
  failed_ = true;
  return false;
}

coro::Task<void> Backup::live(SimLoop& loop) {
  SimEnvironment environment(world_);
  store::volume::VolumeOptions options = shape_.open;
  options.cache_survived = loss_ == Loss::kNothing;
  options.on_poison = [this] { poisoned_ = poisoned_ || !dead_; };
  auto opened = co_await store::volume::open_volume(loop, disk_->open(), options, environment);
  if (!opened.ok()) {
    if (!may_fail(EIO)) world_.fail("a volume opens after a crash", "{}", opened.error().message);
    co_return;
  }
  volume_ = std::move(opened).value();
  co_await use(loop);
  if (!dead_ && plan_.ending != Ending::kClean) crash();
  const Status closed = co_await volume_->close();
  if (!closed.ok() && !may_fail(EIO)) world_.fail("a volume closes", "{}", closed.error().message);
  volume_.reset();
}

coro::Task<void> Backup::use(SimLoop& loop) {
  Found found;
  co_await find(loop, found);
  if (dead_ || failed_) co_return;
  const auto info = volume_->info();
  if (info.read_only) {
    if (!may_fail(EIO)) world_.fail("a sound disk has no damage", "{}", info.damage);
    co_return;
  }
  if (info.generation < generation_) world_.fail("the generation never goes back", "it was {} and is {}", generation_, info.generation);
  generation_ = info.generation;
  adopt(found);
  if (gives_up_ || (settled_.receiving && !has_stream() && random_.percent(5))) co_await ask_give_up();
  else if (!settled_.receiving && !has_stream() && random_.percent(25)) co_await roll_back();
  if (has_stream() && !dead_ && !failed_) co_await receive(loop);
  if (dead_ || failed_) co_return;
  found = {};
  co_await find(loop, found);
  if (dead_ || failed_) co_return;
  const std::string why = difference(found, settled_);
  if (!why.empty()) world_.fail("a receiver shows the last snapshot that came whole", "{}", why);
  if (!random_.percent(20)) co_return;
  const auto report = co_await volume_->check();
  if (dead_ || may_fail(EIO)) co_return;
  if (!report.ok() || !report.value().damage.empty())
    world_.fail("a sound disk has no damage", "{}", report.ok() ? report.value().damage.front() : report.error().message);
}

coro::Task<void> Backup::find(SimLoop& loop, Found& found) {
  found.receiving = volume_->receiving();
  auto head = volume_->open_device();
  if (!head.ok()) world_.fail("a branch opens", "{}", head.error().message);
  found.shown = Contents(head.value()->size_bytes() / kVolumeSector);
  int error = co_await read_contents(loop, world_, *head.value(), found.shown);
  const auto snapshots = volume_->snapshots();
  const Id uuid = volume_->info().uuid;
  for (const auto& snapshot : snapshots) {
    if (snapshot.name.starts_with(kBeforeRewind) || error != 0) continue;
    auto device = volume_->open_device(snapshot.name);
    if (!device.ok()) world_.fail("a snapshot opens", "{}", device.error().message);
    found.names.emplace_back(snapshot.name, identity_of(snapshot, uuid));
    found.contents.emplace_back(device.value()->size_bytes() / kVolumeSector);
    error = co_await read_contents(loop, world_, *device.value(), found.contents.back());
    world_.count(Count::kSnapshotChecks);
  }
  if (error == 0 || dead_) co_return;
  if (!may_fail(error)) world_.fail("reads work", "error {}", error);
  failed_ = true;
}

std::string Backup::difference(const Found& found, const State& state) {
  if (found.receiving.has_value() != state.receiving.has_value())
    return fmt::format("a receive is {}", found.receiving ? "unfinished" : "gone");
  if (found.receiving && found.receiving->what != state.receiving->what) return "another snapshot is unfinished";
  if (found.receiving && found.receiving->offset != state.receiving->offset)
    return fmt::format("{} bytes have come instead of {}", found.receiving->offset, state.receiving->offset);
  std::string why = differing("the disk", found.shown, *state.shown);
  if (!why.empty()) return why;
  if (found.names.size() != state.got.size()) return fmt::format("there are {} snapshots instead of {}", found.names.size(), state.got.size());
  for (size_t i = 0; i < state.got.size(); ++i) {
    if (found.names[i] != std::pair(state.got[i].name, state.got[i].identity)) return fmt::format("snapshot '{}' is another", state.got[i].name);
    why = differing(fmt::format("snapshot '{}'", state.got[i].name), found.contents[i], *state.got[i].image);
    if (!why.empty()) return why;
  }
  return {};
}

void Backup::adopt(const Found& found) {
  const std::string why = difference(found, settled_);
  if (!why.empty()) {
    const std::string other = after_ ? difference(found, *after_) : "nothing was under way";
    if (!other.empty()) world_.fail("each step of a receive happens whole", "against the state before: {}; behind: {}", why, other);
    settled_ = std::move(*after_);
  }
  after_.reset();
  // What was under way has ended it.
  if (has_stream() && has(what_.to)) stream_.clear();
  if (!settled_.receiving) gives_up_ = false;
}

// --- What it does ---------------------------------------------------------------------------------------------------

coro::Task<void> Backup::roll_back() {
  if (settled_.got.empty()) co_return;
  const Got& to = settled_.got[random_.below(settled_.got.size())];
  State after = settled_;
  after.shown = to.image;
  const std::string name = to.name;
  begin(std::move(after));
  const Result<uint64_t> done = co_await volume_->rewind(PointName(name));
  (void)end("a rollback", done.ok() ? 0 : done.error().code);
}

coro::Task<void> Backup::ask_give_up() {
  State after = settled_;
  after.receiving.reset();
  begin(std::move(after));
  const Status done = co_await volume_->give_up_receiving();
  if (!end("giving up a receive", done.ok() ? 0 : done.error().code)) co_return;
  gives_up_ = false;
  stream_.clear();
}

coro::Task<bool> Backup::keep(uint64_t offset) {
  State after = settled_;
  after.receiving->offset = offset;
  begin(std::move(after));
  const Status kept = co_await volume_->keep_received(offset);
  co_return end("keeping what has come", kept.ok() ? 0 : kept.error().code);
}

coro::Task<void> Backup::receive(SimLoop& loop) {
  world_.count(Count::kReceives);
  if (stream_.size() < store::volume::kStreamHeaderBytes) {
    stream_.clear();
    co_return;
  }
  const auto head = std::span<const std::byte>(stream_).first<store::volume::kStreamHeaderBytes>();
  const Result<StreamHeader> header = store::volume::decode_stream_header(head);
  if (!header) {
    if (!breaks_) world_.fail("a sound stream is taken", "{}", header.error().message);
    stream_.clear();
    co_return;
  }
  State after = settled_;
  if (!after.receiving) after.receiving = Receiving{.what = what_};
  begin(std::move(after));
  // What is told against another snapshot than the disk is as may be refused; taken, it must come out right.
  const bool fits = settled_.receiving || what_.is_whole() || base() == what_.from;
  auto disk = co_await volume_->receive(what_);
  if (!fits && !dead_ && !disk.ok() && disk.error().code == ESTALE) {
    world_.count(Count::kRefusedBases);
    after_.reset();
    stream_.clear();
    co_return;
  }
  if (!disk.ok() && !dead_ && !may_fail(disk.error().code)) world_.fail("a receiver takes what fits it", "{}", disk.error().message);
  if (!end("the begin of a receive", disk.ok() ? 0 : disk.error().code)) co_return;
  if (volume_->open_device().ok()) world_.fail("the disk is nobody else's while it receives", "it was opened");
  StreamReader reader(header.value(), head);
  const int broken = co_await records(loop, *disk.value(), reader, header.value());
  if (dead_ || failed_) co_return;
  if (broken != 0) {
    if (!breaks_) world_.fail("a sound stream is taken", "it ended at byte {} with error {}", reader.offset(), broken);
    stream_.clear();
    world_.count(Count::kBrokenStreams);
    co_return;
  }
  State done = settled_;
  done.receiving.reset();
  done.shown = image_;
  done.got.push_back({what_.to_name, what_.to, image_});
  begin(std::move(done));
  const Status ended = co_await volume_->end_receiving();
  if (!end("the end of a receive", ended.ok() ? 0 : ended.error().code)) co_return;
  if (volume_->info().generation <= generation_) world_.fail("a receive moves the generation", "it is {}", generation_);
  generation_ = volume_->info().generation;
  stream_.clear();
}

coro::Task<int> Backup::records(SimLoop& loop, block::Device& disk, StreamReader& reader, const StreamHeader& header) {
  size_t at = store::volume::kStreamHeaderBytes;
  uint64_t applied = 0;
  int why = 0;
  while (why == 0 && !reader.ended()) {
    why = EPIPE;
    if (stream_.size() - at < kFixed) break;
    const auto record = reader.record(std::span<const std::byte>(stream_).subspan(at).first<kFixed>());
    if (!record || stream_.size() - at - kFixed < record.value().payload_bytes) break;
    const auto payload = std::span(stream_).subspan(at + kFixed, record.value().payload_bytes);
    if (!reader.passes(payload)) break;
    at += kFixed + payload.size();
    why = co_await apply(loop, disk, record.value(), payload.data(), header.what.size_bytes);
    if (dead_) co_return EIO;
    if (why != 0) {
      if (!may_fail(why)) world_.fail("a request fails only where the disk does", "a received change ended with error {}", why);
      failed_ = true;
      co_return why;
    }
    applied = reader.offset();
    if (reader.ended() || applied <= settled_.receiving->offset || !random_.percent(15)) continue;
    const bool kept = co_await keep(applied);
    if (!kept) co_return EIO;
  }
  if (why != 0 && applied > settled_.receiving->offset && random_.percent(70)) {
    const bool kept = co_await keep(applied);
    if (!kept) co_return EIO;
  }
  co_return why;
}

coro::Task<int> Backup::apply(SimLoop& loop, block::Device& disk, const StreamRecord& record, std::byte* payload, uint64_t end) {
  Command command = record.kind == StreamKind::kData ? Command::kWrite : record.kind == StreamKind::kZero ? Command::kWriteZeroes : Command::kTrim;
  uint64_t offset = record.offset, length = record.length;
  if (record.kind == StreamKind::kEnd) {
    offset = end;
    length = disk.size_bytes() - end;
    if (length == 0) co_return 0;
  }
  Asked change(loop, command, offset / kVolumeSector, length / kVolumeSector);
  change.data = command == Command::kWrite ? payload : nullptr;
  change.keep_allocated = record.kind == StreamKind::kZero;
  co_await change.run(disk, [](int) {});
  co_return change.error;
}

}  // namespace netblk::sim
