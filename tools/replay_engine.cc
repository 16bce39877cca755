// SPDX-License-Identifier: GPL-2.0-only
#include "replay_engine.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <queue>

#include "base/check.h"

namespace netblk::tools {
namespace {

using block::Command;

constexpr uint64_t kTickMs = 100;
constexpr size_t kAlignment = 4096;
// Of the requests in flight together; one of any length goes.
constexpr uint64_t kMaxBytesInFlight = 512u << 20;
constexpr uint32_t kMaxExtents = 1024;

bool changes(const ReplayStep& step) {
  return step.command == Command::kWrite || step.command == Command::kTrim || step.command == Command::kWriteZeroes;
}

bool overlap(const ReplayStep& a, const ReplayStep& b) {
  return a.offset < b.offset + b.length && b.offset < a.offset + a.length;
}

}  // namespace

uint64_t ReplayResult::requests() const {
  uint64_t sum = 0;
  for (const auto& [command, count] : ended) sum += count;
  return sum;
}

unsigned concurrency_of(const std::vector<ReplayStep>& steps) {
  std::priority_queue<uint64_t, std::vector<uint64_t>, std::greater<>> ends;
  size_t most = 1;
  for (const ReplayStep& step : steps) {
    while (!ends.empty() && ends.top() < step.time_us) ends.pop();
    ends.push(step.time_us + step.latency_us);
    most = std::max(most, ends.size());
  }
  return static_cast<unsigned>(most);
}

struct Replay::Asked : block::Request {
  Asked(Replay& of, const ReplayStep& what)
      : Request([](block::Request& self) { static_cast<Asked&>(self).replay.ended(static_cast<Asked&>(self)); }),
        replay(of), step(what) {
    loop = &of.loop_;
    command = step.command;
    fua = step.fua;
    keep_allocated = step.keep_allocated;
    fast_zero = step.fast_zero;
    offset = step.offset;
    length = step.length;
    extents = &found;
    max_extents = kMaxExtents;
    if (command != Command::kRead && command != Command::kWrite) return;
    data = static_cast<std::byte*>(::operator new(length, std::align_val_t{kAlignment}));
    if (command == Command::kRead) return;
    // The trace has no data: bytes that nothing compresses, the same at each replay.
    uint64_t word = step.time_us ^ (step.offset * 0x9e3779b97f4a7c15u);
    for (uint64_t at = 0; at < length; at += sizeof word) {
      word = (word ^ (word >> 30)) * 0xbf58476d1ce4e5b9u + 0x94d049bb133111ebu;
      std::memcpy(data + at, &word, std::min<uint64_t>(sizeof word, length - at));
    }
  }
  ~Asked() { ::operator delete(data, std::align_val_t{kAlignment}); }

  Replay& replay;
  const ReplayStep& step;
  std::vector<block::Extent> found;
  uint64_t began_ns = 0;
};

Replay::Replay(io::Loop& loop, block::Device& device, ReplayPlan plan)
    : loop_(loop), device_(device), plan_(std::move(plan)), most_in_flight_(concurrency_of(plan_.steps)) {}

Replay::~Replay() { NETBLK_CHECK(in_flight_.empty(), "a replay is destroyed while it runs"); }

bool Replay::must_wait(const ReplayStep& step) const {
  if (in_flight_.size() >= most_in_flight_) return true;
  if (bytes_in_flight_ > 0 && bytes_in_flight_ + step.length > kMaxBytesInFlight) return true;
  const bool change = changes(step), flush = step.command == Command::kFlush;
  for (const auto& other : in_flight_) {
    const ReplayStep& earlier = other->step;
    if (flush && changes(earlier) && earlier.time_us + earlier.latency_us <= step.time_us) return true;
    if (!flush && (change || changes(earlier)) && overlap(step, earlier)) return true;
  }
  return false;
}

void Replay::begin(const ReplayStep& step) {
  in_flight_.push_back(std::make_unique<Asked>(*this, step));
  Asked& asked = *in_flight_.back();
  bytes_in_flight_ += asked.data != nullptr ? asked.length : 0;
  asked.began_ns = io::monotonic_ns();
  device_.submit(asked);
}

void Replay::ended(Asked& asked) {
  const ReplayStep& step = asked.step;
  if (asked.error != 0) {
    ++result_.errors;
    if (result_.first_error == 0) result_.first_error = asked.error;
  } else {
    ++result_.ended[step.command];
    if (step.command == Command::kRead) result_.read_bytes += step.length;
    if (step.command == Command::kWrite) result_.write_bytes += step.length;
    result_.latency_ns.add(io::monotonic_ns() - asked.began_ns);
  }
  result_.differ += (asked.error != 0) != step.failed;
  bytes_in_flight_ -= asked.data != nullptr ? asked.length : 0;
  ++ended_;
  std::erase_if(in_flight_, [&](const auto& one) { return one.get() == &asked; });
  changed_.set();
}

coro::Task<void> Replay::run() {
  const uint64_t began_ms = loop_.now_ms(), began_ns = io::monotonic_ns();
  uint64_t ticked_ms = began_ms;
  bool stopped = false;
  for (const ReplayStep& step : plan_.steps) {
    uint64_t due_ms = began_ms;
    if (plan_.speed > 0)
      due_ms += static_cast<uint64_t>(static_cast<double>(step.time_us - plan_.steps.front().time_us) / 1000 / plan_.speed);
    for (;;) {
      const uint64_t now = loop_.now_ms();
      if (now >= ticked_ms + kTickMs || now < due_ms) {
        ticked_ms = now;
        stopped = plan_.on_tick && plan_.on_tick(ended_);
      }
      if (stopped) break;
      if (now < due_ms) {
        const uint64_t until = std::min(due_ms, now + kTickMs);
        co_await io::SleepUntil(loop_, until);
      } else if (must_wait(step)) {
        co_await changed_.wait();
      } else {
        if (plan_.speed > 0) result_.late_ms = std::max(result_.late_ms, now - due_ms);
        begin(step);
        break;
      }
    }
    if (stopped) break;
  }
  while (!in_flight_.empty()) co_await changed_.wait();
  result_.seconds = static_cast<double>(io::monotonic_ns() - began_ns) / 1e9;
}

}  // namespace netblk::tools
