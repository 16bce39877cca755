// SPDX-License-Identifier: GPL-2.0-only
#include "transport/tcp_dialer.h"

#include <cerrno>
#include <list>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "coro/event.h"
#include "io/patience.h"
#include "transport/tcp.h"

namespace netblk::transport {

// One attempt, on a thread of its own. The one who dials may have left before the resolver has ended.
struct TcpDialer::Call {
  struct Ended : io::Posted {
    Ended()
        : Posted([](coro::Runnable& self) {
            auto& ended = static_cast<Ended&>(self);
            ended.ran = true;
            ended.event->set();
          }) {}
    coro::Event* event = nullptr;
    bool ran = false;  // of the loop's thread
  };

  std::thread thread;
  std::mutex mutex;  // guards what follows
  io::Loop* loop = nullptr;  // null: nobody waits any more
  std::optional<Result<io::UniqueFd>> result;
  Ended ended;
  bool over = false;  // the thread does nothing more but end
};

struct TcpDialer::Calls {
  std::mutex mutex;
  std::list<Call> all;

  // Joins the threads that have ended.
  void sweep(bool every) {
    const std::lock_guard lock(mutex);
    for (auto at = all.begin(); at != all.end();) {
      bool over = every;
      if (!every) {
        const std::lock_guard call_lock(at->mutex);
        over = at->over && at->loop == nullptr;
      }
      if (over) at->thread.join();
      at = over ? all.erase(at) : std::next(at);
    }
  }
};

TcpDialer::TcpDialer(std::string host, uint16_t port)
    : host_(std::move(host)),
      port_(port),
      peer_(host_.find(':') == std::string::npos ? fmt::format("{}:{}", host_, port) : fmt::format("[{}]:{}", host_, port)),
      calls_(std::make_unique<Calls>()) {}

TcpDialer::~TcpDialer() { calls_->sweep(true); }

coro::Task<Result<std::unique_ptr<io::Stream>>> TcpDialer::dial(io::Loop& loop, uint64_t give_up_at_ms) {
  struct Alarm : io::Timer {
    Alarm(io::Loop& on, coro::Event& event)
        : Timer(on, [](coro::Runnable& self) { static_cast<Alarm&>(self).wanted.set(); }), wanted(event) {}
    coro::Event& wanted;
  };
  const uint64_t now = loop.now_ms();
  if (now >= give_up_at_ms) co_return make_error(ETIMEDOUT, "no time to connect to {}", peer_);
  const uint64_t timeout_ms = give_up_at_ms - now;
  calls_->sweep(false);
  coro::Event wake;
  Call* call = nullptr;
  {
    const std::lock_guard lock(calls_->mutex);
    call = &calls_->all.emplace_back();
    call->loop = &loop;
    call->ended.event = &wake;
    call->thread = std::thread([call, timeout_ms, this] {
      auto connected = tcp_connect(host_, port_, timeout_ms);
      const std::lock_guard call_lock(call->mutex);
      call->over = true;
      if (call->loop == nullptr) return;
      call->result.emplace(std::move(connected));
      call->loop->post(call->ended);
    });
  }
  Alarm alarm(loop, wake);
  bool arrived = false;
  // The name is resolved without an end of its own.
  for (io::Patience patience(timeout_ms); !arrived && !patience.over();) {
    alarm.arm(loop.now_ms() + patience.begin());
    co_await wake.wait();
    patience.end();
    const std::lock_guard lock(call->mutex);
    arrived = call->result.has_value();
  }
  alarm.cancel();
  while (alarm.queued) co_await io::SleepUntil(loop, loop.now_ms());
  std::optional<Result<io::UniqueFd>> result;
  bool posted = false;
  {
    const std::lock_guard lock(call->mutex);
    result = std::move(call->result);
    posted = call->over;
    if (!posted) call->loop = nullptr;
  }
  // The message that was posted runs before its event goes.
  while (posted && !call->ended.ran) co_await wake.wait();
  if (posted) {
    const std::lock_guard lock(call->mutex);
    call->loop = nullptr;
  }
  calls_->sweep(false);
  if (!result) co_return make_error(ETIMEDOUT, "cannot connect to {}: no answer within {} ms", peer_, timeout_ms);
  if (!result->ok()) co_return result->error();
  co_return loop.make_stream(std::move(*result).value());
}

}  // namespace netblk::transport
