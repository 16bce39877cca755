// SPDX-License-Identifier: GPL-2.0-only
// Loops on both back ends: timers, the mailbox, and whose thread runs what.
#include "io/loop.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <optional>
#include <thread>
#include <vector>

#include "base/limits.h"
#include "coro/event.h"
#include "io/backends_test.h"

namespace netblk::io {
namespace {

using test::BackendTest;
using test::settle;

class LoopTest : public BackendTest {};
NETBLK_ON_BOTH_BACKENDS(LoopTest);

static_assert(!std::is_copy_constructible_v<Timer> && !std::is_move_constructible_v<Timer>);
static_assert(!std::is_copy_constructible_v<Loop> && !std::is_move_constructible_v<Loop>);

class ManualClock final : public Clock {
 public:
  uint64_t now_ms() const override { return now; }
  uint64_t now = 1000;
};

struct NotedTimer : Timer {
  NotedTimer(Loop& loop, std::vector<int>& fired, int number)
      : Timer(loop, [](coro::Runnable& self) {
          auto& timer = static_cast<NotedTimer&>(self);
          timer.fired_.push_back(timer.number_);
          if (timer.then != nullptr) timer.then(timer);
        }),
        fired_(fired), number_(number) {}
  void (*then)(NotedTimer&) = nullptr;
  NotedTimer* other = nullptr;

 private:
  std::vector<int>& fired_;
  int number_;
};

// --- Running -------------------------------------------------------------------------------------------------------

coro::Task<void> note_thread(std::thread::id& id) {
  co_await settle();
  id = std::this_thread::get_id();
}

TEST_P(LoopTest, RunsOnTheCallingThreadAgainAndAgain) {
  for (int i = 0; i < 3; ++i) {
    std::thread::id id;
    run(note_thread(id));
    EXPECT_EQ(id, std::this_thread::get_id());
  }
}

TEST_P(LoopTest, MayBeMadeOnOneThreadAndRunOnAnother) {
  std::thread::id id;
  std::thread other([&] { run(note_thread(id)); });
  const std::thread::id expected = other.get_id();
  other.join();
  EXPECT_EQ(id, expected);
}

// --- Busy polling, and rests ---------------------------------------------------------------------------------------

// Sends a byte for each that comes, until the end.
void echo(int fd) {
  char byte;
  while (::read(fd, &byte, 1) == 1)
    if (::write(fd, &byte, 1) != 1) return;
}

coro::Task<void> ask(Loop& loop, Stream& stream, int times, int counted) {
  std::byte byte{1};
  for (int i = 0; i < times; ++i) {
    const std::array<iovec, 1> part{{{&byte, 1}}};
    const int32_t sent = co_await io::send(stream, part);
    EXPECT_EQ(sent, 1);
    const int32_t got = co_await io::recv(stream, {&byte, 1});
    EXPECT_EQ(got, 1);
    for (int j = 0; j < counted; ++j) loop.count_request();
  }
}

coro::Task<void> ask_and_pause(Loop& loop, Stream& stream, uint64_t& looks_before, uint64_t& looks_after) {
  co_await ask(loop, stream, 100, 0);
  looks_before = loop.vain_looks();
  for (int i = 0; i < 10; ++i) {
    SleepUntil pause(loop, loop.now_ms() + 2);
    co_await pause;
  }
  looks_after = loop.vain_looks();
}

TEST_P(LoopTest, ABusyLoopWithoutTrafficLooksOnceMoreAndThenWaits) {
  test::FdPair ends = test::tcp_pair();
  std::thread peer([&] { echo(ends.peer.get()); });
  {
    const auto stream = loop().make_stream(std::move(ends.ours));
    uint64_t before = 0;
    uint64_t after = 0;
    loop().set_busy_poll_us(300);
    run(ask_and_pause(loop(), *stream, before, after));
    EXPECT_GE(after, before);
    EXPECT_LE(after, before + 1);
    loop().set_busy_poll_us(0);
    run(ask_and_pause(loop(), *stream, before, after));
    EXPECT_EQ(after, before);
  }
  peer.join();
}

struct Counted : Posted {
  explicit Counted(std::atomic<int>& to)
      : Posted([](coro::Runnable& self) { ++static_cast<Counted&>(static_cast<Posted&>(self)).count; }), count(to) {}
  std::atomic<int>& count;
};

coro::Task<void> wait_for(Loop& loop, const std::atomic<int>& count, int wanted) {
  while (count.load() < wanted) {
    SleepUntil pause(loop, loop.now_ms() + 1);
    co_await pause;
  }
}

TEST_P(LoopTest, ABusyLoopHearsWhatIsPosted) {
  test::FdPair ends = test::tcp_pair();
  std::thread peer([&] { echo(ends.peer.get()); });
  std::atomic<int> count{0};
  std::array<std::optional<Counted>, 200> messages;
  {
    const auto stream = loop().make_stream(std::move(ends.ours));
    loop().set_busy_poll_us(limits::kMaxBusyPollUs);
    std::thread poster([&] {
      for (auto& message : messages) {
        loop().post(message.emplace(count));
        std::this_thread::yield();
      }
    });
    run(ask(loop(), *stream, 50, 0));
    run(wait_for(loop(), count, 200));
    poster.join();
  }
  peer.join();
  EXPECT_EQ(count, 200);
}

TEST_P(LoopTest, RestsOnlyWhereTheyAreAllowedAndLosesNothing) {
  test::FdPair ends = test::tcp_pair();
  std::thread peer([&] { echo(ends.peer.get()); });
  {
    const auto stream = loop().make_stream(std::move(ends.ours));
    run(ask(loop(), *stream, 500, 10));
    EXPECT_EQ(loop().rests(), 0u);
    loop().allow_rests();
    loop().set_busy_poll_us(1);
    run(ask(loop(), *stream, 500, 10));
    EXPECT_EQ(loop().rests(), 0u);
    loop().set_busy_poll_us(0);
    run(ask(loop(), *stream, 500, 10));
    EXPECT_GT(loop().rests(), 0u);
  }
  peer.join();
}

TEST_P(LoopTest, SaysWhatServesIt) {
  const std::string text = loop().description();
  EXPECT_NE(text.find(std::string(backend().name())), std::string::npos) << text;
  std::thread::id id;
  run(note_thread(id));
  EXPECT_EQ(loop().description(), text);
}

// A loop without a kernel. What waits without a limit is a request, which comes at once.
class NoKernelLoop final : public Loop {
 public:
  explicit NoKernelLoop(ManualClock& clock) : Loop(clock), clock_(clock) {}
  std::unique_ptr<Stream> make_stream(UniqueFd) override { return nullptr; }
  std::unique_ptr<Listener> make_listener(UniqueFd) override { return nullptr; }
  std::string description() const override { return "none"; }
  coro::Event request;
  uint64_t look_takes_ms = 0;
  std::vector<int64_t> waits;  // the times that it was told to wait for

 private:
  void poll(int64_t timeout_ms) override {
    if (timeout_ms < 0) return request.set();
    waits.push_back(timeout_ms);
    clock_.now += timeout_ms == 0 ? look_takes_ms : static_cast<uint64_t>(timeout_ms);
  }
  bool has_news() const override { return false; }
  void wake() override {}
  ManualClock& clock_;
};

coro::Task<void> serve_and_sleep(NoKernelLoop& loop, uint64_t sleep_ms) {
  co_await loop.request.wait();
  co_await SleepUntil(loop, loop.now_ms() + sleep_ms);
}

TEST(BusyLoop, ALookInVainIsNotWaitedForAgain) {
  ManualClock clock;
  NoKernelLoop loop(clock);
  loop.set_busy_poll_us(100);
  loop.look_takes_ms = 3;
  loop.run(serve_and_sleep(loop, 5));
  EXPECT_EQ(loop.waits, (std::vector<int64_t>{0, 2, 0})) << "it waits for 5 ms after 3 of them";
}

TEST(BusyLoop, ATimerWhoseTimeComesInALookFires) {
  ManualClock clock;
  NoKernelLoop loop(clock);
  loop.set_busy_poll_us(100);
  loop.look_takes_ms = 5;
  loop.run(serve_and_sleep(loop, 5));
  EXPECT_EQ(loop.waits, (std::vector<int64_t>{0, 0})) << "it waited for a timer that was due";
}

// --- Timers --------------------------------------------------------------------------------------------------------

// A manual clock, and a loop that never waits: something is always ready while settle() turns it.
class TimerTest : public BackendTest {
 public:
  Loop& loop() { return *timed_; }
  void run(coro::Task<void> task) { timed_->run(std::move(task)); }
  ManualClock clock;
  std::vector<int> fired;

 protected:
  void SetUp() override {
    BackendTest::SetUp();
    if (!IsSkipped()) timed_ = backend().make_loop(clock).value();
  }

 private:
  std::unique_ptr<Loop> timed_;
};
NETBLK_ON_BOTH_BACKENDS(TimerTest);

coro::Task<void> fire_in_order(TimerTest& t) {
  NotedTimer one(t.loop(), t.fired, 1), two(t.loop(), t.fired, 2), three(t.loop(), t.fired, 3);
  two.arm(1020);
  three.arm(1030);
  one.arm(1010);
  EXPECT_TRUE(one.armed());
  co_await settle();
  EXPECT_TRUE(t.fired.empty()) << "fired before its time";
  t.clock.now = 1009;
  co_await settle();
  EXPECT_TRUE(t.fired.empty());
  t.clock.now = 1010;
  co_await settle();
  EXPECT_EQ(t.fired, (std::vector<int>{1}));
  EXPECT_FALSE(one.armed());
  t.clock.now = 5000;
  co_await settle();
  EXPECT_EQ(t.fired, (std::vector<int>{1, 2, 3})) << "late ones fire in the order of their times";
  co_await settle();
  EXPECT_EQ(t.fired.size(), 3u) << "fired twice";
}

TEST_P(TimerTest, FireOnceInTheOrderOfTheirTimes) { run(fire_in_order(*this)); }

coro::Task<void> fire_past(TimerTest& t) {
  NotedTimer past(t.loop(), t.fired, 1);
  past.arm(1);
  EXPECT_TRUE(t.fired.empty()) << "arm() ran it";
  co_await settle();
  EXPECT_EQ(t.fired, (std::vector<int>{1}));
}

TEST_P(TimerTest, ATimeInThePastFiresSoon) { run(fire_past(*this)); }

coro::Task<void> cancel_timer(TimerTest& t) {
  NotedTimer one(t.loop(), t.fired, 1), two(t.loop(), t.fired, 2);
  one.cancel();  // of nothing
  one.arm(1010);
  two.arm(1010);
  one.cancel();
  EXPECT_FALSE(one.armed());
  t.clock.now = 2000;
  co_await settle();
  EXPECT_EQ(t.fired, (std::vector<int>{2}));
}

TEST_P(TimerTest, ACancelledTimerDoesNotFire) { run(cancel_timer(*this)); }

coro::Task<void> rearm_timer(TimerTest& t) {
  NotedTimer later(t.loop(), t.fired, 1), sooner(t.loop(), t.fired, 2);
  later.arm(1010);
  later.arm(1500);
  sooner.arm(3000);
  sooner.arm(1200);
  t.clock.now = 1300;
  co_await settle();
  EXPECT_EQ(t.fired, (std::vector<int>{2}));
  t.clock.now = 4000;
  co_await settle();
  EXPECT_EQ(t.fired, (std::vector<int>{2, 1}));
}

TEST_P(TimerTest, ArmingAgainMovesIt) { run(rearm_timer(*this)); }

coro::Task<void> rearm_from_run(TimerTest& t) {
  NotedTimer timer(t.loop(), t.fired, 1);
  timer.then = [](NotedTimer& self) { self.arm(1'000'000); };
  timer.arm(1000);
  co_await settle();
  EXPECT_EQ(t.fired.size(), 1u);
  EXPECT_TRUE(timer.armed());
  t.clock.now = 1'000'000;
  timer.then = nullptr;
  co_await settle();
  EXPECT_EQ(t.fired.size(), 2u);
}

TEST_P(TimerTest, MayBeArmedByItsOwnRun) { run(rearm_from_run(*this)); }

coro::Task<void> destroy_timer(TimerTest& t) {
  {
    NotedTimer gone(t.loop(), t.fired, 1);
    gone.arm(1010);
  }
  auto by_another = std::make_unique<NotedTimer>(t.loop(), t.fired, 2);
  by_another->arm(1020);
  t.clock.now = 1015;
  co_await settle();
  by_another.reset();
  t.clock.now = 2000;
  co_await settle();
  EXPECT_TRUE(t.fired.empty());
}

TEST_P(TimerTest, DestroyingCancels) { run(destroy_timer(*this)); }

coro::Task<void> many_timers(TimerTest& t) {
  std::vector<std::unique_ptr<NotedTimer>> timers;
  for (int i = 0; i < 1000; ++i) {
    timers.push_back(std::make_unique<NotedTimer>(t.loop(), t.fired, i));
    timers.back()->arm(2000 + static_cast<uint64_t>(i * 7919 % 1000));
  }
  t.clock.now = 3000;
  co_await settle();
  EXPECT_EQ(t.fired.size(), 1000u);
  const auto sooner = [](int a, int b) { return a * 7919 % 1000 < b * 7919 % 1000; };
  EXPECT_TRUE(std::is_sorted(t.fired.begin(), t.fired.end(), sooner));
}

TEST_P(TimerTest, ThousandsKeepTheirOrder) { run(many_timers(*this)); }

coro::Task<void> die_with_a_fired_timer(TimerTest& t) {
  // The first destroys the second, which fired in the same round and is queued.
  static std::optional<NotedTimer> second;
  NotedTimer first(t.loop(), t.fired, 1);
  second.emplace(t.loop(), t.fired, 2);
  first.then = [](NotedTimer&) { second.reset(); };
  first.arm(1001);
  second->arm(1002);
  t.clock.now = 2000;
  co_await settle();
}

TEST_P(TimerTest, DestroyedBetweenFiringAndRunAborts) {
  EXPECT_DEATH(run(die_with_a_fired_timer(*this)), "a timer is destroyed between its firing and its run");
}

coro::Task<void> sleep_for(LoopTest& t, uint64_t ms) {
  const uint64_t until = t.loop().now_ms() + ms;
  co_await SleepUntil(t.loop(), until);
  EXPECT_GE(t.loop().now_ms(), until);
}

coro::Task<void> sleep_side_by_side(LoopTest& t) {
  coro::Scope scope;
  for (const uint64_t ms : {30u, 10u, 20u, 0u, 1u}) scope.spawn(sleep_for(t, ms));
  co_await scope.join();
}

TEST_P(LoopTest, ASleepIsNotShorterThanItsTime) { run(sleep_side_by_side(*this)); }

coro::Task<void> sleep_into_the_past(LoopTest& t) {
  co_await SleepUntil(t.loop(), 0);
}

TEST_P(LoopTest, ASleepUntilThePastEnds) { run(sleep_into_the_past(*this)); }

// --- Posting -------------------------------------------------------------------------------------------------------

constexpr int kThreads = 4;
constexpr int kMessages = 25'000;

struct Inbox {
  std::thread::id home;
  std::array<int, kThreads> next{};
  int total = 0;
  int out_of_order = 0;
  int away = 0;
  coro::Event all;
};

struct NumberedMessage : Posted {
  NumberedMessage()
      : Posted([](coro::Runnable& self) {
          auto& message = static_cast<NumberedMessage&>(self);
          Inbox& box = *message.inbox;
          box.away += std::this_thread::get_id() != box.home;
          int& expected = box.next[static_cast<size_t>(message.thread)];
          box.out_of_order += expected != message.number;
          expected = message.number + 1;
          if (++box.total == kThreads * kMessages) box.all.set();
        }) {}
  Inbox* inbox = nullptr;
  int thread = 0;
  int number = 0;
};

coro::Task<void> wait_all(Inbox& inbox) {
  inbox.home = std::this_thread::get_id();
  while (inbox.total < kThreads * kMessages) co_await inbox.all.wait();
}

TEST_P(LoopTest, PostsOfManyThreadsAllArriveInOrderAndRunOnlyHere) {
  Inbox inbox;
  inbox.home = std::this_thread::get_id();
  std::vector<std::vector<NumberedMessage>> messages;
  for (int i = 0; i < kThreads; ++i) messages.emplace_back(kMessages);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread)
    threads.emplace_back([&, thread] {
      for (int number = 0; number < kMessages; ++number) {
        NumberedMessage& message = messages[static_cast<size_t>(thread)][static_cast<size_t>(number)];
        message.inbox = &inbox;
        message.thread = thread;
        message.number = number;
        loop().post(message);
      }
    });
  run(wait_all(inbox));
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(inbox.total, kThreads * kMessages);
  EXPECT_EQ(inbox.out_of_order, 0);
  EXPECT_EQ(inbox.away, 0) << "another thread ran a message";
}

// Each message wakes a loop that sleeps: a lost wake-up is a hang.
struct PingPong {
  struct Ball : Posted {
    Ball()
        : Posted([](coro::Runnable& self) {
            PingPong& match = *static_cast<Ball&>(self).game;
            const size_t side = match.count % 2;
            if (std::this_thread::get_id() != match.homes[side]) ++match.away;
            if (++match.count >= kRounds) {
              for (Stop& stop : match.stops) stop.loop->post(stop);
              return;
            }
            match.loops[1 - side]->post(match.ball);
          }) {}
    PingPong* game = nullptr;
  };
  struct Stop : Posted {
    Stop() : Posted([](coro::Runnable& self) { static_cast<Stop&>(self).event.set(); }) {}
    Loop* loop = nullptr;
    coro::Event event;
  };
  static constexpr size_t kRounds = 20'000;
  Ball ball;
  std::array<Stop, 2> stops;
  std::array<Loop*, 2> loops{};
  std::array<std::thread::id, 2> homes{};
  size_t count = 0;
  int away = 0;
};

coro::Task<void> wait_event(coro::Event& event) { co_await event.wait(); }

TEST_P(LoopTest, APostWakesALoopThatSleeps) {
  auto second = backend().make_loop(clock()).value();
  PingPong game;
  game.ball.game = &game;
  game.loops = {&loop(), second.get()};
  game.stops[0].loop = &loop();
  game.stops[1].loop = second.get();
  game.homes[0] = std::this_thread::get_id();
  std::atomic<bool> known{false};
  std::thread other([&] {
    while (!known.load()) std::this_thread::yield();
    second->run(wait_event(game.stops[1].event));
  });
  game.homes[1] = other.get_id();
  known = true;
  loop().post(game.ball);
  run(wait_event(game.stops[0].event));
  other.join();
  EXPECT_EQ(game.count, PingPong::kRounds);
  EXPECT_EQ(game.away, 0);
}

struct SetOnPost : Posted {
  SetOnPost() : Posted([](coro::Runnable& self) { static_cast<SetOnPost&>(self).event.set(); }) {}
  coro::Event event;
};

TEST_P(LoopTest, WhatWasPostedBeforeTheRunIsRun) {
  SetOnPost message;
  loop().post(message);
  run(wait_event(message.event));
}

coro::Task<void> post_to_self(LoopTest& t, bool& inside) {
  SetOnPost message;
  t.loop().post(message);
  inside = !message.queued && message.event.wait().await_ready();
  co_await message.event.wait();
}

TEST_P(LoopTest, APostToItselfDoesNotRunInside) {
  bool inside = true;
  run(post_to_self(*this, inside));
  EXPECT_FALSE(inside);
}

}  // namespace
}  // namespace netblk::io
