// SPDX-License-Identifier: GPL-2.0-only
#include "bench_engine.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "base/check.h"
#include "coro/ready_queue.h"

namespace netblk::tools {
namespace {

using std::chrono::steady_clock;

constexpr uint64_t kTickMs = 100;
constexpr size_t kAlignment = 4096;
// A target that only fails is not measured any longer.
constexpr unsigned kHopelessErrors = 1000;

}  // namespace

// The next request of a slot starts from the ready queue: a device that ends them inside submit() would otherwise keep
// the loop to itself.
struct Bench::Slot : block::Request, coro::Runnable {
  Slot(Bench& of, std::byte* buffer)
      : Request([](block::Request& self) { static_cast<Slot&>(self).bench.ended(static_cast<Slot&>(self)); }),
        Runnable([](coro::Runnable& self) { static_cast<Slot&>(self).bench.submit(static_cast<Slot&>(self)); }),
        bench(of) {
    loop = &of.loop_;
    length = of.plan_.block_bytes;
    data = buffer;
  }
  Bench& bench;
  Time begun{};
};

void Bench::FreeBuffer::operator()(std::byte* memory) const {
  ::operator delete(memory, std::align_val_t{kAlignment});
}

Bench::Bench(io::Loop& loop, block::Device& device, BenchPlan plan)
    : loop_(loop),
      device_(device),
      plan_(std::move(plan)),
      blocks_(device.size_bytes() / plan_.block_bytes),
      random_state_(plan_.seed),
      tick_(*this) {
  NETBLK_CHECK(blocks_ > 0 && plan_.in_flight > 0, "a bench of nothing");
  // Each slot's memory begins on a page: O_DIRECT asks for it.
  const size_t stride = (plan_.block_bytes + kAlignment - 1) / kAlignment * kAlignment;
  const size_t bytes = stride * plan_.in_flight;
  memory_.reset(static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kAlignment})));
  // Random data: neither compression nor the detection of zeroes makes it less.
  for (size_t at = 0; at < bytes; at += sizeof(uint64_t)) {
    const uint64_t word = random_bits();
    std::memcpy(memory_.get() + at, &word, sizeof word);
  }
  for (unsigned i = 0; i < plan_.in_flight; ++i)
    slots_.push_back(std::make_unique<Slot>(*this, memory_.get() + stride * i));
}

Bench::~Bench() { NETBLK_CHECK(in_flight_ == 0, "a bench is destroyed while it runs"); }

uint64_t Bench::random_bits() {  // splitmix64
  uint64_t value = (random_state_ += 0x9e3779b97f4a7c15u);
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

uint64_t Bench::next_offset() {
  uint64_t block = next_block_;
  if (plan_.random) {
    block = random_bits() % blocks_;
  } else if (++next_block_ == blocks_) {
    next_block_ = 0;
  }
  return block * plan_.block_bytes;
}

double Bench::seconds_since(Time begin) const {
  return std::chrono::duration<double>(steady_clock::now() - begin).count();
}

coro::Task<void> Bench::run() {
  measure_at_ms_ = loop_.now_ms() + plan_.warm_up_ms;
  in_flight_ = plan_.in_flight;
  for (auto& slot : slots_) coro::ReadyQueue::current().push(*slot);
  tick();
  co_await drained_.wait();
  tick_.cancel();
}

void Bench::submit(Slot& slot) {
  if (stopped_) {
    if (--in_flight_ == 0) drained_.set();
    return;
  }
  bool write = plan_.access == Access::kWrite;
  if (plan_.access == Access::kMixed) write = (random_bits() & 1) != 0;
  slot.command = write ? block::Command::kWrite : block::Command::kRead;
  slot.offset = next_offset();
  slot.begun = steady_clock::now();
  device_.submit(slot);
}

void Bench::ended(Slot& slot) {
  if (slot.error != 0) {
    if (!stopped_) {
      ++result_.errors;
      if (result_.first_error == 0) result_.first_error = slot.error;
      if (++errors_in_a_row_ == kHopelessErrors) stop();
    }
  } else {
    errors_in_a_row_ = 0;
    if (measuring_ && !stopped_) {
      const auto took = std::chrono::duration_cast<std::chrono::nanoseconds>(steady_clock::now() - slot.begun);
      result_.latency_ns.add(static_cast<uint64_t>(took.count()));
      ++(slot.command == block::Command::kRead ? result_.reads : result_.writes);
    }
  }
  coro::ReadyQueue::current().push(slot);
}

void Bench::stop() {
  if (stopped_) return;
  stopped_ = true;
  result_.seconds = measuring_ ? seconds_since(begin_) : 0;
}

void Bench::tick() {
  if (stopped_) return;
  const uint64_t now = loop_.now_ms();
  if (!measuring_ && now >= measure_at_ms_) {
    measuring_ = true;
    measure_at_ms_ = now;
    begin_ = steady_clock::now();
  }
  const double seconds = measuring_ ? seconds_since(begin_) : 0;
  // A time in which nothing ended says nothing: it goes on until something has.
  const bool over = measuring_ && now >= measure_at_ms_ + plan_.measure_ms && result_.requests() + result_.errors != 0;
  const bool ended_early = plan_.on_tick && plan_.on_tick(seconds, result_.requests());
  if (over || ended_early) return stop();
  const uint64_t next = measuring_ ? measure_at_ms_ + plan_.measure_ms : measure_at_ms_;
  tick_.arm(std::min(now + kTickMs, std::max(next, now + 1)));
}

}  // namespace netblk::tools
