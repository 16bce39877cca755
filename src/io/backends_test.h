// SPDX-License-Identifier: GPL-2.0-only
// For tests that run on both back ends.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <string>
#include <utility>

#include "coro/scope.h"
#include "coro/task.h"
#include "io/epoll/epoll_backend.h"
#include "io/loop.h"
#include "io/uring/uring_backend.h"

namespace netblk::test {

class BackendTest : public testing::TestWithParam<const char*> {
 public:
  io::Loop& loop() { return *loop_; }
  io::Backend& backend() { return *backend_; }
  const io::Clock& clock() const { return clock_; }
  void run(coro::Task<void> task) { loop_->run(std::move(task)); }

 protected:
  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    auto made = std::string(GetParam()) == "io_uring" ? io::make_uring_backend() : io::make_epoll_backend(2);
    if (!made) GTEST_SKIP() << "no " << GetParam() << " here: " << made.error().message;
    backend_ = std::move(made).value();
    ASSERT_EQ(backend_->name(), GetParam());
    auto loop = backend_->make_loop(clock_);
    ASSERT_TRUE(loop.ok()) << loop.error().message;
    loop_ = std::move(loop).value();
  }

 private:
  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  std::unique_ptr<io::Loop> loop_;
};

inline std::string backend_name(const testing::TestParamInfo<const char*>& info) { return info.param; }

#define NETBLK_ON_BOTH_BACKENDS(suite) \
  INSTANTIATE_TEST_SUITE_P(Backends, suite, testing::Values("io_uring", "epoll"), ::netblk::test::backend_name)

// Goes once through the ready queue.
struct NextRound {
  struct Node : coro::Runnable {
    Node() : Runnable([](coro::Runnable& self) { static_cast<Node&>(self).waiter.resume(); }) {}
    std::coroutine_handle<> waiter;
  };
  Node node;
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> waiter) {
    node.waiter = waiter;
    coro::ReadyQueue::current().push(node);
  }
  void await_resume() const {}
};

// Several polls that do not wait: what the kernel has at hand is reaped and run. Enough for what this thread itself
// made ready; nothing that another thread does is waited for.
inline coro::Task<void> settle(int rounds = 64) {
  for (int i = 0; i < rounds; ++i) co_await NextRound{};
}

// An operation that notes its end; may be left in flight where a test dies.
struct TestOp : io::Op {
  TestOp()
      : Op([](coro::Runnable& self) {
          auto& op = static_cast<TestOp&>(self);
          ++op.ends;
          if (op.on_end != nullptr) op.on_end(op);
        }) {}
  int ends = 0;
  void (*on_end)(TestOp&) = nullptr;
};

struct FdPair {
  io::UniqueFd ours, peer;
};

inline FdPair unix_pair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) std::abort();
  return {io::UniqueFd(fds[0]), io::UniqueFd(fds[1])};
}

// A listening socket on a free loopback port, and its address.
inline io::UniqueFd listening_socket(sockaddr_in& address, int backlog = 128) {
  io::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  if (::bind(fd.get(), generic, length) != 0 || ::listen(fd.get(), backlog) != 0 ||
      ::getsockname(fd.get(), generic, &length) != 0)
    std::abort();
  return fd;
}

inline io::UniqueFd connected_to(const sockaddr_in& address) {
  io::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) std::abort();
  return fd;
}

inline FdPair tcp_pair() {
  sockaddr_in address;
  const io::UniqueFd listener = listening_socket(address);
  io::UniqueFd peer = connected_to(address);
  io::UniqueFd ours(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!ours.valid()) std::abort();
  return {std::move(ours), std::move(peer)};
}

}  // namespace netblk::test
