// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/log.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "store/volume/contents.h"
#include "store/volume/file_io.h"
#include "store/volume/reader.h"
#include "store/volume/recovery.h"
#include "store/volume/volume_device.h"

namespace netblk::store::volume {

using block::Command;
using block::Request;

namespace {

// When a group has so much, it is written. A part of a request that is begun goes in whole.
constexpr uint64_t kGroupBytes = 1u << 20;
constexpr size_t kGroupRecords = 512;
constexpr size_t kGroupEdges = 64;
constexpr size_t kGroupChanges = 16;
// A part has a record for each block at most, and each may be in a segment of its own.
constexpr size_t kPartRecords = 2 * (kMaxAtomicBytes / kBlockBytes + 2);
constexpr size_t kMostRecords = kGroupRecords + kPartRecords + 2 * kGroupChanges;
// What a group has of payloads of its own, compressed or encrypted, and a part with its edges.
constexpr size_t kMostStored = kGroupBytes + kMaxAtomicBytes + 2 * kBlockBytes;

// Of VolumeOptions::table_bytes. Then a request waits for the merge, or is refused if that cannot be made.
constexpr size_t kMostTables = 4;
// Of VolumeOptions::checkpoint_bytes, likewise; but the log grows on for as long as no checkpoint can be made.
constexpr uint64_t kMostLogs = 4;
constexpr uint64_t kMergePollMs = 2;
constexpr uint64_t kTellMs = 10'000;

// What ordinary records leave free at a segment's end: a record that leads on can begin there at a block's start.
constexpr uint64_t kSegmentTail = kBlockBytes;

// TRIM and WRITE_ZEROES of more are several, one after another: a group has memory for so many records, and a device may have
// kMaxDeviceBytes.
constexpr uint64_t kMaxHollowBlocks = 1u << 30;

uint64_t round_to_block(uint64_t offset) { return (offset + kBlockBytes - 1) / kBlockBytes * kBlockBytes; }

bool is_zero(std::span<const std::byte> block) {
  uint64_t word;
  std::memcpy(&word, block.data(), sizeof word);
  return word == 0 && std::memcmp(block.data(), block.data() + 8, block.size() - 8) == 0;
}

void finish_at_home(Request& request) { std::move(request.held.completion).finish(request.error); }

void answer(io::Loop& here, Request& request) {
  if (&io::loop_of(*request.loop) == &here) return finish_at_home(request);
  request.held.hop.send(request, finish_at_home);
}

}  // namespace

void Log::Group::clear() {
  stretches.clear();
  parts.clear();
  payloads.clear();
  touched.clear();
  entries.clear();
  end = bytes = records = edge_blocks = stored_bytes = 0;
  points.reset();
  owners.reset();
  rewinds = 0;
}

uint64_t Log::Planned::stored_bytes(bool encrypted) const {
  if (type != RecordType::kData) return record_header_bytes(0, encrypted);
  if (stored != nullptr) return record_header_bytes(1, encrypted) + round_to_unit(stored_payload);
  return record_header_bytes(blocks, encrypted ? blocks : 0) + uint64_t{blocks} * kBlockBytes;
}

std::span<const std::byte> Log::Part::block(uint64_t number) const {
  if (number == first && head != nullptr) return {head, kBlockBytes};
  if (number == last - 1 && tail != nullptr) return {tail, kBlockBytes};
  return {request->data + (number * kBlockBytes - request->offset), kBlockBytes};
}

Log::Log(Core& core, std::function<void()> on_growth)
    : core_(core),
      on_growth_(std::move(on_growth)),
      most_blocks_(std::min<uint64_t>(kMaxRecordBlocks,
                                      (core.segments.bytes() - kSegmentTail - kMaxHeaderBytes) / kBlockBytes)),
      group_kick_(*this, [](coro::Runnable& self) {
        auto& kick = static_cast<Kick&>(self);
        run_group(kick.log, *kick.loop);
      }),
      sync_kick_(*this, [](coro::Runnable& self) {
        auto& kick = static_cast<Kick&>(self);
        run_sync(kick.log, *kick.loop);
      }) {}

Log::~Log() { NETBLK_CHECK(!group_scheduled_ && !sync_scheduled_, "a log is destroyed in use"); }

// At the end of the ready queue: what this round of completions brings is in the same group, or sync.
void Log::schedule(Kick& kick, io::Loop& here, io::Loop& loop) {
  kick.loop = &loop;
  if (&here == &loop) {
    coro::ReadyQueue::current().push(kick);
  } else {
    loop.post(kick);
  }
}

void Log::submit(Request& request) {
  request.held.progress = 0;
  request.error = 0;
  {
    const std::lock_guard lock(core_.mutex);
    pending_.push(request);
    if (std::exchange(group_scheduled_, true)) return;
  }
  io::Loop& here = io::loop_of(*request.loop);
  schedule(group_kick_, here, here);
}

struct Log::WaitForGroup {
  Log& log;
  Waiter& waiter;
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> handle) const {
    waiter.handle = handle;
    {
      const std::lock_guard lock(log.core_.mutex);
      log.changes_.push(waiter);
      if (std::exchange(log.group_scheduled_, true)) return;
    }
    log.schedule(log.group_kick_, waiter.loop, waiter.loop);
  }
  void await_resume() const {}
};

coro::Task<Result<uint64_t>> Log::change(io::Loop& loop, uint32_t branch, Change what) {
  Waiter waiter(loop);
  waiter.change = &what;
  waiter.branch = branch;
  co_await WaitForGroup{*this, waiter};
  if (waiter.error) co_return std::move(*waiter.error);
  const int error = co_await sync(loop);
  if (error != 0) co_return make_error(error, "it could not be made durable: {}", errno_text(error));
  co_return waiter.lsn;
}

// --- A group --------------------------------------------------------------------------------------------------------

RequestTask Log::run_group(Log& log, io::Loop& loop) {
  Requests done;
  Waiters changes;
  const uint64_t pause_ms = log.pause_ms();
  if (pause_ms != 0) co_await io::SleepUntil(loop, loop.now_ms() + pause_ms);
  log.begin_group();
  co_await log.fill_group(loop, done, changes);
  int error = 0;
  bool grown = false;
  if (!log.group_.empty()) {
    error = co_await log.write_group(loop);
    if (error == 0) grown = log.publish();
  }
  if (grown) {
    log.on_growth_();
  } else if (std::exchange(log.stirred_, false)) {
    log.core_.stirred();
  }
  // From here on the group is another's, perhaps on another thread.
  io::Loop* const next = log.next_group_loop();
  if (next != nullptr) log.schedule(log.group_kick_, loop, *next);
  while (!changes.empty()) {
    Waiter& waiter = changes.pop();
    if (error != 0 && !waiter.error) waiter.error = make_error(error, "the log could not be written: {}", errno_text(error));
    waiter.loop.post(waiter);
  }
  while (!done.empty()) {
    Request& request = done.pop();
    if (request.error == 0) request.error = error;
    if (request.error == 0 && request.fua) {
      log.join_sync(loop, request);
    } else {
      answer(loop, request);
    }
  }
}

// What the collector asks for, so that it keeps up: in small parts, before each group.
uint64_t Log::pause_ms() {
  constexpr uint64_t kMostMs = 20;
  const uint64_t us_per_mib = core_.pause_us_per_mib.load(std::memory_order_relaxed);
  pause_debt_us_ = us_per_mib == 0 ? 0 : pause_debt_us_ + ((group_.bytes * us_per_mib) >> 20);
  const uint64_t pause = std::min(pause_debt_us_ / 1000, kMostMs);
  pause_debt_us_ -= pause * 1000;
  return pause;
}

void Log::begin_group() {
  group_.clear();
  if (group_.headers == nullptr) {
    group_.headers = std::make_unique<std::byte[]>(kMostRecords * kMaxHeaderBytes);
    group_.edges = std::make_unique<std::byte[]>((kGroupEdges + 2) * kBlockBytes);
  }
  if (core_.cipher != nullptr && !sealing_) {
    // The one of this opening, since it takes changes.
    const std::lock_guard lock(core_.mutex);
    sealing_.emplace(*core_.cipher, Cipher::Purpose::kRecords, core_.position.incarnation, true);
  }
  const std::lock_guard lock(core_.mutex);
  work_.append(pending_);
  at_ = core_.position;
  group_.durable_lsn = core_.durable_lsn;
  // Strictly: a record that is written again after an error is another one.
  group_.time_ns = std::max(at_.time_ns + 1, core_.environment.wall_ns());
  group_.align = std::exchange(core_.align, false);
  if (group_.align) at_.offset = round_to_block(at_.offset);
}

coro::Task<void> Log::fill_group(io::Loop& loop, Requests& done, Waiters& changes) {
  while (!work_.empty()) {
    Request& request = work_.front();
    if (core_.poisoned.load(std::memory_order_acquire)) {
      request.error = EIO;
    } else if (request.held.progress == 0 && request.is_abandoned()) {
      request.error = ECANCELED;
    } else {
      if (group_.bytes >= kGroupBytes || group_.records >= kGroupRecords || group_.edge_blocks >= kGroupEdges) break;
      const Placed placed = co_await place_part(loop, request);
      if (placed == Placed::kGroupIsFull) break;
      if (placed == Placed::kYes && request.held.progress < request.length) continue;
    }
    done.push(work_.pop());
  }
  size_t placed_changes = 0;
  for (; placed_changes < kGroupChanges; ++placed_changes) {
    Waiter* waiter = nullptr;
    {
      const std::lock_guard lock(core_.mutex);
      if (changes_.empty()) break;
      waiter = &changes_.pop();
    }
    co_await place_change(loop, *waiter);
    changes.push(*waiter);
  }
}

// The table and the log grow while the table before is merged, and the table for as long as that fails: not without a limit.
coro::Task<int> Log::wait_for_merge(io::Loop& loop) {
  const uint64_t began_ms = loop.now_ms();
  uint64_t tell_at_ms = began_ms + kTellMs;
  for (;;) {
    const bool is_full = core_.index->unmerged_bytes() / kMostTables >= core_.options.table_bytes;
    if (!is_full && core_.log_bytes.load(std::memory_order_relaxed) / kMostLogs <= core_.options.checkpoint_bytes) break;
    if (core_.poisoned.load(std::memory_order_acquire)) co_return EIO;
    on_growth_();
    const int failed = core_.checkpoint_error.load(std::memory_order_relaxed);
    if (failed != 0 && !is_full) break;
    if (failed != 0) co_return failed == ENOSPC ? ENOSPC : EIO;
    if (loop.now_ms() >= tell_at_ms) {
      log_warning("{}: changes wait for a checkpoint for {} s: the disk below is slow, or hangs", core_.options.name,
                  (loop.now_ms() - began_ms) / 1000);
      tell_at_ms = loop.now_ms() + kTellMs;
    }
    co_await io::SleepUntil(loop, loop.now_ms() + kMergePollMs);
  }
  co_return 0;
}

// Of the request, what comes next: up to kMaxAtomicBytes of a WRITE, or kMaxHollowBlocks of a TRIM or WRITE_ZEROES, counted from
// its start.
coro::Task<Log::Placed> Log::place_part(io::Loop& loop, Request& request) {
  const auto& device = static_cast<const VolumeDevice&>(*request.held.owner);
  Part part;
  part.request = &request;
  part.on = &device.head();
  if (device.is_beyond(request)) {
    request.error = EINVAL;
    co_return Placed::kRefused;
  }
  part.offset = request.offset + request.held.progress;
  part.end = request.offset + request.length;
  part.end = std::min(part.end, request.command == Command::kWrite ? part.offset + kMaxAtomicBytes
                                                                    : (part.offset / kBlockBytes + kMaxHollowBlocks) * kBlockBytes);
  part.first = part.offset / kBlockBytes;
  part.last = (part.end + kBlockBytes - 1) / kBlockBytes;
  const bool cuts_first = part.offset % kBlockBytes != 0;
  const bool cuts_last = part.end % kBlockBytes != 0;
  // The rest of such a block is what all earlier records make of it: they have to be in the index.
  if ((cuts_first && in_group(part.on->branch, part.first)) || (cuts_last && in_group(part.on->branch, part.last - 1))) co_return Placed::kGroupIsFull;
  const size_t edges_before = group_.edge_blocks, stored_before = group_.stored_bytes;
  request.error = co_await wait_for_merge(loop);
  if (request.error == 0) request.error = co_await read_edges(loop, part);
  if (request.error == 0) {
    plan(part);
    sizes_.clear();
    for (const Planned& planned : plan_) sizes_.push_back(planned.stored_bytes(core_.sums.encrypted()));
    const Purpose purpose = request.command == Command::kWrite ? Purpose::kWrites : Purpose::kNames;
    request.error = co_await make_room(loop, sizes_, purpose);
    if (request.error == ENOSPC) on_growth_();
  }
  if (request.error != 0) {
    group_.edge_blocks = edges_before;
    group_.stored_bytes = stored_before;
    // What is in front of it in the group may make garbage as soon as it counts.
    bool tries_again = request.error == ENOSPC && !group_.empty();
    const bool is_full = request.error == ENOSPC && request.command == Command::kWrite && !tries_again;
    if (is_full) tries_again = co_await give_up_history(loop);
    if (!tries_again) co_return Placed::kRefused;
    request.error = 0;
    co_return Placed::kGroupIsFull;
  }
  full_since_ = 0;
  for (size_t i = 0; i < plan_.size(); ++i) place(part, plan_[i], i == 0, i + 1 == plan_.size());
  request.held.progress += part.end - part.offset;
  co_return Placed::kYes;
}

bool Log::in_group(uint32_t branch, uint64_t block) const {
  return std::any_of(group_.entries.begin(), group_.entries.end(), [=](const Entry& entry) {
    return entry.branch == branch && block >= entry.block && block < end_of(entry);
  });
}

// The first and the last block, as they will be, where the part has not all of them.
coro::Task<int> Log::read_edges(io::Loop& loop, Part& part) {
  const Request& request = *part.request;
  for (int i = 0; i < 2; ++i) {
    const uint64_t block = i == 0 ? part.first : part.last - 1;
    const uint64_t from = std::max(block * kBlockBytes, part.offset);
    const uint64_t until = std::min((block + 1) * kBlockBytes, part.end);
    if (until - from == kBlockBytes || (block == part.first && part.head != nullptr)) continue;
    std::byte* const edge = group_.edges.get() + group_.edge_blocks++ * kBlockBytes;
    (block == part.first ? part.head : part.tail) = edge;
    const int error = co_await read_range(loop, core_, part.on->view, block * kBlockBytes, {edge, kBlockBytes});
    if (error != 0) co_return error;
    std::byte* const changed = edge + (from - block * kBlockBytes);
    if (request.command == Command::kWrite) {
      std::memcpy(changed, request.data + (from - request.offset), until - from);
    } else {
      std::memset(changed, 0, until - from);
    }
  }
  co_return 0;
}

void Log::plan(const Part& part) {
  plan_.clear();
  const Request& request = *part.request;
  if (request.command == Command::kWrite) return plan_blocks(part, part.first, part.last);
  const RecordType type =
      request.command == Command::kWriteZeroes && request.keep_allocated ? RecordType::kZero : RecordType::kTrim;
  // What is all zeroes now goes with the rest.
  uint64_t from = part.first, until = part.last;
  if (part.head != nullptr && !is_zero(part.block(from))) ++from;
  if (until > from && part.tail != nullptr && !is_zero(part.block(until - 1))) --until;
  plan_blocks(part, part.first, from);
  plan_hollow(type, from, until);
  plan_blocks(part, std::max(from, until), part.last);
}

// Blocks of zeroes have no payload.
void Log::plan_blocks(const Part& part, uint64_t from, uint64_t until) {
  while (from < until) {
    const bool zero = is_zero(part.block(from));
    uint64_t end = from + 1;
    while (end < until && (zero || end - from < most_blocks_) && is_zero(part.block(end)) == zero) ++end;
    plan_.push_back({zero ? RecordType::kZero : RecordType::kData, static_cast<uint32_t>(end - from), from});
    if (!zero) compress(part, plan_.back());
    from = end;
  }
}

// Into the group's memory, if that saves an eighth.
void Log::compress(const Part& part, Planned& planned) {
  const Compression how = core_.compression.load(std::memory_order_relaxed);
  if (how == Compression::kNone) return;
  if (group_.stored == nullptr) group_.stored = std::make_unique<std::byte[]>(kMostStored);
  std::span<const std::byte> blocks(part.block(planned.block).data(), size_t{planned.blocks} * kBlockBytes);
  for (uint32_t i = 1; i < planned.blocks; ++i) {
    if (part.block(planned.block + i).data() == blocks.data() + size_t{i} * kBlockBytes) continue;
    gathered_.resize(blocks.size());
    for (uint32_t k = 0; k < planned.blocks; ++k)
      std::memcpy(gathered_.data() + size_t{k} * kBlockBytes, part.block(planned.block + k).data(), kBlockBytes);
    blocks = gathered_;
    break;
  }
  const std::span room(group_.stored.get() + group_.stored_bytes, most_compressed_bytes(planned.blocks));
  const size_t got = compressor_.compress(how, blocks, room);
  if (got == 0) return;
  planned.stored = room.data();
  planned.stored_payload = static_cast<uint32_t>(got);
  planned.flags = flag_of(how);
  const uint64_t whole = round_to_unit(got);
  std::fill(room.begin() + static_cast<ptrdiff_t>(got), room.begin() + static_cast<ptrdiff_t>(whole), std::byte{0});
  group_.stored_bytes += whole;
}

void Log::plan_hollow(RecordType type, uint64_t from, uint64_t until) {
  while (from < until) {
    const uint64_t blocks = std::min(until - from, kMaxHollowBlocks);
    plan_.push_back({type, static_cast<uint32_t>(blocks), from});
    from += blocks;
  }
}

// Segments for records of these sizes, beside what is left of this one.
coro::Task<int> Log::make_room(io::Loop& loop, std::span<const uint64_t> sizes, Purpose purpose) {
  const uint64_t most = core_.segments.bytes() - kSegmentTail;
  uint64_t offset = at_.offset, needed = 0;
  for (const uint64_t size : sizes) {
    if (offset + size > most) {
      offset = 0;
      ++needed;
    }
    if (size > most) co_return EFBIG;
    offset += size;
  }
  if (needed == 0) co_return 0;
  const int error = co_await take_segments(loop, core_, needed, SegmentState::kLog, purpose, next_segments_);
  co_return error;
}

bool Log::fits(uint64_t stored_bytes) const {
  return at_.offset + stored_bytes <= core_.segments.bytes() - kSegmentTail;
}

void Log::next_segment(bool continued) {
  RecordHeader header;
  header.type = RecordType::kNext;
  header.flags = continued ? kFlagContinued : 0;
  header.block = next_segments_.front();
  append(header, {});
  at_.segment = header.block;
  at_.offset = 0;
  next_segments_.erase(next_segments_.begin());
}

void Log::place(const Part& part, const Planned& planned, bool first, bool last) {
  if (!fits(planned.stored_bytes(core_.sums.encrypted()))) next_segment(!first);
  RecordHeader header;
  header.type = planned.type;
  header.flags = static_cast<uint8_t>(planned.flags | (last ? 0 : kFlagContinued) | (core_.sums.encrypted() ? kFlagEncrypted : 0));
  header.lsn = at_.next_lsn;
  header.incarnation = at_.incarnation;
  header.branch = part.on->branch;
  header.blocks = planned.blocks;
  header.block = planned.block;
  Entry entry{.branch = part.on->branch, .blocks = planned.blocks, .block = planned.block, .lsn = at_.next_lsn, .place = 0};
  std::array<iovec, kMaxRecordBlocks> payload;
  size_t parts = 0;
  if (planned.type == RecordType::kData) {
    parts = gather(part, planned, header, payload);
    entry.place = Place::make(core_.segments.offset_of(at_.segment) + at_.offset, 0, planned.blocks, header.stored_units());
  } else {
    entry.place = planned.type == RecordType::kZero ? Place::kZero : Place::kHole;
  }
  append(header, std::span(payload).first(parts));
  group_.entries.push_back(entry);
}

// Of an encrypted volume: the same, in the group's memory. From here on the record is written, or nothing ever is under this
// incarnation: what has been sealed is sealed once.
size_t Log::seal(const Part& part, const Planned& planned, RecordHeader& header, std::span<iovec> payload) {
  if (planned.stored != nullptr) {
    header.payload_bytes = planned.stored_payload;
    const std::span bytes(planned.stored, planned.stored_payload);
    seal_record(*sealing_, header, bytes);
    header.sums[0] = core_.sums.block(header.branch, header.block, header.lsn, bytes);
    payload[0] = volume::part(std::span(planned.stored, round_to_unit(planned.stored_payload)));
    return 1;
  }
  header.payload_bytes = planned.blocks * kBlockBytes;
  if (group_.stored == nullptr) group_.stored = std::make_unique<std::byte[]>(kMostStored);
  std::byte* const sealed = group_.stored.get() + group_.stored_bytes;
  group_.stored_bytes += header.payload_bytes;
  for (uint32_t i = 0; i < planned.blocks; ++i) {
    const std::span block(sealed + size_t{i} * kBlockBytes, kBlockBytes);
    seal_block(*sealing_, header, i, part.block(planned.block + i), block);
    header.sums[i] = core_.sums.block(header.branch, planned.block + i, header.lsn, block);
  }
  payload[0] = volume::part(std::span(sealed, header.payload_bytes));
  return 1;
}

// The payload of a data record, and its sums.
size_t Log::gather(const Part& part, const Planned& planned, RecordHeader& header, std::span<iovec> payload) {
  if (core_.sums.encrypted()) return seal(part, planned, header, payload);
  if (planned.stored != nullptr) {
    header.payload_bytes = planned.stored_payload;
    header.sums[0] = core_.sums.block(header.branch, header.block, at_.next_lsn, {planned.stored, planned.stored_payload});
    payload[0] = volume::part(std::span(planned.stored, round_to_unit(planned.stored_payload)));
    return 1;
  }
  header.payload_bytes = planned.blocks * kBlockBytes;
  size_t parts = 0;
  for (uint32_t i = 0; i < planned.blocks; ++i) {
    const auto block = part.block(planned.block + i);
    header.sums[i] = core_.sums.block(header.branch, planned.block + i, at_.next_lsn, block);
    iovec* const before = parts > 0 ? &payload[parts - 1] : nullptr;
    if (before != nullptr && static_cast<std::byte*>(before->iov_base) + before->iov_len == block.data()) {
      before->iov_len += kBlockBytes;
    } else {
      payload[parts++] = volume::part(block);
    }
  }
  return parts;
}

// At the log's end. The payload's length is a multiple of a unit.
void Log::append(RecordHeader& header, std::span<const iovec> payload) {
  header.lsn = at_.next_lsn;
  header.durable_lsn = group_.durable_lsn;
  header.time_ns = at_.time_ns = group_.time_ns;
  header.incarnation = at_.incarnation;
  header.chain = at_.chain;
  if (core_.sums.encrypted() && header.type != RecordType::kData && header.type != RecordType::kPoint) {
    header.flags |= kFlagEncrypted;
    seal_record(*sealing_, header, {});
  }
  ++at_.next_lsn;
  NETBLK_CHECK(group_.records < kMostRecords, "a group has more records than it has room for");
  const auto bytes = std::span(group_.headers.get() + group_.records++ * kMaxHeaderBytes, header.header_bytes());
  encode(header, core_.sums, bytes);
  at_.chain = header.crc;
  const uint64_t offset = core_.segments.offset_of(at_.segment) + at_.offset;
  if (group_.stretches.empty() || group_.end != offset) group_.stretches.push_back({offset, group_.parts.size()});
  group_.parts.push_back(part(bytes));
  group_.parts.insert(group_.parts.end(), payload.begin(), payload.end());
  const uint64_t stored = header.stored_bytes();
  at_.offset += stored;
  group_.end = offset + stored;
  group_.bytes += stored;
  if (group_.touched.empty() || group_.touched.back().segment != at_.segment)
    group_.touched.push_back({at_.segment, header.lsn});
  group_.touched.back().lsn = header.lsn;
}

coro::Task<void> Log::place_change(io::Loop& loop, Waiter& waiter) {
  if (core_.poisoned.load(std::memory_order_acquire)) {
    waiter.error = make_error(EIO, "the volume takes no more changes: a write or a sync has failed");
    co_return;
  }
  std::vector<std::byte> payload = encode(*waiter.change);
  RecordHeader header;
  header.type = RecordType::kPoint;
  header.branch = waiter.branch;
  header.payload_bytes = static_cast<uint32_t>(payload.size());
  if (core_.sums.encrypted()) header.flags = kFlagEncrypted;
  const uint64_t size = header.stored_bytes();
  const int error = co_await make_room(loop, {&size, 1}, Purpose::kNames);
  if (error != 0) {
    waiter.error = make_error(error, "there is no room for it in the log: {}", errno_text(error));
    co_return;
  }
  if (!fits(size)) next_segment(false);
  Status applied = apply_change(*waiter.change, {.branch = waiter.branch, .lsn = at_.next_lsn});
  if (!applied) {
    waiter.error = std::move(applied).error();
    co_return;
  }
  header.lsn = at_.next_lsn;
  header.time_ns = group_.time_ns;
  header.incarnation = at_.incarnation;
  if (core_.sums.encrypted()) seal_record(*sealing_, header, payload);
  header.sums[0] = core_.sums.block(header.branch, header.block, header.lsn, payload);
  payload.resize(header.stored_bytes() - header.header_bytes());
  group_.payloads.push_back(std::move(payload));
  const iovec whole = part(std::span<const std::byte>(group_.payloads.back()));
  waiter.lsn = at_.next_lsn;
  append(header, {&whole, 1});
}

// The older half of it, by a record of this group; the next one tries again. False: there is none, or it is to stay.
coro::Task<bool> Log::give_up_history(io::Loop& loop) {
  Change what{.kind = ChangeKind::kHistory};
  {
    const std::lock_guard lock(core_.mutex);
    if (core_.history_from == kForever || core_.settings.keep_history) co_return false;
    const std::optional<uint64_t> half = core_.history.half_from(core_.history_from);
    // Behind where space ran out there are only the records of giving up.
    if (full_since_ == 0) full_since_ = at_.next_lsn;
    if (!half || *half >= full_since_) co_return false;
    what.lsn = *half;
  }
  Waiter waiter(loop);
  waiter.change = &what;
  waiter.branch = kHeadBranch;
  co_await place_change(loop, waiter);
  if (!waiter.error) log_info("{}: space runs out: its history goes back to lsn:{} from now on", core_.options.name, what.lsn);
  co_return !waiter.error;
}

uint64_t Log::owners_bytes() {
  if (group_.owners) return group_.owners->size();
  const std::lock_guard lock(core_.mutex);
  return core_.owners.size();
}

Status Log::apply_change(const Change& change, Point at) {
  Points points = group_.points ? *group_.points : core_.index->points();
  const uint64_t most = most_names_bytes(core_.segments.bytes());
  if (change.kind == ChangeKind::kOwners) {
    std::vector<std::byte> owners = group_.owners ? *group_.owners : std::vector<std::byte>();
    if (!group_.owners) {
      const std::lock_guard lock(core_.mutex);
      owners = core_.owners;
    }
    owners = with_owners(owners, change.owners, core_.uuid, points);
    if (points.stored_bytes() + owners.size() > most) return make_error(ENOSPC, "there is no room for it beside the snapshots");
    group_.owners = std::move(owners);
    return Ok{};
  }
  Status applied = points.apply(change, at, group_.time_ns);
  if (!applied) return applied;
  if (change.kind != ChangeKind::kDeletion && change.kind != ChangeKind::kHistory) {
    Status fit = points.fit(owners_bytes(), most);
    if (!fit) return fit;
  }
  group_.points = std::move(points);
  if (turns_head(change)) ++group_.rewinds;
  return Ok{};
}

coro::Task<int> Log::write_group(io::Loop& loop) {
  // Who stood still may have been taken for dead: what it writes would be in the log of who came after it.
  const bool may = co_await core_.may_write(loop);
  if (!may) co_return EIO;
  for (size_t i = 0; i < group_.stretches.size(); ++i) {
    const size_t first = group_.stretches[i].first_part;
    const size_t last = i + 1 < group_.stretches.size() ? group_.stretches[i + 1].first_part : group_.parts.size();
    const auto parts = std::span(group_.parts).subspan(first, last - first);
    const int error = co_await write_parts(loop, *core_.file, parts, group_.stretches[i].offset);
    if (error != 0) {
      core_.poison(fmt::format("a write of its log failed: {}", errno_text(error)));
      // Never ENOSPC, by which nothing has happened: of this group something may be there after the next opening.
      co_return EIO;
    }
  }
  co_return 0;
}

// The group has been written: it counts. True: a checkpoint is due.
bool Log::publish() {
  const std::lock_guard lock(core_.mutex);
  gone_.clear();
  core_.index->add(group_.entries, gone_);
  const bool hollows = std::any_of(group_.entries.begin(), group_.entries.end(), [this](const Entry& entry) {
    return !Place::is_data(entry.place) && uint64_t{entry.blocks} * kBlockBytes >= core_.segments.bytes();
  });
  // A point is later than the entries in front of it, and no entry of the group is behind it.
  if (group_.points) core_.set_points(std::move(*group_.points));
  core_.superblock_generation.fetch_add(group_.rewinds, std::memory_order_acq_rel);
  core_.rewinds += group_.rewinds;
  if (core_.history_from != kForever) core_.history.wrote(at_.time_ns, at_.next_lsn - 1, group_.bytes);
  if (group_.owners) core_.owners = std::move(*group_.owners);
  for (const Entry& entry : group_.entries)
    if (Place::is_data(entry.place)) core_.segments.add_live(Place::offset(entry.place), live_bytes_of(entry));
  for (const Entry& entry : gone_)
    if (Place::is_data(entry.place)) core_.segments.remove_live(Place::offset(entry.place), live_bytes_of(entry));
  for (const Group::Touched& touched : group_.touched) core_.segments.wrote(touched.segment, touched.lsn);
  core_.position = at_;
  const uint64_t before = core_.log_bytes / core_.segments.bytes();
  core_.log_bytes += group_.bytes;
  stirred_ = core_.log_bytes / core_.segments.bytes() != before || hollows;
  return core_.log_bytes >= core_.options.checkpoint_bytes || core_.index->table_bytes() >= core_.options.table_bytes;
}

io::Loop* Log::next_group_loop() {
  const std::lock_guard lock(core_.mutex);
  if (group_.empty() && group_.align) core_.align = true;
  if (!work_.empty()) return &io::loop_of(*work_.front().loop);
  if (!pending_.empty()) return &io::loop_of(*pending_.front().loop);
  if (!changes_.empty()) return &changes_.front().loop;
  group_scheduled_ = false;
  return nullptr;
}

// --- A sync ---------------------------------------------------------------------------------------------------------

struct Log::WaitForSync {
  Log& log;
  Waiter& waiter;
  bool await_ready() const { return false; }
  bool await_suspend(std::coroutine_handle<> handle) const {
    waiter.handle = handle;
    return log.begin_waiting(waiter);
  }
  void await_resume() const {}
};

coro::Task<int> Log::sync(io::Loop& loop) {
  Waiter waiter(loop);
  co_await WaitForSync{*this, waiter};
  co_return waiter.error ? waiter.error->code : 0;
}

coro::Task<int> Log::sync_file(io::Loop& loop) {
  Waiter waiter(loop);
  waiter.always = true;
  co_await WaitForSync{*this, waiter};
  co_return waiter.error ? waiter.error->code : 0;
}

// False: there is nothing to wait for.
bool Log::begin_waiting(Waiter& waiter) {
  {
    const std::lock_guard lock(core_.mutex);
    const bool poisoned = core_.poisoned.load(std::memory_order_acquire);
    if (poisoned || (!waiter.always && core_.durable_lsn + 1 == core_.position.next_lsn)) {
      if (poisoned) waiter.error = Error{EIO, {}};
      return false;
    }
    sync_waiters_.push(waiter);
    if (std::exchange(sync_scheduled_, true)) return true;
  }
  schedule(sync_kick_, waiter.loop, waiter.loop);
  return true;
}

void Log::flush(Request& request) { join_sync(io::loop_of(*request.loop), request); }

// On the thread of `here`, which need not be the request's: the sync runs on a loop that has one to wait for it.
void Log::join_sync(io::Loop& here, Request& request) {
  bool over = false;
  {
    const std::lock_guard lock(core_.mutex);
    const bool poisoned = core_.poisoned.load(std::memory_order_acquire);
    over = poisoned || core_.durable_lsn + 1 == core_.position.next_lsn;
    request.error = poisoned ? EIO : 0;
    if (!over) {
      sync_requests_.push(request);
      if (std::exchange(sync_scheduled_, true)) return;
    }
  }
  if (over) return answer(here, request);
  schedule(sync_kick_, here, io::loop_of(*request.loop));
}

RequestTask Log::run_sync(Log& log, io::Loop& loop) {
  Core& core = log.core_;
  Requests requests;
  Waiters waiters;
  uint64_t covered = 0;
  {
    const std::lock_guard lock(core.mutex);
    requests.append(log.sync_requests_);
    waiters.append(log.sync_waiters_);
    covered = core.position.next_lsn - 1;
    core.align = true;
  }
  int failed = EIO;  // why, for those who ask for more than whether
  if (!core.poisoned.load(std::memory_order_acquire)) {
    const int32_t result = co_await datasync(loop, *core.file);
    if (result < 0) {
      failed = -result;
      core.poison(fmt::format("fdatasync failed: {}; data may be lost", errno_text(failed)));
    }
  }
  // Behind the sync: one that opens the volume beside it reads the log as it was then, or is seen here.
  if (!core.poisoned.load(std::memory_order_acquire)) co_await core.look_for_another(loop);
  const bool poisoned = core.poisoned.load(std::memory_order_acquire);
  io::Loop* next = nullptr;
  {
    const std::lock_guard lock(core.mutex);
    if (!poisoned) core.durable_lsn = std::max(core.durable_lsn, covered);
    if (!log.sync_requests_.empty()) {
      next = &io::loop_of(*log.sync_requests_.front().loop);
    } else if (!log.sync_waiters_.empty()) {
      next = &log.sync_waiters_.front().loop;
    }
    log.sync_scheduled_ = next != nullptr;
  }
  if (next != nullptr) log.schedule(log.sync_kick_, loop, *next);
  while (!waiters.empty()) {
    Waiter& waiter = waiters.pop();
    if (poisoned) waiter.error = Error{waiter.always ? failed : EIO, {}};
    waiter.loop.post(waiter);
  }
  while (!requests.empty()) {
    Request& request = requests.pop();
    request.error = poisoned ? EIO : 0;
    answer(loop, request);
  }
}

}  // namespace netblk::store::volume
