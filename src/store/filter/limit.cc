// SPDX-License-Identifier: GPL-2.0-only
// Limits of bytes and requests per second. The account is kept in time: each request moves the moment from which on the
// next one may go by what it costs, so that being late with one takes nothing from the others, and the rate is right over
// any time.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "io/clock.h"
#include "store/filter/filter.h"
#include "store/filter/layer.h"

namespace netblk::store {
namespace {

using std::chrono::nanoseconds;
using Time = std::chrono::time_point<std::chrono::steady_clock, nanoseconds>;

constexpr int64_t kNsPerSecond = 1'000'000'000;
// How soon a request is let go whose client has.
constexpr std::chrono::milliseconds kLookForAbandoned{100};

// The library's steady clock is this one.
Time now() { return Time(nanoseconds(static_cast<int64_t>(io::monotonic_ns()))); }

nanoseconds time_for(uint64_t units, uint64_t per_second) {
  constexpr double kLongest = 1e6 * kNsPerSecond;
  const double wanted = static_cast<double>(units) * kNsPerSecond / static_cast<double>(per_second);
  return nanoseconds(static_cast<int64_t>(std::min(wanted, kLongest)));
}

// Credit of one kind. Not thread-safe.
class Bucket {
 public:
  Bucket(uint64_t per_second, uint64_t burst)
      : per_second_(per_second),
        burst_(per_second == 0 ? nanoseconds(0) : burst == 0 ? nanoseconds(kNsPerSecond / 50) : time_for(burst, per_second)) {}

  // When the next request may go, whatever it costs: one that is larger than the burst goes too, and is paid for after.
  Time ready_at() const { return per_second_ == 0 ? Time::min() : paid_until_ - burst_; }
  nanoseconds take(uint64_t units, Time moment) {
    if (per_second_ == 0) return nanoseconds(0);
    const nanoseconds price = time_for(units, per_second_);
    paid_until_ = std::max(paid_until_, moment) + price;
    return price;
  }

 private:
  uint64_t per_second_;
  nanoseconds burst_;
  Time paid_until_;
};

block::Geometry later(block::Geometry geometry) {
  geometry.writes_inline = false;
  return geometry;
}

class LimitFilter final : public Layer {
 public:
  LimitFilter(std::unique_ptr<block::Device>&& below, const LimitOptions& options)
      : Layer(later(below->geometry()), std::move(below)),
        bytes_(options.bytes_per_second, options.burst_bytes),
        requests_(options.requests_per_second, options.burst_requests),
        thread_([this] { let_go(); }) {}
  ~LimitFilter() override {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    changed_.notify_one();
    thread_.join();
  }

 protected:
  void start(block::Request& request, block::Completion completion) override {
    {
      const std::lock_guard lock(mutex_);
      const Time moment = now();
      if (!waiting_.empty() || ready_at() > moment) {
        request.held.completion = std::move(completion);
        request.held.owner = this;
        Line& line = waiting_[request.abandoned];
        // Who comes back from a rest has no claim to what it did not use.
        if (line.requests.empty()) line.served = std::max(line.served, least_served_);
        line.requests.push_back(&request);
        // The thread sleeps until the first may go; it is told only of the one that made it the first.
        if (waiting_.size() == 1 && line.requests.size() == 1) changed_.notify_one();
        return;
      }
      pay(request, moment);
    }
    Layer::start(request, std::move(completion));
  }

 private:
  // A connection: it is known by the flag that says that it has gone.
  struct Line {
    std::deque<block::Request*> requests;
    nanoseconds served{0};
  };
  using Lines = std::map<const void*, Line>;

  Time ready_at() const { return std::max(bytes_.ready_at(), requests_.ready_at()); }
  static uint64_t bytes_of(const block::Request& request) {
    const bool moves = request.command == block::Command::kRead || request.command == block::Command::kWrite;
    return moves ? request.length : 0;
  }
  // What it costs.
  nanoseconds pay(const block::Request& request, Time moment) {
    const nanoseconds bytes = bytes_.take(bytes_of(request), moment);
    return std::max(bytes, requests_.take(1, moment));
  }

  void send(block::Request& request, int error) {
    request.error = error;
    request.held.hop.send(request, [](block::Request& told) {
      auto& filter = static_cast<LimitFilter&>(*told.held.owner);
      block::Completion completion = std::move(told.held.completion);
      if (told.error != 0) return std::move(completion).finish(told.error);
      filter.Layer::start(told, std::move(completion));
    });
  }

  void let_go() {
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      if (waiting_.empty()) {
        changed_.wait(lock);
        continue;
      }
      const Time moment = now();
      if (ready_at() <= moment) {
        release_one(moment);
        continue;
      }
      drop_abandoned();
      if (!waiting_.empty()) changed_.wait_until(lock, std::min(ready_at(), moment + kLookForAbandoned));
    }
  }
  void release_one(Time moment) {
    const auto next = std::min_element(waiting_.begin(), waiting_.end(), [](const auto& a, const auto& b) {
      return a.second.served < b.second.served;
    });
    Line& line = next->second;
    block::Request& request = *line.requests.front();
    line.requests.pop_front();
    least_served_ = line.served;
    line.served += pay(request, moment);
    if (line.requests.empty()) waiting_.erase(next);
    send(request, 0);
  }
  void drop_abandoned() {
    for (auto at = waiting_.begin(); at != waiting_.end();) {
      if (!at->second.requests.front()->is_abandoned()) {
        ++at;
        continue;
      }
      for (block::Request* request : at->second.requests) send(*request, ECANCELED);
      at = waiting_.erase(at);
    }
  }

  std::mutex mutex_;  // a leaf
  std::condition_variable changed_;
  Bucket bytes_, requests_;
  Lines waiting_;  // connections that have requests waiting
  nanoseconds least_served_{0};
  bool stopping_ = false;
  std::thread thread_;  // the last: it uses the others
};

}  // namespace

std::unique_ptr<block::Device> make_limit_filter(std::unique_ptr<block::Device> below, const LimitOptions& options) {
  return std::make_unique<LimitFilter>(std::move(below), options);
}

}  // namespace netblk::store
