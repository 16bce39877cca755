// SPDX-License-Identifier: GPL-2.0-only
#include "sim/model.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "base/check.h"

namespace netblk::sim {

using block::Command;

namespace {

constexpr uint64_t kTag = 0x6e65'7462'6c6b'2f32;
constexpr uint64_t kSoftBytes = 64;  // of a compressible block that are not all the same

struct Tag {
  uint64_t tag, id, number, soft;
};

uint64_t scrambled(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  return value ^ (value >> 27);
}

}  // namespace

void fill_block(std::span<std::byte> block, WriteId id, uint64_t number, bool soft) {
  const Tag tag{kTag, id, number, soft};
  std::memcpy(block.data(), &tag, sizeof tag);
  uint64_t state = scrambled(id * 0x9e3779b97f4a7c15 + number);
  for (size_t at = sizeof tag; at < block.size(); at += sizeof state) {
    if (!soft || at < kSoftBytes) state = scrambled(state + 0x9e3779b97f4a7c15);
    std::memcpy(block.data() + at, &state, sizeof state);
  }
}

Model::Model(World& world, Disk& disk) : world_(world), disk_(disk), blocks_(disk.size_bytes() / kBlock) {
  writers_.emplace_back();
  Change made;
  made.command = Command::kWriteZeroes;
  made.ended = 0;
  made.acknowledged = made.durable = true;
  changes_.push_back(made);
  for (Block& block : blocks_) block.changes.push_back(0);
}

uint64_t Model::new_writer() {
  writers_.emplace_back();
  return writers_.size() - 1;
}

void Model::superseded(uint64_t writer) {
  if (std::exchange(writers_[writer].superseded, true)) return;
  world_.note("superseded", writer);
  // What it had under way has ended for the store, whether its user hears of that now, later or never.
  for (Change& each : changes_)
    if (each.writer == writer && each.ended == UINT64_MAX) each.ended = world_.next_tick();
}

void Model::told_lost(uint64_t writer) {
  for (Change& each : changes_)
    if (each.writer == writer && each.exposed) each.surrendered = true;
}

// --- Requests -------------------------------------------------------------------------------------------------------

bool Model::can_issue(Command command, uint64_t offset, uint64_t length) const {
  return command == Command::kWrite || !ranges_.contains({command, offset, length});
}

WriteId Model::issue(uint64_t writer, Command command, uint64_t offset, uint64_t length, bool fua, bool soft) {
  Change fresh;
  fresh.id = changes_.size();
  fresh.command = command;
  fresh.writer = writer;
  fresh.offset = offset;
  fresh.length = length;
  fresh.fua = fua;
  fresh.soft = soft;
  fresh.issued = world_.next_tick();
  if (command != Command::kWrite) ranges_.emplace(std::tuple(command, offset, length), fresh.id);
  for (uint64_t number = offset / kBlock; number < (offset + length) / kBlock; ++number) {
    forget_old(blocks_[number]);
    blocks_[number].changes.push_back(fresh.id);
  }
  changes_.push_back(fresh);
  return fresh.id;
}

void Model::end(WriteId id, bool acknowledged) {
  Change& ended = change(id);
  // A superseded writer's request ended when its session did.
  if (ended.ended != UINT64_MAX && !acknowledged) return;
  ended.ended = std::min(ended.ended, world_.next_tick());
  ended.acknowledged = acknowledged;
  ended.durable = acknowledged && ended.fua;
  // Acknowledged by a server that has lost its cache since: the answer was on its way.
  if (acknowledged && !ended.durable && ended.applied_epoch != epoch_) {
    ended.exposed = true;
    ended.surrendered = writers_[ended.writer].superseded;
  }
}

void Model::flushed(uint64_t writer, uint64_t issued) {
  for (Change& each : changes_) {
    if (!each.acknowledged || each.durable || each.ended > issued) continue;
    // What was exposed to a loss, and its writer was not told so: now that writer is promised that it is there. Whether
    // that is true, the next look at the store says. Another writer's flush promises nothing about it.
    if (each.exposed && (each.surrendered || each.writer != writer)) continue;
    each.durable = true;
    each.exposed = false;
  }
}

// --- What a block may hold ------------------------------------------------------------------------------------------

bool Model::rules_out(const Change& later, const Change& earlier, uint64_t before, uint64_t reader) const {
  // Of a change that its user was told has failed, the server may not have heard yet: it lands until the fence.
  if (!later.acknowledged || later.ended > before || std::max(earlier.ended, earlier.applied) >= later.issued) return false;
  if (!later.exposed) return true;
  return !later.surrendered && later.writer == reader && !writers_[later.writer].superseded;
}

void Model::forget_old(Block& block) {
  // What a durable change rules out is ruled out for good, to reads that begin after it.
  const uint64_t oldest_read = reads_.empty() ? UINT64_MAX : *reads_.begin();
  uint64_t since = 0;
  for (const WriteId id : block.changes) {
    const Change& later = changes_[id];
    if (later.durable && !later.exposed && later.ended < oldest_read) since = std::max(since, later.issued);
  }
  // But what landed after that, of a request that had failed, is there.
  std::erase_if(block.changes, [&](WriteId id) { return std::max(changes_[id].ended, changes_[id].applied) < since; });
}

WriteId Model::decode(std::span<const std::byte> block, uint64_t number, const char* when) {
  if (std::all_of(block.begin(), block.end(), [](std::byte byte) { return byte == std::byte{0}; })) return 0;
  Tag tag;
  std::memcpy(&tag, block.data(), sizeof tag);
  if (tag.tag != kTag || tag.id == 0 || tag.id >= changes_.size())
    world_.fail("content", "block {} holds bytes that nobody wrote ({})", number, when);
  std::array<std::byte, kBlock> expected;
  fill_block(expected, tag.id, number, changes_[tag.id].soft);
  if (std::memcmp(expected.data(), block.data(), kBlock) != 0)
    world_.fail("content", "block {} holds a damaged or misdirected write {} of block {} ({})", number, tag.id, tag.number, when);
  return tag.id;
}

std::string Model::history(uint64_t number) const {
  std::string text;
  for (const WriteId id : blocks_[number].changes) {
    const Change& each = changes_[id];
    text += fmt::format(" [{}{} of writer {} ticks {}-{}{}{}{}{}]", each.command == Command::kWrite ? "write " : "zeroes ", id,
                        each.writer, each.issued, each.ended == UINT64_MAX ? std::string("...") : std::to_string(each.ended),
                        each.acknowledged ? " acknowledged" : "", each.durable ? " durable" : "", each.exposed ? " exposed" : "",
                        each.surrendered ? " surrendered" : "");
  }
  return text;
}

void Model::check_block(uint64_t number, WriteId found, uint64_t reader, uint64_t issued, uint64_t issued_epoch,
                        const char* when) {
  world_.count(Count::kBlockChecks);
  Block& block = blocks_[number];
  bool allowed = false;
  bool since_seen = block.seen_epoch != epoch_ || issued_epoch != epoch_ || found == block.seen || issued < block.seen_until;
  for (const WriteId id : block.changes) {
    if (content_of(id) != found) continue;
    const Change& candidate = changes_[id];
    if (std::none_of(block.changes.begin(), block.changes.end(),
                     [&](WriteId other) { return rules_out(changes_[other], candidate, issued, reader); }))
      allowed = true;
    if (std::max(candidate.ended, candidate.applied) > block.seen_at) since_seen = true;
  }
  if (!allowed)
    world_.fail("acknowledged writes are readable", "block {} holds {} ({}, reader {}, issued at tick {}); it may hold one of:{}",
                number, found, when, reader, issued, history(number));
  if (!since_seen)
    world_.fail("nothing takes effect after its end",
                "block {} holds {} though a read issued at tick {} found {} ({}, reader {}, issued at tick {});{}", number, found,
                block.seen_at, block.seen, when, reader, issued, history(number));
  if (issued_epoch == epoch_ && (block.seen_epoch != epoch_ || issued >= block.seen_at)) {
    block.seen = found;
    block.seen_at = issued;
    block.seen_until = world_.next_tick();
    block.seen_epoch = epoch_;
  }
}

void Model::check_read(uint64_t writer, uint64_t issued, uint64_t issued_epoch, uint64_t offset,
                       std::span<const std::byte> data) {
  for (uint64_t at = 0; at < data.size(); at += kBlock) {
    const uint64_t number = (offset + at) / kBlock;
    check_block(number, decode(data.subspan(at, kBlock), number, "read"), writer, issued, issued_epoch, "read");
  }
}

void Model::check_store(const char* when) {
  if (replaced_) return;
  const uint64_t now = world_.next_tick();
  for (uint64_t number = 0; number < disk_.size_bytes() / kBlock; ++number)
    check_block(number, decode(disk_.block(number), number, when), 0, now, epoch_, when);
}

void Model::grown() {
  const size_t before = blocks_.size();
  blocks_.resize(disk_.size_bytes() / kBlock);
  for (size_t i = before; i < blocks_.size(); ++i) blocks_[i].changes.push_back(0);
}

void Model::replaced() {
  ++epoch_;
  replaced_ = true;
}

// --- The store ------------------------------------------------------------------------------------------------------

void Model::applied(Command command, uint64_t offset, uint64_t length, std::span<const std::byte> data, uint64_t ledger) {
  if (replaced_) world_.fail("a foreign store is refused", "{} bytes at {} are changed in it", length, offset);
  // A long request of the user reaches the store in pieces; each block is accounted by the piece that has it.
  WriteId id = 0;
  if (command == Command::kWrite) {
    id = decode(data.first(kBlock), offset / kBlock, "applied");
    if (id == 0) return;
  } else {
    const auto found = ranges_.find({command, offset, length});
    if (found == ranges_.end())
      world_.fail("content", "{} bytes at {} are trimmed or zeroed, and nobody asked for that", length, offset);
    id = found->second;
  }
  Change& it = change(id);
  const bool given_up = !it.acknowledged && !writers_[it.writer].superseded && writers_[it.writer].served <= it.ended;
  if (it.ended != UINT64_MAX && !given_up)
    world_.fail(writers_[it.writer].superseded ? "after a fence nothing of the old session reaches the store"
                                               : "nothing takes effect after its end",
                "change {} of writer {} ({} bytes at {}) is applied after its end ({})", id, it.writer, length, offset,
                it.acknowledged ? "acknowledged" : "failed");
  it.applied = world_.next_tick();
  if (it.ended != UINT64_MAX) {
    for (uint64_t number = offset / kBlock; number < (offset + length) / kBlock; ++number) {
      std::vector<WriteId>& known = blocks_[number].changes;
      if (std::find(known.begin(), known.end(), id) == known.end()) known.push_back(id);
    }
  }
  served(it.writer, it.issued);
  const bool first_piece = offset == it.offset;
  ledger = ledger << 16 | (writers_[it.writer].ledger & 0xffff);
  if (first_piece && it.applied_in == ledger)
    world_.fail("nothing is applied twice", "change {} of writer {} ({} bytes at {}) is applied twice in ledger {:x}", id,
                it.writer, length, offset, ledger);
  if (first_piece) it.applied_in = ledger;
  if (length == it.length) {
    it.applied_epoch = epoch_;
  } else {
    // Of the pieces of a long request, the one that was applied the longest ago says what is exposed.
    auto& pieces = pieces_[id];
    pieces[offset] = {length, epoch_};
    uint64_t covered = 0;
    it.applied_epoch = epoch_;
    for (const auto& [at, piece] : pieces) {
      covered += piece.first;
      it.applied_epoch = std::min(it.applied_epoch, piece.second);
    }
    if (covered < it.length) it.applied_epoch = UINT64_MAX;
  }
}

void Model::lost_cache() {
  ++epoch_;
  for (Change& each : changes_) {
    if (!each.acknowledged || each.durable) continue;
    each.exposed = true;
    if (writers_[each.writer].superseded) each.surrendered = true;
  }
}

}  // namespace netblk::sim
