// SPDX-License-Identifier: GPL-2.0-only
#include "transport/tcp_dialer.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "coro/scope.h"
#include "io/epoll/epoll_backend.h"
#include "io/uring/uring_backend.h"
#include "transport/tcp.h"

namespace netblk::transport {
namespace {

// Listens at once.
Result<io::UniqueFd> listen_at(const std::string& host, uint16_t port) {
  auto fd = tcp_bind(host, port);
  if (!fd) return fd;
  if (auto listening = start_listening(fd.value().get()); !listening) return std::move(listening).error();
  return fd;
}

class TcpDialerTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto made = std::string(GetParam()) == "uring" ? io::make_uring_backend() : io::make_epoll_backend(1);
    if (!made) GTEST_SKIP() << made.error().message;
    backend_ = std::move(made).value();
    loop_ = backend_->make_loop(clock_).value();
  }

  static coro::Task<void> dial_once(io::Loop& loop, io::Dialer& dialer, uint64_t give_up_at_ms,
                                    std::optional<Error>& error, std::string* hears) {
    auto dialed = co_await dialer.dial(loop, give_up_at_ms);
    if (!dialed) {
      error = dialed.error();
      co_return;
    }
    std::byte bytes[16];
    const int32_t got = co_await io::recv(*dialed.value(), bytes);
    if (got > 0) hears->assign(reinterpret_cast<const char*>(bytes), static_cast<size_t>(got));
  }

  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  std::unique_ptr<io::Loop> loop_;
};

TEST_P(TcpDialerTest, AStreamToWhoListens) {
  auto listener = listen_at("127.0.0.1", 0);
  ASSERT_TRUE(listener.ok());
  const uint16_t port = io::local_address(listener.value().get()).value().port;
  for (const char* host : {"127.0.0.1", "localhost"}) {
    TcpDialer dialer(host, port);
    EXPECT_EQ(dialer.peer(), std::string(host) + ":" + std::to_string(port));
    std::optional<Error> error;
    std::string heard;
    std::thread server([&] {
      int fd = -1;
      while ((fd = ::accept(listener.value().get(), nullptr, nullptr)) < 0 && errno == EAGAIN) ::usleep(1000);
      EXPECT_EQ(::send(fd, "hello", 5, MSG_NOSIGNAL), 5);
      ::close(fd);
    });
    loop_->run(dial_once(*loop_, dialer, loop_->now_ms() + 10'000, error, &heard));
    server.join();
    EXPECT_FALSE(error.has_value());
    EXPECT_EQ(heard, "hello");
  }
}

TEST_P(TcpDialerTest, NobodyListens) {
  uint16_t port = 0;
  {
    auto listener = listen_at("127.0.0.1", 0);
    port = io::local_address(listener.value().get()).value().port;
  }
  TcpDialer dialer("127.0.0.1", port);
  std::optional<Error> error;
  std::string heard;
  loop_->run(dial_once(*loop_, dialer, loop_->now_ms() + 10'000, error, &heard));
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->code, ECONNREFUSED);
}

// A listener whose queue is full answers nobody: what a silent address does.
TEST_P(TcpDialerTest, ASilentAddressEndsByTheDeadlineAndTheLoopGoesOn) {
  io::UniqueFd silent(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(::bind(silent.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(::listen(silent.get(), 0), 0);
  const uint16_t port = io::local_address(silent.get()).value().port;
  std::vector<io::UniqueFd> fillers;
  for (int i = 0; i < 8; ++i) {
    fillers.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    address.sin_port = htons(port);
    (void)::connect(fillers.back().get(), reinterpret_cast<sockaddr*>(&address), sizeof address);
  }
  ::usleep(50'000);
  TcpDialer dialer("127.0.0.1", port);
  struct Both {
    static coro::Task<void> run(io::Loop& loop, io::Dialer& with, std::optional<Error>& error, int& ticks) {
      std::string heard;
      coro::Scope scope;
      scope.spawn(dial_once(loop, with, loop.now_ms() + 300, error, &heard));
      while (!error) {
        co_await io::SleepUntil(loop, loop.now_ms() + 10);
        ++ticks;
      }
      co_await scope.join();
    }
  };
  std::optional<Error> error;
  int ticks = 0;
  loop_->run(Both::run(*loop_, dialer, error, ticks));
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->code, ETIMEDOUT);
  EXPECT_GT(ticks, 3);
}

TEST_P(TcpDialerTest, ANameThatDoesNotExist) {
  TcpDialer dialer("no such name.invalid", 1);
  std::optional<Error> error;
  std::string heard;
  loop_->run(dial_once(*loop_, dialer, loop_->now_ms() + 20'000, error, &heard));
  ASSERT_TRUE(error.has_value());
  EXPECT_NE(error->message.find("no such name"), std::string::npos);
}

TEST_P(TcpDialerTest, NoTimeAtAll) {
  TcpDialer dialer("127.0.0.1", 1);
  std::optional<Error> error;
  std::string heard;
  loop_->run(dial_once(*loop_, dialer, loop_->now_ms(), error, &heard));
  ASSERT_TRUE(error.has_value());
  EXPECT_EQ(error->code, ETIMEDOUT);
}

INSTANTIATE_TEST_SUITE_P(Io, TcpDialerTest, ::testing::Values("uring", "epoll"));

}  // namespace
}  // namespace netblk::transport
