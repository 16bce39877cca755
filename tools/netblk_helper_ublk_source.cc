// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_ublk_source.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "base/limits.h"
#include "base/log.h"
#include "client/nbd_client.h"
#include "coro/event.h"
#include "coro/task.h"
#include "netblk_export.h"
#include "netblk_helper_client.h"
#include "protocol/nbd_wire.h"
#include "store_spec.h"

namespace netblk::tools {
namespace {

using attach::UblkTraits;
using nlohmann::json;

// What file systems align themselves to, where the source prefers nothing.
constexpr uint32_t kUsualBytes = 4096;
constexpr uint64_t kStoreLockMs = 10'000;

UblkTraits traits_of(const block::Geometry& geometry, uint32_t block_bytes, uint32_t preferred_bytes) {
  UblkTraits traits;
  traits.size_bytes = geometry.size_bytes;
  traits.read_only = geometry.read_only;
  traits.rotational = geometry.rotational;
  traits.can_trim = geometry.can_trim;
  traits.logical_bytes = std::max(block_bytes, limits::kSectorBytes);
  traits.physical_bytes = std::max(traits.logical_bytes, kUsualBytes);
  traits.optimal_bytes = std::max(traits.physical_bytes, std::bit_floor(preferred_bytes));
  return traits;
}

json counters_of(const block::Device& device) {
  const block::Counters counters = device.counters();
  return {{"size_bytes", device.size_bytes()},
          {"read_bytes", counters.read_bytes},
          {"write_bytes", counters.write_bytes},
          {"errors", counters.errors}};
}

class NetblkSource final : public UblkSource {
 public:
  ~NetblkSource() override { client_.close(); }
  Status open(io::Backend& backend, const io::Clock& clock, const ServerUri& uri, const AttachOptions& options) {
    return client_.open(backend, clock, uri, options, "ublk");
  }
  block::Device& device() override { return client_.device(); }
  io::Loop& loop() override { return client_.loop(); }
  UblkTraits traits() override {
    const auto info = client_.info2();
    const block::Geometry geometry = client_.device().geometry();
    UblkTraits traits = traits_of(geometry, info ? info->block_bytes : limits::kSectorBytes, info ? info->preferred_bytes : kUsualBytes);
    // A WRITE of netblk/1 is durable when it is answered, and it has no other command.
    traits.volatile_cache = traits.fua = traits.can_write_zeroes = info.has_value();
    return traits;
  }
  std::optional<block::Generation> generation() override {
    if (!client_.info2()) return std::nullopt;
    return client_.device().generation();
  }
  json live_state() override { return client_.live_state(); }
  std::string reset_lost(const std::string& disk) override { return client_.reset_lost(disk); }

 private:
  HelperClient client_;
};

class NbdServerSource final : public UblkSource {
 public:
  Status open(io::Backend& backend, const io::Clock& clock, const ServerUri& uri, const AttachOptions& options) {
    client::NbdOptions wanted;
    wanted.name = uri.text();
    wanted.export_name = uri.export_name;
    wanted.read_only = options.read_only;
    wanted.connections = options.connections;
    wanted.connect_timeout_ms = options.timeout_ms;
    if (options.timeout_given) {
      wanted.dead_time_ms = 3 * options.timeout_ms;
      wanted.request_timeout_ms = 4 * options.timeout_ms;
    }
    auto opened = client::NbdClient::open(backend, clock, make_dialer(uri), wanted);
    if (!opened) return make_error(opened.error().code, "{}: {}", uri.text(), opened.error().message);
    client_ = std::move(opened).value();
    if (!options.read_only && client_->info().read_only())
      return make_error(EROFS, "{} is read-only: attach it with --read-only", uri.text());
    return Ok{};
  }
  block::Device& device() override { return *client_; }
  io::Loop& loop() override { return client_->loop(); }
  UblkTraits traits() override {
    const client::NbdInfo info = client_->info();
    UblkTraits traits = traits_of(client_->geometry(), info.found.min_block_bytes, info.found.preferred_block_bytes);
    traits.volatile_cache = info.can(NBD_FLAG_SEND_FLUSH);
    traits.fua = info.can(NBD_FLAG_SEND_FUA);
    traits.can_write_zeroes = info.can(NBD_FLAG_SEND_WRITE_ZEROES);
    return traits;
  }
  // NBD has none.
  std::optional<block::Generation> generation() override { return std::nullopt; }
  json live_state() override {
    const client::ClientStatus now = client_->status();
    json live = counters_of(*client_);
    live["protocol"] = "nbd";
    live["state"] = client::state_text(now.state);
    live["reconnects"] = now.reconnects;
    live["last_error"] = now.last_error;
    live["lost"] = now.lost;
    live["lost_why"] = now.lost_reason;
    return live;
  }
  std::string reset_lost(const std::string& disk) override {
    if (!client_->lost()) return "nothing";
    log_warning("{}: the owner has taken note of the loss", disk);
    client_->reset_lost();
    return "ok";
  }

 private:
  std::unique_ptr<client::NbdClient> client_;
};

class StoreSource final : public UblkSource {
 public:
  ~StoreSource() override {
    if (!thread_.joinable()) return;
    loop_->post(stop_);
    thread_.join();
  }
  Status open(io::Backend& backend, const io::Clock& clock, const NbdSource& source, const AttachOptions& options) {
    const Surroundings surroundings{.state_folder = {}, .lock_wait_ms = kStoreLockMs, .trace = {}};
    auto device = open_store(backend, source.text, options.read_only, surroundings, source.text);
    if (!device) return std::move(device).error();
    device_ = std::move(device).value();
    if (!options.read_only && device_->geometry().read_only)
      return make_error(EROFS, "{} is read-only: attach it with --read-only", source.text);
    keeps_ = source.survives_helper() && !source.text.starts_with("null:");
    auto loop = backend.make_loop(clock);
    if (!loop) return std::move(loop).error();
    loop_ = std::move(loop).value();
    thread_ = std::thread([this] { loop_->run(until_stopped(stop_.stopped)); });
    return Ok{};
  }
  block::Device& device() override { return *device_; }
  io::Loop& loop() override { return *loop_; }
  UblkTraits traits() override {
    UblkTraits traits = traits_of(device_->geometry(), limits::kSectorBytes, kUsualBytes);
    traits.volatile_cache = traits.fua = traits.can_write_zeroes = true;
    return traits;
  }
  std::optional<block::Generation> generation() override {
    if (!keeps_) return std::nullopt;
    return device_->generation();
  }
  void refresh() override { device_->refresh_size(); }
  json live_state() override {
    json live = counters_of(*device_);
    live["state"] = "connected";
    return live;
  }
  std::string reset_lost(const std::string&) override { return "nothing"; }

 private:
  struct Stop : io::Posted {
    Stop() : Posted([](coro::Runnable& self) { static_cast<Stop&>(self).stopped.set(); }) {}
    coro::Event stopped;
  };
  static coro::Task<void> until_stopped(coro::Event& stopped) { co_await stopped.wait(); }

  std::unique_ptr<block::Device> device_;
  bool keeps_ = false;
  std::unique_ptr<io::Loop> loop_;
  Stop stop_;
  std::thread thread_;
};

// What no disk of ublk can be.
Status check(UblkSource& source, const std::string& text, const AttachOptions& options) {
  const attach::UblkTraits traits = source.traits();
  const auto page = static_cast<uint32_t>(::sysconf(_SC_PAGESIZE));
  if (traits.size_bytes < traits.logical_bytes)
    return make_error(EINVAL, "{} has {} bytes: a disk has at least one block of {}", text, traits.size_bytes, traits.logical_bytes);
  if (traits.logical_bytes > page)
    return make_error(EINVAL, "{} has blocks of {} bytes: a disk of ublk can have {} at most", text,
                      traits.logical_bytes, page);
  if (options.size_bytes != 0 && options.size_bytes != traits.size_bytes)
    return make_error(EINVAL, "{} has {} bytes, not {}: leave --size out", text, traits.size_bytes, options.size_bytes);
  return Ok{};
}

template <class Source, class... Arguments>
Result<std::unique_ptr<UblkSource>> opened(const std::string& text, const AttachOptions& options, Arguments&&... arguments) {
  auto source = std::make_unique<Source>();
  Status done = source->open(std::forward<Arguments>(arguments)..., options);
  if (done) done = check(*source, text, options);
  if (!done) return std::move(done).error();
  return std::unique_ptr<UblkSource>(std::move(source));
}

}  // namespace

Result<std::unique_ptr<UblkSource>> open_ublk_source(io::Backend& backend, const io::Clock& clock, const NbdSource& source,
                                                     const AttachOptions& options) {
  if (source.is_store()) return opened<StoreSource>(source.text, options, backend, clock, source);
  if (source.is_netblk()) return opened<NetblkSource>(source.text, options, backend, clock, *source.uri);
  return opened<NbdServerSource>(source.text, options, backend, clock, *source.uri);
}

}  // namespace netblk::tools
