// SPDX-License-Identifier: GPL-2.0-only
// World: the simulator's time, chance and memory. One seed makes one run: every decision comes from one generator,
// every event has its place in one order, and a hash over all of them says whether two runs were the same.
#pragma once

#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "io/clock.h"

namespace netblk::sim {

// xoshiro256**, seeded by splitmix64: the same numbers with every library and on every machine.
class Random {
 public:
  explicit Random(uint64_t seed);
  uint64_t next();
  uint64_t below(uint64_t bound);                      // [0, bound)
  uint64_t between(uint64_t low, uint64_t high);       // [low, high]
  bool one_in(uint64_t count) { return count != 0 && below(count) == 0; }
  bool percent(uint64_t share) { return below(100) < share; }
  // Mostly near the low end, now and then far out: delays have long tails.
  uint64_t skewed(uint64_t low, uint64_t high);

 private:
  std::array<uint64_t, 4> state_;
};

// What happened in a run, by name, so that a report shows that the faults it claims were reached.
enum class Count : uint8_t {
  kRequests, kReads, kWrites, kFlushes, kTrims, kZeroes, kFuas, kErrors,
  kBytesSent,
  kDials, kDialsRefused, kDialsLost, kDialsLate, kConnections, kDuplicates, kLateAccepts,
  kResets, kHalfOpen, kStalls, kPartitions, kCloses, kFlips, kCuts, kDoubles, kSplices,
  kServerKills, kServerStops, kHostReboots, kClientKills, kStoreReplaced, kResizes,
  kBlocksLost, kTornWrites, kSyncFailures, kStoreErrors, kOwnerFailures, kAbandonedDropped,
  kNewSessions, kAddedConnections, kResumes, kAdoptions, kGenerationChanges, kRefusedBusy, kRefusedStale, kRefusedAgain,
  kRefusedOther, kLosses, kLossResets, kTakeovers, kSelfFenced, kGaveUp, kNops, kGoodbyes, kReplays,
  kHeartbeats, kRideAlongs, kCompressed, kBlockChecks,
  // of volumes (tests/sim/volume)
  kCrashStates, kPowerCuts, kProcessKills, kCrashesInRecovery, kCleanCloses, kVolumeChanges, kVolumeReads, kVolumeFlushes,
  kShorterPrefixes, kSnapshots, kSnapshotChecks, kDiskErrors, kReadErrors, kDiskFull, kRefusedFull, kLostWrites,
  kStrayWrites, kLyingSyncs, kBitFlips, kFaultsNoticed, kDamagedOpens, kBlocksCollected,
  kRecoveryCrashStates, kErrorRuns, kErrorsInRecovery, kSilentFaults, kSilentDetected, kSilentHarmless, kSilentShortened,
  kSilentShortenedUntold, kClones, kRewinds, kDeletions, kVolumeResizes, kMoments,
  kSends, kReceives, kBrokenStreams, kMisplacedRecords, kRefusedBases,
  kLast,
};
std::string_view count_name(Count count);
using Counts = std::array<uint64_t, static_cast<size_t>(Count::kLast)>;

class World {
 public:
  explicit World(uint64_t seed) : seed_(seed), random(seed) {}
  World(const World&) = delete;
  World& operator=(const World&) = delete;

 private:
  const uint64_t seed_;

 public:
  Random random;

  uint64_t seed() const { return seed_; }
  uint64_t now_us() const { return now_us_; }
  const io::Clock& clock() const { return clock_; }

  // Numbers that only grow: what orders the issue and the end of requests within one microsecond.
  uint64_t next_tick() { return ++tick_; }

  // The action runs inside a poll of the loop; it completes operations and resumes nothing.
  void at(uint64_t at_us, std::function<void()> action);
  void after(uint64_t delay_us, std::function<void()> action) { at(now_us_ + delay_us, std::move(action)); }
  bool idle() const { return events_.empty(); }

  // Moves the time to the next event, if it is not after limit_us, and runs it; else to limit_us. False: there was none.
  bool step(uint64_t limit_us);

  // An event for the hash and the trace. `what` is a literal.
  template <size_t kSize>
  void note(const char (&what)[kSize], uint64_t a = 0, uint64_t b = 0, uint64_t c = 0) {
    constexpr uint64_t kPrime = 0x100000001b3;
    uint64_t name = 0xcbf29ce484222325;
    for (size_t i = 0; i + 1 < kSize; ++i) name = (name ^ static_cast<uint8_t>(what[i])) * kPrime;
    for (const uint64_t word : {now_us_, name, a, b, c}) mix(word);
    if (tracing_) print(what, a, b, c);
  }
  uint64_t hash() const { return hash_; }
  void set_tracing(bool on) { tracing_ = on; }
  bool tracing() const { return tracing_; }

  void count(Count what, uint64_t amount = 1) { counts_[static_cast<size_t>(what)] += amount; }
  const Counts& counts() const { return counts_; }

  // A rule was broken: `rule` names it. Never returns.
  template <class... Args>
  [[noreturn]] void fail(std::string_view rule, fmt::format_string<Args...> format, Args&&... args) {
    failed(rule, fmt::format(format, std::forward<Args>(args)...));
  }
  // Takes the words of a failure; must not return. Default: one line on stderr, then exit status 3.
  using FailureHandler = void (*)(const World&, std::string_view rule, std::string_view words);
  static void set_failure_handler(FailureHandler handler);

 private:
  struct SimClock final : io::Clock {
    explicit SimClock(const World& owner) : world(owner) {}
    uint64_t now_ms() const override { return world.now_us_ / 1000; }
    const World& world;
  };
  struct Event {
    uint64_t at_us;
    uint64_t order;
    std::function<void()> action;
  };
  static bool later(const Event& a, const Event& b) { return a.at_us != b.at_us ? a.at_us > b.at_us : a.order > b.order; }
  void mix(uint64_t word) {
    hash_ = (hash_ ^ word) * 0x9e3779b97f4a7c15;
    hash_ ^= hash_ >> 29;
  }
  void print(const char* what, uint64_t a, uint64_t b, uint64_t c) const;
  [[noreturn]] void failed(std::string_view rule, const std::string& words) const;

  uint64_t now_us_ = 1'000'000;
  uint64_t tick_ = 0;
  uint64_t order_ = 0;
  uint64_t hash_ = 0;
  bool tracing_ = false;
  std::vector<Event> events_;  // a heap
  SimClock clock_{*this};
  Counts counts_{};
};

// What getrandom() of this program gives from here on: the run's own numbers, so that ids replay too.
void seed_system_random(uint64_t seed);

}  // namespace netblk::sim
