// SPDX-License-Identifier: GPL-2.0-only
#include "store/filter/filter.h"

#include <atomic>
#include <cerrno>
#include <mutex>
#include <random>
#include <utility>

#include "base/check.h"
#include "io/loop.h"

namespace netblk::store {

using block::Command;
using block::Completion;
using block::Device;
using block::Geometry;
using block::Request;

namespace {

class Filter : public Device {
 public:
  // The geometry is read before `below` moves: a parameter that is passed by value may have moved already when another
  // argument is evaluated.
  explicit Filter(std::unique_ptr<Device>&& below) : Filter(below->geometry(), std::move(below)) {}
  Filter(const Geometry& geometry, std::unique_ptr<Device>&& below) : Device(geometry), below_(std::move(below)) {}

  void refresh_size() override {
    below_->refresh_size();
    set_size_bytes(below_->size_bytes());
  }
  Status grow(uint64_t wanted_bytes) override {
    Status grown = below_->grow(wanted_bytes);
    set_size_bytes(below_->size_bytes());
    return grown;
  }
  block::Generation generation() const override { return below_->generation(); }
  std::vector<std::byte> owners() const override { return below_->owners(); }
  coro::Task<Status> keep_owners(coro::Mailbox& loop, std::vector<std::byte> record) override {
    return below_->keep_owners(loop, std::move(record));
  }

 protected:
  void start(Request& request, Completion completion) override { forward(*below_, request, std::move(completion)); }

  std::unique_ptr<Device> below_;
};

// The edge of the device refuses the changes: the geometry says so.
Geometry read_only(Geometry geometry) {
  geometry.read_only = true;
  return geometry;
}

class ReadonlyFilter final : public Filter {
 public:
  explicit ReadonlyFilter(std::unique_ptr<Device> below) : Filter(read_only(below->geometry()), std::move(below)) {}
  // Reads pass as they are.
  int read_fd() const override { return below_->read_fd(); }
};

Geometry later(Geometry geometry) {
  geometry.writes_inline = false;
  return geometry;
}

class DelayFilter final : public Filter {
 public:
  DelayFilter(std::unique_ptr<Device> below, uint64_t delay_ms)
      : Filter(later(below->geometry()), std::move(below)), delay_ms_(delay_ms) {}

 protected:
  void start(Request& request, Completion completion) override {
    // The wait owns itself; it has gone when the request goes on.
    auto* const wait = new Wait(*this, request, std::move(completion));
    wait->arm(io::loop_of(*request.loop).now_ms() + delay_ms_);
  }

 private:
  struct Wait : io::Timer {
    Wait(DelayFilter& owner, Request& delayed, Completion duty)
        : Timer(io::loop_of(*delayed.loop),
                [](coro::Runnable& self) {
                  const std::unique_ptr<Wait> over(&static_cast<Wait&>(self));
                  over->filter.Filter::start(over->request, std::move(over->completion));
                }),
          filter(owner), request(delayed), completion(std::move(duty)) {}
    DelayFilter& filter;
    Request& request;
    Completion completion;
  };
  uint64_t delay_ms_;
};

class FaultFilter final : public Filter {
 public:
  FaultFilter(std::unique_ptr<Device> below, const FaultOptions& options)
      : Filter(std::move(below)), options_(options), random_(options.seed) {
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
    Filter::start(request, std::move(completion));
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
      case Command::kCache:
      case Command::kBlockStatus: return false;
    }
    const std::lock_guard lock(mutex_);
    return random_() % options_.one_in == 0;
  }

  FaultOptions options_;
  std::mutex mutex_;
  std::mt19937_64 random_;
  std::atomic<bool> poisoned_{false};
};

}  // namespace

std::unique_ptr<Device> make_readonly_filter(std::unique_ptr<Device> below) {
  return std::make_unique<ReadonlyFilter>(std::move(below));
}

std::unique_ptr<Device> make_delay_filter(std::unique_ptr<Device> below, uint64_t delay_ms) {
  return std::make_unique<DelayFilter>(std::move(below), delay_ms);
}

std::unique_ptr<Device> make_fault_filter(std::unique_ptr<Device> below, const FaultOptions& options) {
  return std::make_unique<FaultFilter>(std::move(below), options);
}

}  // namespace netblk::store
