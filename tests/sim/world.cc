// SPDX-License-Identifier: GPL-2.0-only
#include "sim/world.h"

#include <sys/random.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "base/check.h"

namespace netblk::sim {
namespace {

uint64_t splitmix(uint64_t& state) {
  state += 0x9e3779b97f4a7c15;
  uint64_t value = state;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

constexpr uint64_t rotate(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

void print_and_exit(const World& world, std::string_view rule, std::string_view words) {
  std::fprintf(stderr, "seed %llu at %.3f ms: %.*s: %.*s\n", static_cast<unsigned long long>(world.seed()),
               static_cast<double>(world.now_us()) / 1000, static_cast<int>(rule.size()), rule.data(),
               static_cast<int>(words.size()), words.data());
  std::fflush(nullptr);
  std::_Exit(3);
}

World::FailureHandler failure_handler = print_and_exit;
uint64_t system_random_state = 1;

constexpr std::array<std::string_view, static_cast<size_t>(Count::kLast)> kCountNames = {
    "requests", "reads", "writes", "flushes", "trims", "write-zeroes", "fua", "failed requests",
    "bytes sent",
    "dials", "dials refused", "dials lost", "dials that arrive after their client gave up", "connections",
    "duplicated connections", "connections accepted late",
    "resets", "half-open links", "stalls", "partitions", "orderly closes", "flipped bits", "bytes cut out", "bytes doubled", "bytes in another order",
    "server kills", "server stops", "host reboots", "client kills", "stores replaced", "resizes",
    "blocks lost in reboots", "torn writes", "failed syncs", "store errors", "owner records that failed",
    "abandoned requests dropped by the store",
    "new sessions", "added connections", "resumes", "adoptions", "generation changes", "refused EBUSY", "refused ESTALE",
    "refused EAGAIN", "refused otherwise", "losses told", "losses acknowledged", "takeovers", "sessions ended by another hello of their own client process",
    "requests given up", "nops", "goodbyes", "replayed requests",
    "heartbeats", "reads with the hello", "compressed payloads", "blocks checked",
    "crash states", "power cuts", "processes killed", "crashes in recovery", "clean closes", "changes", "reads", "flushes",
    "recoveries without all that was answered", "snapshots", "snapshots compared", "failed operations of the disk",
    "read errors", "writes that the disk had no room for", "requests refused with ENOSPC", "lost writes",
    "stray writes", "lying syncs", "flipped bits in the disk", "silent faults noticed", "openings that found damage", "blocks collected",
    "crash states of crashes in recovery", "operations failed one by one", "operations failed one by one in a recovery",
    "silent faults one by one", "silent faults detected", "silent faults that changed nothing",
    "silent faults that shortened history, told", "silent faults that shortened history, untold", "clones", "rewinds",
    "deletions of snapshots and clones", "resizes of volumes", "moments of the history compared",
    "streams sent", "streams received", "streams that broke", "streams out of order", "streams that the base refused",
};

}  // namespace

Random::Random(uint64_t seed) {
  for (uint64_t& word : state_) word = splitmix(seed);
}

uint64_t Random::next() {
  const uint64_t result = rotate(state_[1] * 5, 7) * 9;
  const uint64_t shifted = state_[1] << 17;
  state_[2] ^= state_[0];
  state_[3] ^= state_[1];
  state_[1] ^= state_[2];
  state_[0] ^= state_[3];
  state_[2] ^= shifted;
  state_[3] = rotate(state_[3], 45);
  return result;
}

uint64_t Random::below(uint64_t bound) {
  NETBLK_CHECK(bound > 0, "a choice among nothing");
  return next() % bound;
}

uint64_t Random::between(uint64_t low, uint64_t high) { return low + below(high - low + 1); }

uint64_t Random::skewed(uint64_t low, uint64_t high) {
  uint64_t range = high - low;
  for (int i = 0; i < 6 && below(2) == 0; ++i) range /= 3;
  return low + below(range + 1);
}

std::string_view count_name(Count count) { return kCountNames[static_cast<size_t>(count)]; }

void World::at(uint64_t at_us, std::function<void()> action) {
  events_.push_back({std::max(at_us, now_us_), order_++, std::move(action)});
  std::push_heap(events_.begin(), events_.end(), later);
}

bool World::step(uint64_t limit_us) {
  if (events_.empty() || events_.front().at_us > limit_us) {
    now_us_ = std::max(now_us_, limit_us);
    return false;
  }
  std::pop_heap(events_.begin(), events_.end(), later);
  const Event event = std::move(events_.back());
  events_.pop_back();
  now_us_ = event.at_us;
  event.action();
  return true;
}

void World::print(const char* what, uint64_t a, uint64_t b, uint64_t c) const {
  // Two numbers in one word are shown as two.
  const auto text = [](uint64_t word) {
    return word >> 32 == 0 ? std::to_string(word) : fmt::format("{}/{}", word >> 32, word & 0xffffffff);
  };
  std::fprintf(stderr, "%12.3f %-20s %s %s %s\n", static_cast<double>(now_us_) / 1000, what, text(a).c_str(),
               text(b).c_str(), text(c).c_str());
}

void World::failed(std::string_view rule, const std::string& words) const {
  failure_handler(*this, rule, words);
  std::abort();
}

void World::set_failure_handler(FailureHandler handler) { failure_handler = handler; }

void seed_system_random(uint64_t seed) { system_random_state = seed ^ 0x5eed; }

}  // namespace netblk::sim

// Takes the place of the C library's in this program: session ids and the like come from the seed.
extern "C" ssize_t getrandom(void* buffer, size_t length, unsigned) {
  auto* to = static_cast<unsigned char*>(buffer);
  for (size_t i = 0; i < length; i += 8) {
    const uint64_t word = netblk::sim::splitmix(netblk::sim::system_random_state);
    std::memcpy(to + i, &word, std::min<size_t>(8, length - i));
  }
  return static_cast<ssize_t>(length);
}
