// SPDX-License-Identifier: GPL-2.0-only
#include "sim/client.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/check.h"

namespace netblk::sim {

using block::Command;
using client::Netblk2Client;

struct SimClient::Asked : block::Request {
  explicit Asked(SimClient& of)
      : Request([](Request& self) {
          auto& asked = static_cast<Asked&>(self);
          asked.client.ended(asked);
        }),
        client(of) {}
  SimClient& client;
  std::vector<std::byte> bytes;
  WriteId id = 0;
  uint64_t issued = 0;  // tick
  uint64_t issued_at_ms = 0;
  uint64_t epoch = 0;
  uint64_t replaced = 0;
  bool done = false;
  coro::Event end;
};

SimClient::SimClient(World& world, SimLoop& loop, Network& network, Host& host, Model& model, Disk& disk,
                     client::Options2 options, const WorkPlan& work)
    : world_(world), loop_(loop), model_(model), disk_(disk), options_(std::move(options)), work_(work),
      writer_(model.new_writer()), dialer_(network, host, writer_) {
  options_.on_lost = [this](const std::string&) {
    world_.count(Count::kLosses);
    world_.note("lost", writer_);
    model_.told_lost(writer_);
    told_lost_ = true;
    owner_wake_.set();
  };
}

SimClient::~SimClient() { NETBLK_CHECK(asked_.empty(), "a simulated client is destroyed with requests in flight"); }

coro::Task<void> SimClient::run() {
  world_.note("client begins", writer_);
  auto opened = co_await Netblk2Client::open_on(loop_, dialer_, options_, [this] { return world_.random.next(); });
  if (!opened) {
    open_error_ = opened.error();
    world_.note("open failed", writer_, static_cast<uint64_t>(opened.error().code));
    ended_ = true;
    co_return;
  }
  client_ = std::move(opened).value();
  world_.note("opened", writer_);
  coro::Scope scope;
  if (!killed_) {
    for (unsigned i = 0; i < work_.workers; ++i) scope.spawn(worker());
    scope.spawn(owner());
  }
  while (!stopping_ && !killed_) co_await wake_.wait();
  owner_wake_.set();
  if (!killed_) {
    // What is in flight ends by itself, or by a kill that comes meanwhile.
    while (scope.running() != 0 && !killed_) {
      io::SleepUntil pause(loop_, loop_.now_ms() + 20);
      co_await pause;
    }
  }
  world_.note("client ends", writer_, killed_, drop_);
  if (killed_ || drop_) {
    co_await client_->drop();
  } else {
    co_await client_->close();
  }
  co_await scope.join();
  const client::Status2 status = client_->status();
  world_.count(Count::kReplays, status.replayed);
  world_.count(Count::kGaveUp, status.timed_out);
  client_ = nullptr;
  ended_ = true;
}

void SimClient::stop(bool drop) {
  stopping_ = true;
  drop_ = drop;
  wake_.set();
}

void SimClient::kill(bool peer_hears) {
  if (killed_ || ended_) return;
  killed_ = true;
  world_.count(Count::kClientKills);
  world_.note("client dies", writer_, peer_hears);
  dialer_.end_process(peer_hears);
  wake_.set();
}

coro::Task<void> SimClient::owner() {
  while (!stopping_ && !killed_) {
    co_await owner_wake_.wait();
    if (!client_->lost() || killed_) continue;
    io::SleepUntil pause(loop_, loop_.now_ms() + world_.random.skewed(1, 3'000));
    co_await pause;
    if (killed_) co_return;
    world_.count(Count::kLossResets);
    world_.note("loss acknowledged", writer_);
    model_.told_lost(writer_);
    told_lost_ = false;
    client_->reset_lost();
  }
}

coro::Task<void> SimClient::worker() {
  while (!stopping_ && !killed_) {
    const int error = co_await one_request();
    if (error == 0 && !calm_ && world_.random.one_in(3)) continue;
    // Who is told of an error, and has nothing to wait for, tries again in a while.
    const uint64_t pause_us = calm_ ? world_.random.between(2'000'000, 8'000'000)
                              : error != 0 ? world_.random.between(10'000, 800'000)
                                           : world_.random.skewed(0, work_.think_us);
    io::SleepUntil pause(loop_, (world_.now_us() + pause_us) / 1000);
    co_await pause;
  }
}

void SimClient::choose(Asked& asked) {
  Random& random = world_.random;
  uint64_t kind = random.below(100);
  if (kind < work_.flushes) {
    asked.command = Command::kFlush;
    return;
  }
  kind -= work_.flushes;
  asked.command = kind < work_.writes                                ? Command::kWrite
                  : kind < work_.writes + work_.trims                ? Command::kTrim
                  : kind < work_.writes + work_.trims + work_.zeroes ? Command::kWriteZeroes
                                                                     : Command::kRead;
  if (options_.read_only) asked.command = Command::kRead;
  const uint64_t blocks = client_->size_bytes() / kBlock;
  const uint64_t range = random.percent(50) ? std::min(blocks, work_.hot_blocks) : blocks;
  const uint64_t length = std::min(range, 1 + random.skewed(0, work_.max_blocks - 1));
  asked.offset = random.between(0, range - length) * kBlock;
  asked.length = length * kBlock;
  asked.fua = asked.modifies() && random.percent(work_.fua);
  // What cannot be told apart from an earlier one is not asked.
  if (asked.modifies() && !model_.can_issue(asked.command, asked.offset, asked.length)) asked.command = Command::kWrite;
}

coro::Task<int> SimClient::one_request() {
  Asked asked(*this);
  choose(asked);
  submit(asked);
  while (!asked.done) co_await asked.end.wait();
  co_return asked.error;
}

void SimClient::submit(Asked& asked) {
  asked.loop = &loop_;
  asked.issued_at_ms = loop_.now_ms();
  asked.epoch = model_.epoch();
  asked.replaced = disk_.replaced();
  asked_.push_back(&asked);
  world_.count(Count::kRequests);
  if (asked.modifies()) {
    const bool soft = world_.random.percent(work_.soft);
    asked.id = model_.issue(writer_, asked.command, asked.offset, asked.length, asked.fua, soft);
    if (asked.command == Command::kWrite) {
      asked.bytes.resize(asked.length);
      for (uint64_t at = 0; at < asked.length; at += kBlock)
        fill_block(std::span(asked.bytes).subspan(at, kBlock), asked.id, (asked.offset + at) / kBlock, soft);
    }
    if (asked.fua) world_.count(Count::kFuas);
  } else {
    asked.issued = asked.command == Command::kRead ? model_.issue_read() : model_.issue_flush();
    if (asked.command == Command::kRead) asked.bytes.assign(asked.length, std::byte{0xee});
  }
  asked.data = asked.bytes.data();
  world_.note("issue", static_cast<uint64_t>(asked.command), asked.id, asked.offset / kBlock << 32 | asked.length / kBlock);
  client_->submit(asked);
}

// Called when the request ends, before anything else can happen.
void SimClient::ended(Asked& asked) {
  NETBLK_CHECK(!asked.done, "a request ends twice");
  asked.done = true;
  asked.end.set();
  std::erase(asked_, &asked);
  if (asked.command == Command::kRead) model_.end_read(asked.issued);
  world_.note("end", static_cast<uint64_t>(asked.command), asked.id, static_cast<uint64_t>(asked.error));
  // Of a dead process nobody hears anything: what it had under way may still happen until its session is fenced.
  if (killed_) return;
  const uint64_t waited_ms = loop_.now_ms() - asked.issued_at_ms;
  if (waited_ms > bound_ms())
    world_.fail("every request ends within bounded time", "a {} of writer {} took {} ms, of {} at most",
                block::command_text(asked.command), writer_, waited_ms, options_.request_timeout_ms);
  if (asked.error == EINVAL || asked.error == EPROTO || asked.error == EROFS || asked.error == EOPNOTSUPP)
    world_.fail("protocol", "a {} of {} bytes at {} fails: {}", block::command_text(asked.command), asked.length,
                asked.offset, errno_text(asked.error));
  if (asked.error != 0) {
    world_.count(Count::kErrors);
    if (asked.modifies()) model_.end(asked.id, false);
    return;
  }
  if (asked.replaced != 0)
    world_.fail("a foreign store is refused", "a {} succeeds on a store that took the place of the client's own",
                block::command_text(asked.command));
  if (!asked.modifies()) model_.served(writer_, asked.issued);
  const bool lost = client_->lost() || told_lost_;
  if (lost) model_.told_lost(writer_);
  const bool durable = asked.command == Command::kFlush || asked.fua;
  if (durable && lost)
    world_.fail("after a loss every flush fails until the loss is acknowledged", "a {} of writer {} succeeds",
                asked.fua ? "FUA" : "flush", writer_);
  switch (asked.command) {
    case Command::kRead:
      world_.count(Count::kReads);
      model_.check_read(writer_, asked.issued, asked.epoch, asked.offset, asked.bytes);
      break;
    case Command::kFlush:
      world_.count(Count::kFlushes);
      model_.flushed(writer_, asked.issued);
      break;
    case Command::kWrite: world_.count(Count::kWrites); break;
    case Command::kTrim: world_.count(Count::kTrims); break;
    case Command::kWriteZeroes: world_.count(Count::kZeroes); break;
    case Command::kCache:
    case Command::kBlockStatus: break;  // never asked: netblk/2 has no such request
  }
  if (asked.modifies()) model_.end(asked.id, true);
}

void SimClient::check_deadlines() {
  if (killed_) return;
  for (const Asked* asked : asked_)
    if (loop_.now_ms() > asked->issued_at_ms + bound_ms())
      world_.fail("every request ends within bounded time", "a {} of writer {} waits for {} ms, of {} at most",
                  block::command_text(asked->command), writer_, loop_.now_ms() - asked->issued_at_ms,
                  options_.request_timeout_ms);
}

coro::Task<std::string> SimClient::prove() {
  for (const Command command : {Command::kWrite, Command::kFlush, Command::kRead}) {
    if (command == Command::kWrite && options_.read_only) continue;
    Asked asked(*this);
    asked.command = command;
    if (command != Command::kFlush) asked.length = kBlock;
    submit(asked);
    while (!asked.done) co_await asked.end.wait();
    if (asked.error != 0)
      co_return fmt::format("{} fails: {}; state {}, last error: {}", block::command_text(command), errno_text(asked.error),
                            client::state_text(client_->state()), client_->status().last_error);
  }
  co_return std::string();
}

}  // namespace netblk::sim
