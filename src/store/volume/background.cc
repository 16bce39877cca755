// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/background.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "store/volume/space.h"

namespace netblk::store::volume {
namespace {

// A checkpoint that failed reads and writes as much the next time.
constexpr uint64_t kRetryRecords = 4096;
constexpr uint64_t kRetryMs = 1000;

// How often who waits for space looks, and when it is told to the log.
constexpr uint64_t kRoomPollMs = 2;
constexpr uint64_t kTellMs = 10'000;

// While space is short: so much is collected at once, so that what a checkpoint costs is worth it.
constexpr uint64_t kVictimsAtOnce = 3;
// Checkpoints of a volume that rests: what passes is free behind the second one, and what they need themselves may always pass.
constexpr int kMostAtRest = 3;
constexpr int kMostForPassing = 2;
constexpr int kMostFruitless = 8;  // rounds in a row

}  // namespace

Background::Background(io::Loop& loop, Core& core, Checkpoint& checkpoint)
    : loop_(loop), core_(core), checkpoint_(checkpoint), collector_(loop, core), told_(*this), rest_(*this) {}

// --- Who asks -------------------------------------------------------------------------------------------------------

void Background::tell(unsigned asked) {
  if (asked_.fetch_or(asked, std::memory_order_acq_rel) == 0) loop_.post(told_);
}

void Background::take_asked() {
  const unsigned asked = asked_.exchange(0, std::memory_order_acq_rel);
  heard_.set();
  if ((asked & kCheckpoint) != 0) wants_checkpoint_ = true;
  stirred_ = true;
  rests_ = false;
  at_rest_ = 0;
  start();
}

void Background::start() {
  if (running_ || stopped_) return;
  running_ = true;
  scope_.spawn(run_all(*this));
}

void Background::look_whether_it_rests() {
  if (stopped_ || running_) return;
  uint64_t lsn = 0;
  {
    const std::lock_guard lock(core_.mutex);
    lsn = core_.position.next_lsn;
  }
  if (std::exchange(seen_lsn_, lsn) != lsn) return rest_.arm(loop_.now_ms() + core_.options.idle_ms);
  rests_ = true;
  start();
}

coro::Task<bool> Background::make_room(io::Loop& loop, uint64_t segments) {
  uint64_t awaited = 0;
  {
    const std::lock_guard lock(core_.mutex);
    if (full_lsn_ == core_.position.next_lsn && core_.freed == Points::Freed::kNothing) co_return false;
    room_wanted_ = std::max(room_wanted_, segments);
    awaited = attempts_begun_ + 1;
  }
  tell(kLook);
  uint64_t tell_at_ms = loop.now_ms() + kTellMs;
  for (;;) {
    if (core_.poisoned.load(std::memory_order_acquire) || stopped_) co_return false;
    {
      const std::lock_guard lock(core_.mutex);
      if (attempts_ended_ >= awaited) co_return attempt_made_room_;
    }
    if (loop.now_ms() >= tell_at_ms) {
      log_warning("{}: changes wait for space that is being freed", core_.options.name);
      tell_at_ms = loop.now_ms() + kTellMs;
    }
    co_await io::SleepUntil(loop, loop.now_ms() + kRoomPollMs);
  }
}

coro::Task<Status> Background::write_key_slots(KeySlots slots) {
  gives_way_ = true;
  while (running_) co_await io::SleepUntil(loop_, loop_.now_ms() + 1);
  gives_way_ = false;
  running_ = true;
  Status written = co_await checkpoint_.write_key_slots(loop_, slots);
  running_ = false;
  // One may have been asked for meanwhile.
  want();
  co_return written;
}

coro::Task<void> Background::stop() {
  stopped_ = true;
  rest_.cancel();
  // It may have fired, and be about to run.
  while (rest_.queued) co_await io::SleepUntil(loop_, loop_.now_ms());
  while (asked_.load(std::memory_order_acquire) != 0) co_await heard_.wait();
  co_await scope_.join();
  core_.pause_us_per_mib.store(0, std::memory_order_relaxed);
}

coro::Task<void> Background::return_all() { co_await give_back(0, 0); }

// As return_space(), until something else is to be done, which may be waited for: what is left then is given back behind the next
// checkpoint, or at rest. A little is given back each time, also where checkpoints follow one another.
coro::Task<void> Background::give_back(uint64_t keep, uint64_t within) {
  constexpr int kLeastRounds = 8;
  const bool rested = rests_, was_stopped = stopped_;
  bool more = true;
  for (int round = 0; more && rests_ == rested && stopped_ == was_stopped && !gives_way_; ++round) {
    if (round >= kLeastRounds && !was_stopped && (wants_checkpoint_ || room_is_wanted())) break;
    more = co_await return_space(loop_, core_, keep, within);
  }
  const std::lock_guard lock(core_.mutex);
  const uint64_t kept = kept_beside_reserve(core_, core_.segments.usage());
  beside_ = kept - std::min(kept, keep);
  keeps_space_ = keep > 0 || beside_ > 0;
}

// --- What there is to do --------------------------------------------------------------------------------------------

Background::Space Background::space() const {
  const std::lock_guard lock(core_.mutex);
  const Segments::Usage usage = core_.segments.usage();
  const uint64_t segment = core_.segments.bytes();
  const uint64_t live = usage.data_live_bytes - std::min(usage.data_live_bytes, collector_.moved_bytes());
  const uint64_t percent = std::max<uint64_t>(core_.space_percent(), 100);
  Space space;
  space.slack = live / 100 * (percent - 100);
  // What stays in the file for whoever writes next is given back as soon as the volume rests: for the collector it is gone. And
  // where free space cannot be given back, to collect more gains nothing.
  uint64_t kept = core_.takes_space_back ? beside_ : usage.free_with_space;
  if (core_.takes_space_back && kept != 0) kept = std::min(kept, kept_beside_reserve(core_, usage));
  space.used = (usage.file_segments - kept) * segment;
  space.passing = (usage.leaving + collector_.emptied()) * segment;
  const uint64_t spare = core_.options.spare_segments * segment;
  space.begin = live + space.slack / 5 * 3 + spare;
  space.most = live + space.slack + spare;
  space.free_segments = usage.free_with_space;
  space.room = usage.free_with_space * segment + collector_.room_bytes();
  return space;
}

bool Background::backs_off() {
  const std::lock_guard lock(core_.mutex);
  return failed_at_ != 0 && core_.position.next_lsn - failed_at_ < kRetryRecords && loop_.now_ms() - failed_at_ms_ < kRetryMs;
}

// Whether a checkpoint is, though nobody has asked for it.
bool Background::due(const Space& space) {
  uint64_t log_bytes = 0;
  const uint64_t segment = core_.segments.bytes();
  {
    const std::lock_guard lock(core_.mutex);
    log_bytes = core_.log_bytes;
  }
  if (rests_) return at_rest_ < kMostAtRest && (space.passing > 0 || checkpoint_.sweeps() || (stirred_ && log_bytes > 0));
  return space.used > space.begin && log_bytes + space.passing >= std::max(space.slack / 8, 4 * segment);
}

// A segment of which so little is garbage is not worth it, unless there is no other way.
Collector::Choice Background::choice(bool first_of_all) const {
  const uint64_t bytes = core_.segments.bytes();
  uint64_t percent = 0;
  {
    const std::lock_guard lock(core_.mutex);
    percent = std::clamp<uint64_t>(core_.space_percent(), 103, 400);
  }
  // Headers, a segment's end and the beginning behind a checkpoint are no gain: copies have them again.
  constexpr uint64_t kRecord = record_header_bytes(1) + kBlockBytes;
  const uint64_t overhead = bytes - bytes / kRecord * kBlockBytes + 2 * kBlockBytes;
  const uint64_t least = first_of_all ? overhead : std::max(bytes / 100 * ((percent - 100) / 3), overhead);
  return {.indexed_lsn = checkpoint_.indexed_lsn(), .least_garbage_bytes = least, .first_of_all = first_of_all};
}

coro::Task<void> Background::move_history(Background& background) {
  co_await background.core_.before_checkpoint();
  background.moves_history_ = false;
}

coro::Task<bool> Background::checkpoint() {
  wants_checkpoint_ = false;
  stirred_ = false;
  at_rest_ += rests_;
  // It waits for a record of the log, which may wait for this.
  if (!moves_history_) {
    moves_history_ = true;
    scope_.spawn(move_history(*this));
  }
  co_await core_.look_for_another(loop_);
  const Superblock superblock = core_.slots.current();
  const Checkpoint::State state{.open = true, .incarnation = superblock.incarnation};
  const Status done = co_await checkpoint_.run(loop_, state);
  if (!done) log_warning("{}: a checkpoint could not be made: {}", core_.options.name, done.error().message);
  if (done) collector_.checkpoint_done();
  if (done && checkpoint_.sweeps_on()) wants_checkpoint_ = true;
  uint64_t keep = 0;
  {
    const std::lock_guard lock(core_.mutex);
    failed_at_ = done ? 0 : core_.position.next_lsn;
    failed_at_ms_ = loop_.now_ms();
    core_.checkpoint_error.store(done ? 0 : done.error().code, std::memory_order_relaxed);
    // What is taken until the next one is about what was taken since the last one.
    const uint64_t taken = core_.segments.taken();
    keep = rests_ ? 0 : taken - taken_before_;
    taken_before_ = taken;
    keeps_space_ = keep > 0 || is_short_;
    beside_ = 0;
  }
  if (done && !is_short_) {
    // To overwrite what the file has is much cheaper than a hole and its space anew: within what it may have, nothing is given back
    // to be asked for again.
    const uint64_t within = rests_ || !core_.options.overwrites_in_place ? 0 : space().most;
    co_await give_back(keep, within);
  }
  co_return done.ok();
}

// Between two steps: less the more there is to do. It goes as fast as it can long before `most`: what passes, what is filled until
// it is free, and what the next checkpoint writes come on top.
uint64_t Background::pace_ms(const Space& space) const {
  if (rests_) return 1;
  const uint64_t over = space.used - space.passing - space.begin;
  const uint64_t part = std::max<uint64_t>(space.slack / 40, 1);
  return over >= 4 * part ? 0 : uint64_t{8} >> (over / part);
}

// Where it cannot keep up, the writers wait for it in small parts: before `most` is reached, and the more the nearer it is, so that
// they come to be as fast as it is below that; beyond, ever more.
void Background::set_pause(const Space& space, Collector::Step step) {
  constexpr uint64_t kMostUsPerMib = 400'000, kUsPerMibAtMost = 60'000;
  uint64_t pause = 0;
  const uint64_t band = space.slack / 7, from = space.most - band;
  if (step == Collector::Step::kMoved && space.used > from && band > 0) {
    const uint64_t over = space.used - from;
    pause = over * kUsPerMibAtMost / band;
    if (over > band) pause += (over - band) * kMostUsPerMib / band;
    pause = std::min(kMostUsPerMib, pause);
  }
  core_.pause_us_per_mib.store(pause, std::memory_order_relaxed);
}

coro::Task<void> Background::run_all(Background& background) {
  co_await background.run();
  background.core_.pause_us_per_mib.store(0, std::memory_order_relaxed);
  background.running_ = false;
  if (background.stopped_ || background.gives_way_ || background.core_.poisoned.load(std::memory_order_acquire)) co_return;
  // Who has asked meanwhile was heard by nobody.
  if (background.wants_checkpoint_ || background.room_is_wanted()) co_return background.start();
  const Space space = background.space();
  if (!background.rests_ && (background.stirred_ || background.keeps_space_ || space.passing > 0))
    background.rest_.arm(background.loop_.now_ms() + background.core_.options.idle_ms);
}

coro::Task<void> Background::run() {
  // At rest nothing is kept for those who write: what is collected for is what is left then.
  if (!std::exchange(begun_, true) || rests_) co_await return_all();
  int for_passing = 0;  // checkpoints since something was moved
  while (!stopped_ && !gives_way_ && !core_.poisoned.load(std::memory_order_acquire)) {
    if (room_is_wanted()) {
      co_await make_space();
      continue;
    }
    const Space now = space();
    if (std::exchange(wants_checkpoint_, false) || due(now)) {
      if (!checkpoint_.due() || backs_off()) break;
      is_short_ = false;
      const bool done = co_await checkpoint();
      if (!done) break;
      continue;
    }
    if (now.used <= now.begin + now.passing || checkpoint_.half_done()) break;
    const Collector::Step step = co_await collector_.step(choice(false));
    set_pause(now, step);
    if (step == Collector::Step::kMoved) {
      for_passing = 0;
      co_await io::SleepUntil(loop_, loop_.now_ms() + pace_ms(now));
    } else if (step == Collector::Step::kFailed || now.passing == 0 || ++for_passing > kMostForPassing) {
      break;
    } else {
      wants_checkpoint_ = true;  // it gives what is to be had
    }
  }
  // What was kept for those who write.
  if (rests_ && !stopped_ && !core_.poisoned.load(std::memory_order_acquire)) co_await return_all();
}

bool Background::room_is_wanted() {
  const std::lock_guard lock(core_.mutex);
  return room_wanted_ != 0;
}

// --- When there is no space -----------------------------------------------------------------------------------------

// What the checkpoints still hold back is free.
coro::Task<bool> Background::let_go() {
  constexpr int kMost = 3;
  for (int i = 0; i < kMost && checkpoint_.due(); ++i) {
    const bool done = co_await checkpoint();
    if (!done) co_return false;
  }
  co_return true;
}

// Until there is what is wanted, or a round moves nothing. (One that moves something may gain nothing yet, because what it has
// copied needs a segment before another one is empty.)
coro::Task<void> Background::make_space() {
  uint64_t attempt = 0, wanted = 0;
  {
    const std::lock_guard lock(core_.mutex);
    wanted = std::exchange(room_wanted_, 0);
    attempt = ++attempts_begun_;
  }
  is_short_ = true;
  checkpoint_.sweep_again();
  uint64_t most_room = 0;
  bool made = false, let = true;
  for (int fruitless = 0; fruitless < kMostFruitless && !stopped_; ++fruitless) {
    let = co_await let_go();
    const Space now = space();
    made = now.free_segments >= wanted;
    if (!let || made) break;
    if (now.room > most_room || checkpoint_.sweeps_on()) fruitless = 0;
    most_room = std::max(most_room, now.room);
    Collector::Step step = Collector::Step::kMoved;
    while (step == Collector::Step::kMoved && collector_.emptied() < kVictimsAtOnce && !stopped_)
      step = co_await collector_.step(choice(true));
    // (Of a segment that cannot be read others may follow that can.)
    const bool is_over = collector_.emptied() == 0 && collector_.moved_bytes() == 0 && step != Collector::Step::kFailed;
    if (is_over && !checkpoint_.sweeps_on()) break;
  }
  const std::lock_guard lock(core_.mutex);
  attempts_ended_ = attempt;
  attempt_made_room_ = made;
  // Where a checkpoint failed, another one may not.
  full_lsn_ = made || !let ? 0 : core_.position.next_lsn;
}

}  // namespace netblk::store::volume
