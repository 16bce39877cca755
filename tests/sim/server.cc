// SPDX-License-Identifier: GPL-2.0-only
#include "sim/server.h"

#include <utility>

#include "base/check.h"
#include "io/address.h"

namespace netblk::sim {

using Served = server::Connection;

// What netblk_server has in one shard, without sockets (src/server/shard.cc).
struct SimServer::Process {
  struct Sweep : io::Timer {
    explicit Sweep(Process& of)
        : Timer(of.loop, [](coro::Runnable& self) { static_cast<Sweep&>(self).process.sweep(); }), process(of) {}
    Process& process;
  };

  Process(SimLoop& on, Disk& disk, uint64_t id)
      : loop(on), number(id), context{on, {}, {}}, device(disk.open(id)), sweep_timer(*this) {
    server::ExportConfig config;
    config.name = "disk";
    std::vector<std::shared_ptr<server::Export>> list;
    list.push_back(std::make_shared<server::Export>(config, device));
    exports.replace(std::move(list));
  }

  void sweep() {
    const uint64_t now = loop.now_ms();
    if (now / 1000 != last_refresh_s) device->refresh_size();
    last_refresh_s = now / 1000;
    for (Served* connection : open) connection->sweep(now);
    if (!open.empty()) sweep_timer.arm(now + limits::kSweepPeriodMs);
  }

  coro::Task<void> serve(std::unique_ptr<io::Stream> stream, uint64_t id) {
    Served connection(context, exports, server::Protocol::kNetblk, std::move(stream), io::Address{},
                      fmt::format("connection {}", id));
    open.push_back(&connection);
    if (!sweep_timer.armed() && !sweep_timer.queued) sweep_timer.arm(loop.now_ms() + limits::kSweepPeriodMs);
    co_await connection.run();
    std::erase(open, &connection);
  }

  SimLoop& loop;
  const uint64_t number;
  server::SessionContext context;
  std::shared_ptr<SimDevice> device;
  server::ExportTable exports;
  coro::Scope scope;
  std::vector<Served*> open;  // in the order of arrival
  std::vector<std::weak_ptr<Connection>> links;
  uint64_t last_refresh_s = 0;
  Sweep sweep_timer;
};

SimServer::SimServer(World& world, SimLoop& loop, Network& network, Disk& disk)
    : world_(world), loop_(loop), network_(network), disk_(disk) {}

SimServer::~SimServer() { NETBLK_CHECK(process_ == nullptr && dead_.empty(), "a simulated server is not joined"); }

void SimServer::start() {
  NETBLK_CHECK(process_ == nullptr, "two server processes");
  reap();
  host_.up = true;
  process_ = std::make_unique<Process>(loop_, disk_, next_process_++);
  host_.accept = [this](std::unique_ptr<io::Stream> stream, std::shared_ptr<Connection> connection) {
    std::erase_if(process_->links, [](const auto& weak) { return weak.expired(); });
    process_->links.push_back(connection);
    // An accept is reaped like any completion: the connection begins to run from the ready queue.
    struct Accepted : coro::Posted {
      Accepted(Process& to, std::unique_ptr<io::Stream> accepted, uint64_t id)
          : Posted([](coro::Runnable& self) {
              const std::unique_ptr<Accepted> message(&static_cast<Accepted&>(static_cast<Posted&>(self)));
              message->process.scope.spawn(message->process.serve(std::move(message->stream), message->number));
            }),
            process(to), stream(std::move(accepted)), number(id) {}
      Process& process;
      std::unique_ptr<io::Stream> stream;
      uint64_t number;
    };
    coro::ReadyQueue::current().push(*new Accepted(*process_, std::move(stream), connection->number()));
  };
}

void SimServer::kill(bool power) {
  if (process_ == nullptr) return;
  world_.note("server dies", process_->number, power);
  host_.accept = nullptr;
  host_.up = !power;
  for (const auto& weak : process_->links)
    if (const auto link = weak.lock()) link->end_process(1, !power);
  process_->device->end_process();
  dead_.push_back(std::move(process_));
}

void SimServer::host_is_back() {
  host_.up = true;
  network_.host_is_back();
}

coro::Task<void> SimServer::stop() {
  Process* const process = process_.get();
  if (process == nullptr) co_return;
  world_.note("server stops", process->number);
  host_.accept = nullptr;
  for (Served* connection : process->open) connection->drain("the server stops");
  const uint64_t give_up_at_ms = loop_.now_ms() + limits::kDrainTimeoutMs;
  while (process->scope.running() != 0 && loop_.now_ms() < give_up_at_ms && process_.get() == process) {
    io::SleepUntil pause(loop_, loop_.now_ms() + 10);
    co_await pause;
  }
  if (process_.get() != process) co_return;  // killed meanwhile
  if (process->scope.running() != 0) {
    kill(false);
    co_return;
  }
  process->device->close();
  process->sweep_timer.cancel();
  dead_.push_back(std::move(process_));
}

void SimServer::reap() {
  std::erase_if(dead_, [](const std::unique_ptr<Process>& process) {
    if (process->scope.running() != 0 || process->sweep_timer.queued) return false;
    process->sweep_timer.cancel();
    return true;
  });
}

coro::Task<void> SimServer::join() {
  const uint64_t give_up_at_ms = loop_.now_ms() + 300'000;
  for (;;) {
    reap();
    if (dead_.empty()) co_return;
    if (loop_.now_ms() > give_up_at_ms)
      world_.fail("liveness", "{} connections of a dead server process do not come to their end",
                  dead_.front()->scope.running());
    io::SleepUntil pause(loop_, loop_.now_ms() + 100);
    co_await pause;
  }
}

}  // namespace netblk::sim
