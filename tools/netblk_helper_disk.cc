// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_disk.h"

#include <cerrno>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "base/limits.h"
#include "base/log.h"
#include "client/nbd_client.h"
#include "client/open_auto.h"
#include "coro/event.h"
#include "netblk_export.h"
#include "netblk_latency.h"
#include "netblk_names.h"
#include "protocol/nbd_wire.h"
#include "store_spec.h"
#include "transport/tcp.h"
#include "transport/tcp_dialer.h"

namespace netblk::tools {
namespace {

using nlohmann::json;

constexpr uint64_t kStoreLockMs = 10'000;

json counted(const block::Device& device) {
  const block::Counters counters = device.counters();
  return {{"size_bytes", device.size_bytes()},
          {"read_bytes", counters.read_bytes},
          {"write_bytes", counters.write_bytes},
          {"errors", counters.errors}};
}

void add_status(json& live, const client::ClientStatus& status) {
  live["state"] = client::state_text(status.state);
  live["reconnects"] = status.reconnects;
  live["last_error"] = status.last_error;
  live["lost"] = status.lost;
  live["lost_why"] = status.lost_reason;
  live["oldest_ms"] = status.oldest_ms;
  live["latency"] =
      told_latencies({.reads = status.reads, .writes = status.writes, .flushes = status.flushes, .trims = status.trims});
}

template <class Client>
std::string reset_lost_of(Client& client, const std::string& name) {
  if (!client.lost()) return "nothing";
  log_warning("{}: the owner has taken note of the loss", name);
  client.reset_lost();
  return "ok";
}

// What every disk has to be as it was asked for.
Status check_wish(const std::string& source, const block::Device& device, const AttachOptions& options) {
  const block::Geometry geometry = device.geometry();
  if (options.size_bytes != 0 && options.size_bytes != geometry.size_bytes)
    return make_error(EINVAL, "{} has {} bytes, not {}: leave --size out", source, geometry.size_bytes, options.size_bytes);
  if (!options.read_only && geometry.read_only)
    return make_error(EROFS, "{} is read-only: attach it with --read-only", source);
  return Ok{};
}

// Of netblk/2 and NBD: how long requests wait for a server.
template <class Options>
void set_deadlines(Options& wanted, const AttachOptions& options) {
  if (options.timeout_given) {
    wanted.dead_time_ms = 3 * options.timeout_ms;
    wanted.request_timeout_ms = 4 * options.timeout_ms;
  }
  if (options.for_ever) {
    wanted.dead_time_ms = kForEverMs;
    wanted.request_timeout_ms = 0;
  }
}

// Of a netblk server, whichever version it speaks.
class NetblkDisk final : public HelperDisk {
 public:
  // Every deadline is the user's --timeout, or three times that.
  Status open(io::Backend& backend, const io::Clock& clock, const ServerUri& uri, const AttachOptions& options,
              const std::string& purpose, uint64_t unflushed) {
    const uint64_t timeout_ms = options.timeout_ms;
    client::Options2 netblk2;
    netblk2.name = uri.text();
    netblk2.export_name = uri.export_name;
    netblk2.client_id = client_id_of(purpose + " " + uri.text());
    netblk2.read_only = options.read_only;
    netblk2.shared = options.shared;
    netblk2.takeover = options.takeover;
    netblk2.connections = options.connections;
    netblk2.unflushed = unflushed;
    netblk2.connect_timeout_ms = timeout_ms;
    set_deadlines(netblk2, options);
    client::Options netblk1{.name = uri.text(),
                            .size_bytes = options.size_bytes,
                            .read_only = options.read_only,
                            .timeout_ms = timeout_ms};
    if (options.for_ever) netblk1.tries = std::numeric_limits<unsigned>::max();
    auto opened = client::open_auto(
        backend, clock, std::make_unique<transport::TcpDialer>(uri.host, uri.port), netblk2,
        [uri](uint64_t within_ms) { return transport::tcp_connect(uri.host, uri.port, within_ms); }, netblk1);
    if (!opened) return std::move(opened).error();
    client_ = std::move(opened).value();
    if (client_.netblk1 && (options.shared || options.takeover))
      return make_error(EINVAL, "{} speaks netblk/1, which has no owners: --shared and --takeover mean nothing there",
                        uri.address());
    return check_wish(uri.text(), client_.device(), options);
  }

  block::Device& device() override { return client_.device(); }
  io::Loop& loop() override { return client_.netblk2 ? client_.netblk2->loop() : client_.netblk1->loop(); }
  DiskTraits traits() const override {
    // A WRITE of netblk/1 is durable when it is answered, and it has no other command.
    if (!client_.netblk2)
      return {.block_bytes = limits::kSectorBytes, .volatile_cache = false, .fua = false, .can_write_zeroes = false};
    const client::Session2Info info = client_.netblk2->info();
    return {.block_bytes = info.block_bytes, .preferred_bytes = info.preferred_bytes};
  }
  std::optional<block::Generation> generation() const override {
    if (!client_.netblk2) return std::nullopt;
    return client_.netblk2->generation();
  }

  json live_state() override {
    json live = counted(device());
    if (client_.netblk1) {
      live["protocol"] = "1";
      add_status(live, client_.netblk1->status());
      return live;
    }
    live["protocol"] = "2";
    add_status(live, client_.netblk2->status());
    live["generation"] = client_.netblk2->generation().counter;
    return live;
  }
  std::string reset_lost(const std::string& name) override {
    return client_.netblk2 ? reset_lost_of(*client_.netblk2, name) : "nothing";
  }

 private:
  client::OpenedAuto client_;
};

// Of an NBD server, by our own client: it tells of a loss where the kernel's nbd cannot.
class NbdDisk final : public HelperDisk {
 public:
  Status open(io::Backend& backend, const io::Clock& clock, const ServerUri& uri, const AttachOptions& options) {
    client::NbdOptions wanted = nbd_options_of(uri, options.read_only, options.connections, options.trust_reconnect);
    wanted.name = uri.text();
    wanted.connect_timeout_ms = options.timeout_ms;
    set_deadlines(wanted, options);
    auto opened = client::NbdClient::open(backend, clock, make_dialer(uri), wanted);
    if (!opened) return make_error(opened.error().code, "{}: {}", uri.text(), opened.error().message);
    client_ = std::move(opened).value();
    return check_wish(uri.text(), *client_, options);
  }

  block::Device& device() override { return *client_; }
  io::Loop& loop() override { return client_->loop(); }
  DiskTraits traits() const override {
    const client::NbdInfo info = client_->info();
    return {.block_bytes = info.found.min_block_bytes,
            .preferred_bytes = info.found.preferred_block_bytes,
            .volatile_cache = info.can(NBD_FLAG_SEND_FLUSH),
            .fua = info.can(NBD_FLAG_SEND_FUA),
            .can_write_zeroes = info.can(NBD_FLAG_SEND_WRITE_ZEROES)};
  }

  json live_state() override {
    json live = counted(*client_);
    live["protocol"] = "nbd";
    add_status(live, client_->status());
    return live;
  }
  std::string reset_lost(const std::string& name) override { return reset_lost_of(*client_, name); }

 private:
  std::unique_ptr<client::NbdClient> client_;
};

// A store of this machine, with a thread for its requests.
class StoreDisk final : public HelperDisk {
 public:
  StoreDisk() : stop_(*this) {}
  ~StoreDisk() override {
    if (!thread_.joinable()) return;
    loop_->post(stop_);
    thread_.join();
  }
  Status open(io::Backend& backend, const io::Clock& clock, const Source& source, const AttachOptions& options) {
    const std::string& store = source.text;
    keeps_ = source.survives_helper() && !store.starts_with("null:");
    const Surroundings surroundings{.state_folder = {}, .lock_wait_ms = kStoreLockMs, .trace = {}};
    auto device = open_store(backend, store, options.read_only, surroundings, store);
    if (!device) return std::move(device).error();
    device_ = std::move(device).value();
    Status wished = check_wish(store, *device_, options);
    if (!wished) return wished;
    auto loop = backend.make_loop(clock);
    if (!loop) return std::move(loop).error();
    loop_ = std::move(loop).value();
    thread_ = std::thread([this] { loop_->run(until_stopped()); });
    return Ok{};
  }

  block::Device& device() override { return *device_; }
  io::Loop& loop() override { return *loop_; }
  std::optional<block::Generation> generation() const override {
    if (!keeps_) return std::nullopt;
    return device_->generation();
  }
  void refresh() override { device_->refresh_size(); }

  json live_state() override {
    json live = counted(*device_);
    live["protocol"] = "";
    live["state"] = "connected";
    return live;
  }
  std::string reset_lost(const std::string&) override { return "nothing"; }

 private:
  struct Stop : io::Posted {
    explicit Stop(StoreDisk& of)
        : Posted([](coro::Runnable& self) { static_cast<Stop&>(self).disk.stopped_.set(); }), disk(of) {}
    StoreDisk& disk;
  };
  coro::Task<void> until_stopped() { co_await stopped_.wait(); }

  bool keeps_ = false;  // another process finds the same contents
  std::unique_ptr<block::Device> device_;
  std::unique_ptr<io::Loop> loop_;
  coro::Event stopped_;
  Stop stop_;
  std::thread thread_;
};

template <class Disk>
Result<std::unique_ptr<HelperDisk>> opened_as(std::unique_ptr<Disk> disk, Status opened) {
  if (!opened) return std::move(opened).error();
  return std::unique_ptr<HelperDisk>(std::move(disk));
}

}  // namespace

Result<std::unique_ptr<HelperDisk>> open_helper_disk(io::Backend& backend, const io::Clock& clock, const Source& source,
                                                     const AttachOptions& options, const std::string& purpose,
                                                     uint64_t unflushed) {
  if (source.is_store()) {
    auto disk = std::make_unique<StoreDisk>();
    Status opened = disk->open(backend, clock, source, options);
    return opened_as(std::move(disk), std::move(opened));
  }
  if (source.is_nbd()) {
    auto disk = std::make_unique<NbdDisk>();
    Status opened = disk->open(backend, clock, *source.uri, options);
    return opened_as(std::move(disk), std::move(opened));
  }
  auto disk = std::make_unique<NetblkDisk>();
  Status opened = disk->open(backend, clock, *source.uri, options, purpose, unflushed);
  return opened_as(std::move(disk), std::move(opened));
}

}  // namespace netblk::tools
