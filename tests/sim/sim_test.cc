// SPDX-License-Identifier: GPL-2.0-only
// The simulator's own parts: what the network and the disk promise, and that a seed replays.
#include <gtest/gtest.h>

#include <cerrno>
#include <cstring>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coro/event.h"
#include "coro/scope.h"
#include "sim/disk.h"
#include "sim/network.h"
#include "sim/sim_loop.h"
#include "sim/world.h"

namespace netblk::sim {
namespace {

TEST(World, EventsRunInTheOrderOfTimeAndThenOfTheirMaking) {
  World world(1);
  std::string order;
  world.after(20, [&] { order += 'c'; });
  world.after(10, [&] { order += 'a'; });
  world.after(10, [&] { order += 'b'; });
  while (!world.idle()) (void)world.step(UINT64_MAX);
  EXPECT_EQ(order, "abc");
}

TEST(World, TheGeneratorIsTheSameEverywhere) {
  Random random(42);
  EXPECT_EQ(random.next(), 1546998764402558742u);
  EXPECT_EQ(random.next(), 6990951692964543102u);
}

TEST(World, TheSystemsRandomBytesComeFromTheSeed) {
  seed_system_random(5);
  const Id first = random_id();
  seed_system_random(5);
  EXPECT_EQ(random_id(), first);
  seed_system_random(6);
  EXPECT_NE(random_id(), first);
}

std::byte pattern(uint64_t at) { return static_cast<std::byte>((at * 0x9e3779b97f4a7c15) >> 56); }

// Sends a pattern and ends the stream; counts what it got out.
coro::Task<void> send_pattern(io::Stream& stream, uint64_t length, uint64_t& sent) {
  std::vector<std::byte> bytes;
  while (sent < length) {
    bytes.assign(std::min<uint64_t>(9000, length - sent), std::byte{0});
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = pattern(sent + i);
    const iovec parts[2] = {{bytes.data(), bytes.size() / 2}, {bytes.data() + bytes.size() / 2, bytes.size() - bytes.size() / 2}};
    const int32_t result = co_await io::send(stream, parts);
    if (result <= 0) co_return;
    sent += static_cast<uint64_t>(result);
  }
  stream.shutdown_write();
}

// Reads to the end; every byte must be the pattern's. `last`: how it ended.
coro::Task<void> check_pattern(io::Stream& stream, uint64_t& got, int32_t& last) {
  std::vector<std::byte> buffer(5000);
  for (;;) {
    const int32_t result = co_await io::recv(stream, buffer);
    last = result;
    if (result <= 0) co_return;
    for (int32_t i = 0; i < result; ++i)
      if (buffer[static_cast<size_t>(i)] != pattern(got + static_cast<uint64_t>(i))) {
        last = 1;
        co_return;
      }
    got += static_cast<uint64_t>(result);
  }
}

struct Transfer {
  bool dialled = false;
  uint64_t sent = 0, got = 0;
  int32_t last = 99;
  uint64_t hash = 0;
  uint64_t ended_at_us = 0;
};

struct OneWay {
  World& world;
  SimLoop& loop;
  SimDialer& dialer;
  coro::Scope& scope;
  std::unique_ptr<io::Stream>& server;
  Transfer& result;
  uint64_t length;
  void (*fault)(World&, Connection&);
  std::shared_ptr<Connection>& connection;
};

coro::Task<void> serve(std::unique_ptr<io::Stream>& stream, Transfer& result) {
  co_await check_pattern(*stream, result.got, result.last);
  stream = nullptr;
}

coro::Task<void> one_way(OneWay test) {
  auto dialled = co_await test.dialer.dial(test.loop, test.loop.now_ms() + 5000);
  if (dialled) {
    test.result.dialled = true;
    const auto stream = std::move(dialled).value();
    co_await io::SleepUntil(test.loop, test.loop.now_ms() + 10);
    if (test.fault != nullptr) test.fault(test.world, *test.connection);
    co_await send_pattern(*stream, test.length, test.result.sent);
    std::vector<std::byte> rest(16);
    (void)co_await io::recv(*stream, rest);
  }
  co_await test.scope.join();
}

Transfer transfer(uint64_t seed, const NetworkPlan& plan, uint64_t length, void (*fault)(World&, Connection&) = nullptr) {
  World world(seed);
  SimLoop loop(world);
  Network network(world, plan);
  Host host;
  coro::Scope scope;
  Transfer result;
  std::unique_ptr<io::Stream> server;
  std::shared_ptr<Connection> connection;
  host.accept = [&](std::unique_ptr<io::Stream> stream, std::shared_ptr<Connection> accepted) {
    server = std::move(stream);
    connection = std::move(accepted);
    scope.spawn(serve(server, result));
  };
  SimDialer dialer(network, host, 1);
  loop.run(one_way({world, loop, dialer, scope, server, result, length, fault, connection}));
  connection = nullptr;
  world.note("end", result.sent, result.got);
  result.hash = world.hash();
  result.ended_at_us = world.now_us();
  while (!world.idle()) (void)world.step(UINT64_MAX);
  EXPECT_EQ(network.live_connections(), 0u) << "a connection leaks";
  return result;
}

TEST(Network, AStreamIsWholeAndInOrder) {
  for (uint64_t seed = 1; seed <= 30; ++seed) {
    const Transfer done = transfer(seed, {}, 300'000);
    ASSERT_TRUE(done.dialled);
    EXPECT_EQ(done.sent, 300'000u);
    EXPECT_EQ(done.got, 300'000u);
    EXPECT_EQ(done.last, 0) << "the end of the stream comes after the last byte";
  }
}

TEST(Network, ASeedReplaysExactlyAndAnotherDoesNot) {
  const Transfer first = transfer(7, {}, 100'000);
  const Transfer again = transfer(7, {}, 100'000);
  const Transfer other = transfer(8, {}, 100'000);
  EXPECT_EQ(first.hash, again.hash);
  EXPECT_EQ(first.ended_at_us, again.ended_at_us);
  EXPECT_NE(first.hash, other.hash);
}

TEST(Network, AFlippedBitArrivesFlipped) {
  NetworkPlan plan;
  plan.flip_one_in = 4;
  EXPECT_EQ(transfer(3, plan, 300'000).last, 1);
}

TEST(Network, BytesAreCutOutDoubledAndSplicedWhereThePlanSaysSo) {
  NetworkPlan plan;
  plan.flip_one_in = 4;
  plan.splices = true;
  bool shorter = false, longer = false;
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    const Transfer done = transfer(seed, plan, 20'000);
    shorter = shorter || done.got < 20'000u;
    longer = longer || done.last == 1;
  }
  EXPECT_TRUE(shorter && longer);
}

TEST(Network, AHalfOpenLinkLosesEverythingInSilenceUntilTheHostsGiveUp) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    const Transfer done = transfer(seed, {}, 1'000'000, [](World&, Connection& link) { link.kill_direction(0); });
    EXPECT_LT(done.got, 1u);
    EXPECT_EQ(done.last, -ETIMEDOUT);
    EXPECT_GT(done.ended_at_us, NetworkPlan{}.keepalive_low_us);
  }
}

TEST(Network, AStallDelaysAndLosesNothing) {
  const Transfer done = transfer(5, {}, 50'000, [](World& world, Connection& link) { link.stall(0, world.now_us() + 9'000'000); });
  EXPECT_EQ(done.got, 50'000u);
  EXPECT_GT(done.ended_at_us, 9'000'000u);
}

TEST(Network, AResetReachesBothSides) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    const Transfer done = transfer(seed, {}, 10'000'000, [](World& world, Connection& link) {
      world.after(5'000, [held = link.shared_from_this()] { held->reset_both(); });
    });
    EXPECT_LT(done.got, 10'000'000u);
    EXPECT_EQ(done.last, -ECONNRESET);
  }
}

TEST(Network, APeerThatLostItsPowerAnswersByAResetOnceItIsBack) {
  const Transfer done = transfer(5, {}, 10'000'000, [](World& world, Connection& link) {
    link.end_process(1, false);
    world.after(2'000'000, [held = link.shared_from_this()] { held->host_is_back(1); });
  });
  EXPECT_TRUE(done.dialled);
  EXPECT_LT(done.ended_at_us, NetworkPlan{}.keepalive_low_us);
}

TEST(Network, WhereNobodyListensADialIsRefused) {
  World world(1);
  SimLoop loop(world);
  Network network(world, {});
  Host host;
  SimDialer dialer(network, host, 1);
  Transfer result;
  coro::Scope scope;
  std::unique_ptr<io::Stream> server;
  std::shared_ptr<Connection> connection;
  loop.run(one_way({world, loop, dialer, scope, server, result, 1, nullptr, connection}));
  EXPECT_FALSE(result.dialled);
}

// --- The disk -------------------------------------------------------------------------------------------------------

struct Asked : block::Request {
  Asked() : Request([](Request& self) { static_cast<Asked&>(self).ended.set(); }) {}
  coro::Event ended;
};

coro::Task<void> ask(SimLoop& loop, block::Device& device, block::Command command, uint64_t offset, char fill, int& error,
                     std::string* read = nullptr, bool fua = false) {
  Asked request;
  std::vector<std::byte> data(kBlock, static_cast<std::byte>(fill));
  request.loop = &loop;
  request.command = command;
  request.offset = offset;
  request.length = command == block::Command::kFlush ? 0 : kBlock;
  request.data = data.data();
  request.fua = fua;
  device.submit(request);
  co_await request.ended.wait();
  error = request.error;
  if (read != nullptr) read->assign(reinterpret_cast<const char*>(data.data()), 1);
}

coro::Task<void> unflushed_and_flushed(SimLoop& loop, Disk& disk, std::string& blocks, uint64_t& moved) {
  auto device = disk.open(1);
  const uint64_t before = device->generation().counter;
  int error = 0;
  co_await ask(loop, *device, block::Command::kWrite, 0, 'f', error);
  co_await ask(loop, *device, block::Command::kFlush, 0, 0, error);
  EXPECT_EQ(error, 0);
  co_await ask(loop, *device, block::Command::kWrite, kBlock, 'a', error, nullptr, true);
  co_await ask(loop, *device, block::Command::kWrite, 2 * kBlock, 'u', error);
  EXPECT_EQ(error, 0);
  device->end_process();
  device = nullptr;
  device = disk.open(2);
  EXPECT_EQ(device->generation().counter, before) << "a process crash over a sound page cache keeps the generation";
  co_await ask(loop, *device, block::Command::kWrite, 3 * kBlock, 'v', error);
  device->end_process();
  device = nullptr;
  disk.reboot();
  device = disk.open(3);
  moved = device->generation().counter - before;
  for (uint64_t i = 0; i < 4; ++i) {
    std::string read;
    co_await ask(loop, *device, block::Command::kRead, i * kBlock, 0, error, &read);
    blocks += read[0] == 0 ? '0' : read[0];
  }
  co_await ask(loop, *device, block::Command::kFlush, 0, 0, error);
  device->close();
  device = nullptr;
  disk.reboot();
  device = disk.open(4);
  EXPECT_EQ(device->generation().counter, before + moved) << "a store that was closed clean keeps its generation";
  device->end_process();
}

TEST(Disk, KeepsWhatWasFlushedAndTellsByItsGenerationThatTheRestMayBeGone) {
  std::set<std::string> seen;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    World world(seed);
    SimLoop loop(world);
    Disk disk(world, {}, {});
    std::string blocks;
    uint64_t moved = 0;
    loop.run(unflushed_and_flushed(loop, disk, blocks, moved));
    EXPECT_EQ(blocks.substr(0, 3), "fau") << "opened again after the crash, the store has synced its cache";
    EXPECT_EQ(moved, 1u);
    seen.insert(blocks);
  }
  EXPECT_EQ(seen.size(), 2u) << "what was not flushed is there after some reboots and gone after others";
}

coro::Task<void> failed_sync(SimLoop& loop, Disk& disk) {
  auto device = disk.open(1);
  int error = 0;
  co_await ask(loop, *device, block::Command::kWrite, 0, 'u', error);
  const uint64_t before = device->generation().counter;
  disk.plan().sync_error_one_in = 1;
  co_await ask(loop, *device, block::Command::kFlush, 0, 0, error);
  EXPECT_EQ(error, EIO);
  EXPECT_EQ(device->generation().counter, before + 1) << "before the error is told";
  disk.plan().sync_error_one_in = 0;
  co_await ask(loop, *device, block::Command::kFlush, 0, 0, error);
  EXPECT_EQ(error, EIO) << "never make a failed sync good by a second one";
  co_await ask(loop, *device, block::Command::kWrite, 0, 'w', error);
  EXPECT_EQ(error, EIO);
  device->end_process();
  device = nullptr;
  device = disk.open(2);
  co_await ask(loop, *device, block::Command::kFlush, 0, 0, error);
  EXPECT_EQ(error, 0);
  device->end_process();
}

TEST(Disk, AFailedSyncPoisonsUntilItIsOpenedAgain) {
  World world(1);
  SimLoop loop(world);
  Disk disk(world, {}, {});
  loop.run(failed_sync(loop, disk));
}

coro::Task<void> abandoned(SimLoop& loop, Disk& disk) {
  auto device = disk.open(1);
  std::atomic<bool> gone{true};
  std::vector<std::byte> data(kBlock, std::byte{'x'});
  Asked request;
  request.loop = &loop;
  request.command = block::Command::kWrite;
  request.length = kBlock;
  request.data = data.data();
  request.abandoned = &gone;
  device->submit(request);
  co_await request.ended.wait();
  EXPECT_EQ(request.error, ECANCELED);
  EXPECT_EQ(disk.block(0)[0], std::byte{0});
  device->end_process();
}

TEST(Disk, WhatIsAbandonedDoesNotReachIt) {
  World world(1);
  SimLoop loop(world);
  Disk disk(world, {}, {});
  loop.run(abandoned(loop, disk));
}

coro::Task<void> owners(SimLoop& loop, Disk& disk, bool crash, size_t& kept) {
  auto device = disk.open(1);
  const Status stored = co_await device->keep_owners(loop, std::vector<std::byte>(5));
  EXPECT_TRUE(stored.ok());
  device->end_process();
  device = nullptr;
  if (crash) disk.reboot();
  device = disk.open(2);
  kept = device->owners().size();
  device->end_process();
}

TEST(Disk, TheOwnersRecordSurvivesAProcessAndAReboot) {
  for (const bool crash : {false, true}) {
    World world(1);
    SimLoop loop(world);
    Disk disk(world, {}, {});
    size_t kept = 0;
    loop.run(owners(loop, disk, crash, kept));
    EXPECT_EQ(kept, 5u);
  }
}

}  // namespace
}  // namespace netblk::sim
