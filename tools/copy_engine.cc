// SPDX-License-Identifier: GPL-2.0-only
#include "copy_engine.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "base/check.h"
#include "base/parse.h"
#include "block_await.h"

namespace netblk::tools {
namespace {

using block::Command;

constexpr unsigned kWorkers = 32;
constexpr uint64_t kPieceBytes = 256u << 10;
// One request that zeroes: long enough to be few, short enough to end soon where the storage must write them.
constexpr uint64_t kZeroBytes = 32u << 20;
// What a hole begins and ends on, and the shortest run of zeroes in data that is made one.
constexpr uint64_t kGranuleBytes = 4096;
constexpr uint64_t kTickMs = 100;
// One question about holes: how far (who can answer for less does), and how many extents the answer may have.
constexpr uint64_t kLookBytes = uint64_t{64} << 30;
// And when that fails: a server that counts what it found may have to look at less.
constexpr uint64_t kShortLookBytes = uint64_t{1} << 30;
constexpr uint32_t kLookExtents = 4096;
static_assert(kPieceBytes % kGranuleBytes == 0 && kZeroBytes % kPieceBytes == 0 && kLookBytes % kPieceBytes == 0 &&
              kShortLookBytes % kPieceBytes == 0);

alignas(4096) constexpr std::array<std::byte, 64u << 10> kZeroes{};

bool is_zero(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const size_t part = std::min(bytes.size(), kZeroes.size());
    if (std::memcmp(bytes.data(), kZeroes.data(), part) != 0) return false;
    bytes = bytes.subspan(part);
  }
  return true;
}

uint64_t rounded_down(uint64_t value, uint64_t unit) { return value / unit * unit; }
uint64_t rounded_up(uint64_t value, uint64_t unit) { return rounded_down(value + unit - 1, unit); }

struct Freed {
  void operator()(std::byte* memory) const { ::operator delete[](memory, std::align_val_t{kGranuleBytes}); }
};
using Buffer = std::unique_ptr<std::byte[], Freed>;

Buffer make_buffer() {
  return Buffer(static_cast<std::byte*>(::operator new[](kPieceBytes, std::align_val_t{kGranuleBytes})));
}

}  // namespace

coro::Task<void> Copy::Turns::wait_for(uint64_t number) {
  if (next_ == number) co_return;
  coro::Event mine;
  waiting_[number] = &mine;
  co_await mine.wait();
}

void Copy::Turns::done() {
  const auto waiter = waiting_.find(++next_);
  if (waiter == waiting_.end()) return;
  waiter->second->set();
  waiting_.erase(waiter);
}

Copy::Copy(io::Loop& loop, CopyPlan plan)
    : loop_(loop),
      plan_(std::move(plan)),
      granule_(std::max<uint64_t>(kGranuleBytes, plan_.target.block_bytes)),
      cursor_(plan_.start_at),
      look_bytes_(kLookBytes),
      copied_bytes_(plan_.start_at),
      checkpointed_(plan_.start_at),
      tick_(*this) {
  NETBLK_CHECK(kPieceBytes % granule_ == 0 && cursor_ % granule_ == 0, "a copy begins inside a block");
  NETBLK_CHECK(plan_.source.size_bytes || plan_.source.pipe != nullptr, "only a pipe's size may be unknown");
}

coro::Task<Status> Copy::run() {
  next_checkpoint_ms_ = loop_.now_ms() + plan_.checkpoint_ms;
  tick();
  for (unsigned i = 0; i < kWorkers; ++i) scope_.spawn(work());
  co_await scope_.join();
  ended_ = true;
  tick_.cancel();
  if (error_ && error_->code != EINTR) co_return std::move(*error_);
  Status flushed = co_await flush();
  if (!flushed) co_return flushed;
  // What an interrupted copy has done counts up to its first gap.
  if (plan_.on_checkpoint) plan_.on_checkpoint(rounded_down(low_mark(), granule_));
  if (error_) co_return std::move(*error_);
  co_return Ok{};
}

void Copy::tick() {
  if (ended_) return;
  const bool stop = plan_.on_tick && plan_.on_tick(copied_bytes_);
  if (stop && !error_) fail(make_error(EINTR, "interrupted"));
  const uint64_t now = loop_.now_ms();
  if (plan_.on_checkpoint && !error_ && !checkpointing_ && now >= next_checkpoint_ms_ && low_mark() > checkpointed_)
    scope_.spawn(checkpoint());
  tick_.arm(now + kTickMs);
}

// Whatever was done before the flush began is covered by it.
coro::Task<void> Copy::checkpoint() {
  checkpointing_ = true;
  const uint64_t mark = rounded_down(low_mark(), granule_);
  const Status flushed = co_await flush();
  checkpointing_ = false;
  next_checkpoint_ms_ = loop_.now_ms() + plan_.checkpoint_ms;
  if (!flushed) {
    fail(flushed.error());
  } else if (mark > checkpointed_) {
    checkpointed_ = mark;
    plan_.on_checkpoint(mark);
  }
}

// The first error is the one that is told; it ends every worker.
bool Copy::fail(Error error) {
  if (!error_) {
    error_ = std::move(error);
    if (plan_.source.pipe != nullptr) plan_.source.pipe->cancel();
  }
  return false;
}

uint64_t Copy::padded(uint64_t end) const { return rounded_up(end, plan_.target.block_bytes); }

bool Copy::must_look() {
  const CopySource& source = plan_.source;
  while (!seen_.empty() && seen_.front().end <= cursor_) seen_.pop_front();
  return !is_blind_ && !error_ && source.device != nullptr && !source.extent_at && seen_.empty() && cursor_ < *source.size_bytes &&
         (!extent_ || cursor_ >= extent_->end);
}

coro::Task<void> Copy::look_ahead() {
  while (must_look()) {
    if (looking_) {
      coro::Event done;
      lookers_.push_back(&done);
      co_await done.wait();
      continue;
    }
    looking_ = true;
    const uint64_t size = *plan_.source.size_bytes;
    const uint64_t length = std::min(size - cursor_, look_bytes_);
    std::vector<block::Extent> extents;
    const uint64_t from = cursor_;
    const int error = co_await AskedStatus(*plan_.source.device, loop_, from, length, extents, kLookExtents);
    // Who cannot tell is read.
    if (error != 0 && length > kShortLookBytes) look_bytes_ = kShortLookBytes;
    else is_blind_ = error != 0;
    uint64_t end = from;
    for (const block::Extent& extent : extents) {
      end += extent.length;
      if (error == 0) seen_.push_back({.hole = extent.zero, .end = end == size ? rounded_up(end, granule_) : end});
    }
    looking_ = false;
    for (coro::Event* const waiter : std::exchange(lookers_, {})) waiter->set();
  }
}

void Copy::next_extent() {
  if (plan_.source.extent_at) {
    extent_ = plan_.source.extent_at(cursor_);
  } else if (!seen_.empty()) {
    extent_ = seen_.front();
  } else {
    extent_.reset();
    return;
  }
  // A granule that has both is data.
  extent_->end = extent_->hole ? rounded_down(extent_->end, granule_) : rounded_up(extent_->end, granule_);
  if (extent_->end <= cursor_) extent_ = Extent{.hole = false, .end = cursor_ + granule_};
}

Copy::Piece Copy::take() {
  Piece piece{.number = next_number_, .offset = cursor_};
  const uint64_t size = plan_.source.size_bytes.value_or(UINT64_MAX);
  if (error_ || cursor_ >= std::min(size, pipe_end_)) return piece;
  if (!extent_ || cursor_ >= extent_->end) next_extent();
  piece.hole = extent_ && extent_->hole;
  uint64_t most = piece.hole && plan_.target.device != nullptr ? kZeroBytes : kPieceBytes;
  // Holes that nobody must be told of are one piece.
  if (piece.hole && plan_.target.fresh) most = extent_->end - cursor_;
  uint64_t end = std::min(cursor_ + most, size);
  if (extent_) end = std::min(end, extent_->end);
  piece.length = end - cursor_;
  cursor_ = end;
  ++next_number_;
  in_flight_.insert(piece.offset);
  return piece;
}

coro::Task<void> Copy::work() {
  Buffer memory;
  for (;;) {
    co_await look_ahead();
    Piece piece = take();
    if (piece.length == 0) co_return;
    if (!memory && !piece.hole) memory = make_buffer();
    const std::span<std::byte> buffer(memory.get(), memory ? kPieceBytes : 0);
    bool done = true;
    if (!piece.hole) done = co_await fetch(piece, buffer);
    // Everyone passes through the turns, after a failure too: those behind wait for it.
    if (plan_.target.pipe != nullptr) co_await writing_.wait_for(piece.number);
    if (done && error_) done = false;
    if (done && piece.length > 0) done = co_await store(piece, buffer);
    if (plan_.target.pipe != nullptr) writing_.done();
    // What failed stays in flight: nothing above it counts as done.
    if (!done) co_return;
    in_flight_.erase(piece.offset);
    copied_bytes_ += piece.length;
  }
}

// Fills the buffer with the piece. At a pipe's end the piece becomes shorter, or empty.
coro::Task<bool> Copy::fetch(Piece& piece, std::span<std::byte> buffer) {
  if (plan_.source.pipe == nullptr) {
    const int error = co_await Asked(*plan_.source.device, loop_, Command::kRead, piece.offset, piece.length, buffer.data());
    if (error != 0)
      co_return fail(make_error(error, "cannot read {} at byte {}: {}", plan_.source.name, piece.offset, errno_text(error)));
    co_return true;
  }
  co_await reading_.wait_for(piece.number);
  int64_t got = 0;
  if (piece.offset < pipe_end_ && !error_) got = co_await plan_.source.pipe->read(buffer.first(piece.length));
  reading_.done();
  if (got < 0)
    co_return fail(make_error(static_cast<int>(-got), "cannot read {}: {}", plan_.source.name, errno_text(static_cast<int>(-got))));
  if (static_cast<uint64_t>(got) < piece.length) {
    pipe_end_ = std::min(pipe_end_, piece.offset + static_cast<uint64_t>(got));
    piece.length = static_cast<uint64_t>(got);
  }
  co_return true;
}

coro::Task<bool> Copy::store(const Piece& piece, std::span<std::byte> buffer) {
  if (plan_.target.pipe != nullptr) {
    for (uint64_t at = 0; at < piece.length;) {
      const size_t part = piece.hole ? std::min<uint64_t>(piece.length - at, kZeroes.size()) : piece.length;
      const std::span<const std::byte> bytes = piece.hole ? std::span<const std::byte>(kZeroes).first(part)
                                                          : std::span<const std::byte>(buffer).first(part);
      const int64_t error = co_await plan_.target.pipe->write(bytes);
      if (error != 0)
        co_return fail(make_error(static_cast<int>(-error), "cannot write {}: {}", plan_.target.name,
                                  errno_text(static_cast<int>(-error))));
      at += part;
    }
    co_return true;
  }
  if (padded(piece.end()) > plan_.target.device->size_bytes())
    co_return fail(make_error(ENOSPC, "{} is longer than {}, which has {} bytes: its first part was copied",
                              plan_.source.name, plan_.target.name, plan_.target.device->size_bytes()));
  if (piece.hole) {
    const bool done = co_await put_zeroes(piece.offset, padded(piece.end()) - piece.offset);
    co_return done;
  }
  const size_t whole = padded(piece.end()) - piece.offset;
  std::fill(buffer.begin() + static_cast<ptrdiff_t>(piece.length), buffer.begin() + static_cast<ptrdiff_t>(whole), std::byte{0});
  const bool done = co_await store_runs(piece, buffer.first(whole));
  co_return done;
}

// Runs of zeroes in data become holes, as in a source that knows its own.
coro::Task<bool> Copy::store_runs(const Piece& piece, std::span<std::byte> bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const auto zero_at = [&](size_t from) { return is_zero(bytes.subspan(from, std::min(granule_, bytes.size() - from))); };
    const bool zero = zero_at(at);
    size_t end = at;
    while (end < bytes.size() && zero_at(end) == zero) end = std::min(end + granule_, bytes.size());
    bool done = false;
    if (zero) {
      done = co_await put_zeroes(piece.offset + at, end - at);
    } else {
      done = co_await put(piece.offset + at, bytes.subspan(at, end - at));
    }
    if (!done) co_return false;
    at = end;
  }
  co_return true;
}

coro::Task<bool> Copy::put(uint64_t offset, std::span<std::byte> bytes) {
  const int error = co_await Asked(*plan_.target.device, loop_, Command::kWrite, offset, bytes.size(), bytes.data());
  if (error != 0) fail(make_error(error, "cannot write {} at byte {}: {}", plan_.target.name, offset, errno_text(error)));
  co_return error == 0;
}

coro::Task<bool> Copy::put_zeroes(uint64_t offset, uint64_t length) {
  if (plan_.target.fresh) {
    hole_bytes_ += length;
    co_return true;
  }
  const int error = co_await Asked(*plan_.target.device, loop_, Command::kWriteZeroes, offset, length, nullptr);
  if (error == 0) {
    hole_bytes_ += length;
    co_return true;
  }
  if (error != EOPNOTSUPP)
    co_return fail(make_error(error, "cannot zero {} at byte {}: {}", plan_.target.name, offset, errno_text(error)));
  for (uint64_t at = 0; at < length;) {
    const size_t part = std::min<uint64_t>(length - at, kZeroes.size());
    // A write does not change its data.
    const std::span<std::byte> zeroes(const_cast<std::byte*>(kZeroes.data()), part);
    const bool done = co_await put(offset + at, zeroes);
    if (!done) co_return false;
    at += part;
  }
  co_return true;
}

coro::Task<Status> Copy::flush() {
  if (plan_.target.device == nullptr) co_return Ok{};
  const int error = co_await Asked(*plan_.target.device, loop_, Command::kFlush, 0, 0, nullptr);
  if (error != 0)
    co_return make_error(error, "what was written to {} is not safe: its flush failed: {}", plan_.target.name, errno_text(error));
  co_return Ok{};
}

}  // namespace netblk::tools
