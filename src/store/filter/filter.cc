// SPDX-License-Identifier: GPL-2.0-only
#include "store/filter/filter.h"

#include <atomic>
#include <cerrno>
#include <mutex>
#include <random>
#include <utility>

#include "base/check.h"
#include "io/loop.h"
#include "store/filter/layer.h"

namespace netblk::store {

using block::Command;
using block::Completion;
using block::Device;
using block::Geometry;
using block::Request;

namespace {

// The edge of the device refuses the changes: the geometry says so.
Geometry read_only(Geometry geometry) {
  geometry.read_only = true;
  return geometry;
}

class ReadonlyFilter final : public Layer {
 public:
  explicit ReadonlyFilter(std::unique_ptr<Device> below) : Layer(read_only(below->geometry()), std::move(below)) {}
  // Reads pass as they are.
  int read_fd() const override { return below_->read_fd(); }
};

Geometry later(Geometry geometry) {
  geometry.writes_inline = false;
  return geometry;
}

class DelayFilter final : public Layer {
 public:
  DelayFilter(std::unique_ptr<Device> below, const DelayOptions& options)
      : Layer(later(below->geometry()), std::move(below)), options_(options) {}

 protected:
  void start(Request& request, Completion completion) override {
    const uint64_t delay_ms = delay_of(request.command);
    if (delay_ms == 0) return Layer::start(request, std::move(completion));
    // The wait owns itself; it has gone when the request goes on.
    auto* const wait = new Wait(*this, request, std::move(completion));
    // Now is cut to whole milliseconds: with the next one for it, the delay is never shorter than what was asked for.
    wait->arm(io::loop_of(*request.loop).now_ms() + 1 + delay_ms);
  }

 private:
  struct Wait : io::Timer {
    Wait(DelayFilter& owner, Request& delayed, Completion duty)
        : Timer(io::loop_of(*delayed.loop),
                [](coro::Runnable& self) {
                  const std::unique_ptr<Wait> over(&static_cast<Wait&>(self));
                  over->filter.Layer::start(over->request, std::move(over->completion));
                }),
          filter(owner), request(delayed), completion(std::move(duty)) {}
    DelayFilter& filter;
    Request& request;
    Completion completion;
  };
  uint64_t delay_of(Command command) const {
    switch (command) {
      case Command::kRead:
      case Command::kCache:
      case Command::kBlockStatus: return options_.read_ms;
      case Command::kWrite: return options_.write_ms;
      case Command::kFlush: return options_.flush_ms;
      case Command::kTrim:
      case Command::kWriteZeroes: return options_.trim_ms;
    }
    return 0;
  }

  const DelayOptions options_;
};

class FaultFilter final : public Layer {
 public:
  FaultFilter(std::unique_ptr<Device> below, const FaultOptions& options)
      : Layer(std::move(below)), options_(options), random_(options.seed) {
    NETBLK_CHECK(options.one_in > 0 && options.error > 0, "a fault filter that cannot fail");
  }

 protected:
  void start(Request& request, Completion completion) override {
    const bool syncs = request.command == Command::kFlush || (request.modifies() && request.fua);
    if (syncs && poisoned_.load(std::memory_order_acquire)) return std::move(completion).finish(EIO);
    if (chosen(request)) {
      // A sync that failed is never made good by a later one (DESIGN law 2), here as in a real store.
      if (syncs && options_.flushes) poisoned_.store(true, std::memory_order_release);
      return std::move(completion).finish(options_.error);
    }
    Layer::start(request, std::move(completion));
  }

 private:
  bool chosen(const Request& request) {
    // A durable change is a change and a flush in one.
    const bool flushes = options_.flushes && request.fua;
    switch (request.command) {
      case Command::kRead: if (!options_.reads) return false; break;
      case Command::kWrite: if (!options_.writes && !flushes) return false; break;
      case Command::kFlush: if (!options_.flushes) return false; break;
      case Command::kTrim:
      case Command::kWriteZeroes: if (!options_.trims && !flushes) return false; break;
      case Command::kCache: return false;
      case Command::kBlockStatus: if (!options_.statuses) return false; break;
    }
    const std::lock_guard lock(mutex_);
    if (options_.count != 0 && failed_ == options_.count) return false;
    if (random_() % options_.one_in != 0) return false;
    ++failed_;
    return true;
  }

  FaultOptions options_;
  std::mutex mutex_;
  std::mt19937_64 random_;
  uint64_t failed_ = 0;
  std::atomic<bool> poisoned_{false};
};

}  // namespace

std::unique_ptr<Device> make_readonly_filter(std::unique_ptr<Device> below) {
  return std::make_unique<ReadonlyFilter>(std::move(below));
}

std::unique_ptr<Device> make_delay_filter(std::unique_ptr<Device> below, const DelayOptions& options) {
  return std::make_unique<DelayFilter>(std::move(below), options);
}

std::unique_ptr<Device> make_delay_filter(std::unique_ptr<Device> below, uint64_t delay_ms) {
  return make_delay_filter(std::move(below),
                           {.read_ms = delay_ms, .write_ms = delay_ms, .flush_ms = delay_ms, .trim_ms = delay_ms});
}

std::unique_ptr<Device> make_fault_filter(std::unique_ptr<Device> below, const FaultOptions& options) {
  return std::make_unique<FaultFilter>(std::move(below), options);
}

}  // namespace netblk::store
