// SPDX-License-Identifier: GPL-2.0-only
#include "sim/scenario.h"

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "coro/scope.h"
#include "sim/client.h"
#include "sim/model.h"
#include "sim/network.h"
#include "sim/observer.h"
#include "sim/server.h"
#include "sim/sim_loop.h"

namespace netblk::sim {
namespace {

// After the last fault: heartbeats, keepalives, backoffs and fences have run out by then.
constexpr uint64_t kHealMs = 150'000;

enum class Fault : uint8_t {
  kReset, kHalfOpen, kStall, kPartition, kServerKill, kServerStop, kReboot, kClientKill, kClientStop, kWriteBack, kBadSync,
  kBadStore, kBadOwners, kStuckStore, kResize, kReplace, kRival,
  kLast,
};
constexpr size_t kFaults = static_cast<size_t>(Fault::kLast);

struct Plan {
  NetworkPlan network;
  DiskPlan disk;
  WorkPlan work;
  client::Options2 options;
  unsigned clients = 1;
  bool shared = false;
  uint64_t duration_ms = 30'000;
  uint64_t pause_ms = 2'000;  // between two faults, at most
  std::array<uint64_t, kFaults> weights{};
};

Plan make_plan(Random& random) {
  Plan plan;
  NetworkPlan& net = plan.network;
  net.delay_low_us = random.skewed(10, 5'000);
  net.delay_high_us = net.delay_low_us + random.skewed(100, 50'000);
  net.buffer_low_bytes = random.skewed(2'000, 64'000);
  net.buffer_high_bytes = net.buffer_low_bytes + random.skewed(1'000, 500'000);
  net.segment_bytes = random.between(64, 30'000);
  if (random.percent(40)) net.refused = random.skewed(1, 40);
  if (random.percent(40)) net.lost = random.skewed(1, 30);
  if (random.percent(40)) net.late = random.skewed(1, 30);
  if (random.percent(40)) net.accepted_late = random.skewed(1, 40);
  if (random.percent(30)) net.duplicated = random.skewed(1, 30);
  if (random.percent(40)) net.silent_resets = random.skewed(1, 60);

  DiskPlan& disk = plan.disk;
  disk.size_bytes = random.skewed(16u << 10, 256u << 10) / kBlock * kBlock;
  disk.inline_io = random.percent(25);
  disk.heeds_abandoned = random.percent(50);
  disk.io_high_us = disk.io_low_us + random.skewed(10, 30'000);
  disk.sync_high_us = disk.sync_low_us + random.skewed(100, 200'000);

  WorkPlan& work = plan.work;
  work.workers = static_cast<unsigned>(random.between(1, 8));
  work.think_us = random.skewed(1'000, 400'000);
  work.max_blocks = random.skewed(1, 24);
  work.hot_blocks = random.between(4, 64);
  work.flushes = random.skewed(1, 30);
  work.writes = random.between(20, 60);
  work.fua = random.percent(50) ? random.skewed(0, 40) : 0;

  client::Options2& options = plan.options;
  options.name = "simulated";
  options.export_name = random.percent(50) ? "disk" : "";
  options.connections = static_cast<unsigned>(random.between(1, 4));
  options.slots = static_cast<uint32_t>(random.percent(50) ? 16 : random.between(16, 64));
  options.crc32c = random.percent(50);
  if (options.crc32c && random.percent(30)) {
    options.must_have_crc32c = true;
    net.flip_one_in = random.between(50, 2'000);
    net.splices = random.percent(50);
  }
  options.lz4 = random.percent(25);
  options.zstd = random.percent(25);
  options.heartbeat_ms = random.percent(80) ? static_cast<uint32_t>(random.skewed(1'000, 10'000)) : 0;
  options.request_timeout_ms = random.percent(50) ? random.between(1'000, 20'000) : random.between(20'000, 120'000);
  options.connect_timeout_ms = random.between(500, 5'000);
  options.welcome_timeout_ms = random.between(1'000, 15'000);
  options.dead_time_ms = random.percent(50) ? random.between(2'000, 20'000) : random.between(20'000, 120'000);
  options.min_backoff_ms = random.between(10, 200);
  options.max_backoff_ms = options.min_backoff_ms + random.skewed(100, 5'000);

  plan.clients = random.percent(35) ? static_cast<unsigned>(random.between(2, 3)) : 1;
  plan.shared = plan.clients > 1 && random.percent(40);
  plan.duration_ms = random.between(5'000, 40'000);
  plan.pause_ms = random.skewed(200, 8'000);
  const auto weigh = [&](Fault fault, uint64_t share, uint64_t weight) {
    if (random.percent(share)) plan.weights[static_cast<size_t>(fault)] = 1 + random.below(weight);
  };
  weigh(Fault::kReset, 70, 10);
  weigh(Fault::kHalfOpen, 40, 5);
  weigh(Fault::kStall, 60, 8);
  weigh(Fault::kPartition, 40, 3);
  weigh(Fault::kServerKill, 45, 5);
  weigh(Fault::kServerStop, 25, 2);
  weigh(Fault::kReboot, 40, 4);
  weigh(Fault::kClientKill, 35, 3);
  weigh(Fault::kClientStop, 20, 2);
  weigh(Fault::kWriteBack, 50, 6);
  weigh(Fault::kBadSync, 12, 2);
  weigh(Fault::kBadStore, 15, 2);
  weigh(Fault::kBadOwners, 10, 2);
  weigh(Fault::kStuckStore, 30, 3);
  weigh(Fault::kResize, 15, 2);
  weigh(Fault::kReplace, 3, 1);
  if (plan.clients > 1) weigh(Fault::kRival, 80, 4);
  return plan;
}

class Run {
 public:
  Run(World& world, const PlantedBugs& bugs)
      : world_(world), loop_(world), plan_(make_plan(world.random)), network_(world, plan_.network),
        disk_(world, plan_.disk, bugs), model_(world, disk_), observer_(world, model_), server_(world, loop_, network_, disk_) {
    disk_.set_watcher(&model_);
    network_.set_tap([this](uint64_t writer, bool duplicate) { return observer_.make_tap(writer, duplicate); });
  }

  void run() {
    loop_.run(main());
    // What is still on its way has no one to come to.
    network_.forget_closed();
    while (!world_.idle()) (void)world_.step(UINT64_MAX);
    if (const size_t left = network_.live_connections(); left != 0)
      world_.fail("nothing leaks", "{} connections are still held after everybody has gone", left);
  }

 private:
  // One disk attached to one machine: processes with the same client id, one after the other.
  struct Seat {
    Id client_id;
    unsigned number = 0;
    std::unique_ptr<SimClient> client;
    bool leave = false;  // the owner wants it down for now
  };

  coro::Task<void> main();
  coro::Task<void> seat(Seat& seat);
  coro::Task<void> strike();
  coro::Task<void> server_down(bool power);
  coro::Task<void> server_restart();
  coro::Task<void> trouble(uint64_t DiskPlan::* what, uint64_t one_in);
  coro::Task<void> heal();
  coro::Task<void> watch();
  coro::Task<void> pause(uint64_t ms) {
    io::SleepUntil wait(loop_, loop_.now_ms() + ms);
    co_await wait;
  }
  Fault choose_fault();
  SimClient* some_client();
  void start_server();

  World& world_;
  SimLoop loop_;
  const Plan plan_;
  Network network_;
  Disk disk_;
  Model model_;
  Observer observer_;
  SimServer server_;
  std::vector<std::unique_ptr<Seat>> seats_;
  coro::Scope scope_;
  bool healed_ = false;
  bool over_ = false;
  bool restarting_ = false;
  uint64_t rivals_ = 0;  // attempts to take the disk over that are due
};

coro::Task<void> Run::main() {
  server_.start();
  for (unsigned i = 0; i < plan_.clients; ++i) {
    auto seat = std::make_unique<Seat>();
    seat->client_id = random_id();
    seat->number = i;
    seats_.push_back(std::move(seat));
  }
  scope_.spawn(watch());
  coro::Scope clients;
  for (const auto& each : seats_) clients.spawn(seat(*each));
  coro::Scope faults;
  const uint64_t end_ms = loop_.now_ms() + plan_.duration_ms;
  while (loop_.now_ms() < end_ms) {
    co_await pause(world_.random.skewed(1, plan_.pause_ms));
    co_await strike();
  }
  co_await heal();
  co_await clients.join();
  over_ = true;
  co_await scope_.join();
  co_await server_.stop();
  co_await server_.join();
  model_.check_store("at the end");
}

// Whoever waits longer than anybody may is found within a second.
coro::Task<void> Run::watch() {
  while (!over_) {
    co_await pause(1'000);
    for (const auto& each : seats_)
      if (each->client != nullptr) each->client->check_deadlines();
  }
}

coro::Task<void> Run::seat(Seat& seat) {
  Random& random = world_.random;
  bool first = true;
  while (!healed_ || first) {
    if (disk_.replaced() != 0) break;
    client::Options2 options = plan_.options;
    options.client_id = seat.client_id;
    options.shared = plan_.shared;
    // The first one has the disk; the others ask for it, now and then for good.
    const bool rival = !plan_.shared && seat.number != 0;
    if (rivals_ > 0 && !plan_.shared) {
      --rivals_;
      options.takeover = true;
    }
    if (rival && !options.takeover) options.read_only = random.percent(30);
    first = false;
    seat.client = std::make_unique<SimClient>(world_, loop_, network_, server_.host(), model_, disk_, options, plan_.work);
    SimClient& client = *seat.client;
    scope_.spawn(client.run());
    // It lives until it is killed or stopped, or cannot open, or is out for good.
    uint64_t in_error_since_ms = 0;
    while (!client.ended() && !healed_) {
      co_await pause(100);
      if (!client.opened() || client.killed()) continue;
      if (client.state() != client::State::kError) {
        in_error_since_ms = 0;
      } else if (in_error_since_ms == 0) {
        in_error_since_ms = loop_.now_ms();
      } else if (loop_.now_ms() > in_error_since_ms + 5'000 && !client.killed() && random.one_in(20)) {
        client.stop(random.percent(50));
      }
    }
    if (healed_) break;
    seat.client = nullptr;
    co_await pause(random.skewed(10, 4'000));
  }
  if (seat.client == nullptr) co_return;
  // All faults are over. What is left must work, or say why it cannot.
  SimClient& client = *seat.client;
  if (!client.ended() && !client.killed()) {
    client.calm();
    co_await pause(kHealMs);
    if (client.opened() && !client.killed()) {
      const bool excused = disk_.replaced() != 0 || model_.is_superseded(client.writer()) || observer_.is_fenced(client.writer());
      const std::string trouble = co_await client.prove();
      if (!trouble.empty() && !excused)
        world_.fail("liveness", "writer {} does not work {} s after the last fault: {}", client.writer(), kHealMs / 1000, trouble);
    }
    client.stop(random.percent(20));
  }
  const uint64_t give_up_at_ms = loop_.now_ms() + 300'000;
  while (!client.ended()) {
    co_await pause(100);
    if (loop_.now_ms() > give_up_at_ms) world_.fail("liveness", "writer {} does not end", client.writer());
  }
  seat.client = nullptr;
}

Fault Run::choose_fault() {
  uint64_t sum = 0;
  for (const uint64_t weight : plan_.weights) sum += weight;
  if (sum == 0) return Fault::kLast;
  uint64_t chosen = world_.random.below(sum);
  for (size_t i = 0; i < kFaults; ++i) {
    if (chosen < plan_.weights[i]) return static_cast<Fault>(i);
    chosen -= plan_.weights[i];
  }
  return Fault::kLast;
}

SimClient* Run::some_client() {
  std::vector<SimClient*> living;
  for (const auto& each : seats_)
    if (each->client != nullptr && !each->client->killed() && !each->client->ended()) living.push_back(each->client.get());
  return living.empty() ? nullptr : living[world_.random.below(living.size())];
}

void Run::start_server() {
  if (server_.running()) return;
  server_.start();
  // A process crash loses nothing that was acknowledged, a reboot nothing that was flushed.
  model_.check_store("opened");
}

coro::Task<void> Run::server_down(bool power) {
  if (!server_.running()) co_return;
  world_.count(power ? Count::kHostReboots : Count::kServerKills);
  server_.kill(power);
  if (power) disk_.reboot();
  co_await pause(world_.random.skewed(1, power ? 20'000 : 8'000));
  if (power) server_.host_is_back();
  if (power) co_await pause(world_.random.skewed(0, 3'000));
  start_server();
}

coro::Task<void> Run::server_restart() {
  world_.count(Count::kServerStops);
  co_await server_.stop();
  // With the process gone in order, a reboot loses nothing.
  if (!server_.running() && world_.random.percent(30)) {
    world_.count(Count::kHostReboots);
    disk_.reboot();
  }
  co_await pause(world_.random.skewed(1, 5'000));
  start_server();
}

coro::Task<void> Run::trouble(uint64_t DiskPlan::* what, uint64_t one_in) {
  disk_.plan().*what = one_in;
  co_await pause(world_.random.skewed(100, 3'000));
  disk_.plan().*what = 0;
}

coro::Task<void> Run::strike() {
  Random& random = world_.random;
  const Fault fault = choose_fault();
  world_.note("fault", static_cast<uint64_t>(fault));
  const auto links = network_.open_connections();
  const std::shared_ptr<Connection> link = links.empty() ? nullptr : links[random.below(links.size())];
  switch (fault) {
    case Fault::kReset:
      if (link == nullptr) break;
      world_.count(Count::kResets);
      link->reset_both();
      break;
    case Fault::kHalfOpen:
      if (link == nullptr) break;
      world_.count(Count::kHalfOpen);
      link->kill_direction(static_cast<int>(random.below(2)));
      if (random.percent(30)) link->kill_direction(static_cast<int>(random.below(2)));
      break;
    case Fault::kStall:
      if (link == nullptr) break;
      world_.count(Count::kStalls);
      link->stall(static_cast<int>(random.below(2)), world_.now_us() + random.skewed(10'000, 20'000'000));
      break;
    case Fault::kPartition:
      world_.count(Count::kPartitions);
      network_.partition(world_.now_us() + random.skewed(100'000, 15'000'000));
      break;
    case Fault::kServerKill: co_await server_down(false); break;
    case Fault::kServerStop: co_await server_restart(); break;
    case Fault::kReboot: co_await server_down(true); break;
    case Fault::kClientKill:
      if (SimClient* client = some_client()) client->kill(random.percent(60));
      break;
    case Fault::kClientStop:
      if (SimClient* client = some_client()) client->stop(random.percent(30));
      break;
    case Fault::kWriteBack: disk_.write_back(); break;
    case Fault::kBadSync:
      co_await trouble(&DiskPlan::sync_error_one_in, random.between(1, 5));
      // Its owner starts the server again; a store whose sync failed works no more.
      if (disk_.poisoned()) co_await server_restart();
      break;
    case Fault::kBadStore: co_await trouble(&DiskPlan::error_one_in, random.between(2, 20)); break;
    case Fault::kBadOwners: co_await trouble(&DiskPlan::owner_error_one_in, random.between(1, 3)); break;
    case Fault::kStuckStore:
      disk_.plan().stuck_us = random.skewed(100'000, 15'000'000);
      co_await trouble(&DiskPlan::stuck_one_in, random.between(2, 30));
      break;
    case Fault::kResize:
      if (disk_.replaced() != 0) break;
      disk_.grow(random.between(1, 64) * kBlock);
      model_.grown();
      break;
    case Fault::kReplace:
      if (!server_.running() || disk_.replaced() != 0) break;
      server_.kill(false);
      // Who was not told the old one's name yet would take the new one for its own, and rightly.
      for (const auto& each : seats_)
        if (each->client != nullptr && !each->client->opened()) each->client->kill(true);
      disk_.replace();
      model_.replaced();
      observer_.store_replaced();
      co_await pause(random.skewed(1, 3'000));
      start_server();
      break;
    case Fault::kRival:
      ++rivals_;
      if (SimClient* client = some_client(); client != nullptr && random.percent(50)) client->stop(random.percent(50));
      break;
    case Fault::kLast: break;
  }
}

coro::Task<void> Run::heal() {
  world_.note("healed");
  NetworkPlan& net = network_.plan();
  net.refused = net.lost = net.late = net.accepted_late = net.duplicated = 0;
  net.flip_one_in = 0;
  net.silent_resets = 0;
  DiskPlan& disk = disk_.plan();
  disk.stuck_one_in = disk.error_one_in = disk.sync_error_one_in = disk.owner_error_one_in = 0;
  if (disk_.poisoned()) co_await server_restart();
  start_server();
  healed_ = true;
}

}  // namespace

RunResult run_seed(uint64_t seed, const RunOptions& options, Counts& counts) {
  World world(seed);
  world.set_tracing(options.trace);
  seed_system_random(seed);
  RunResult result;
  {
    Run run(world, options.bugs);
    run.run();
  }
  result.hash = world.hash();
  result.virtual_us = world.now_us();
  for (size_t i = 0; i < counts.size(); ++i) counts[i] += world.counts()[i];
  return result;
}

}  // namespace netblk::sim
