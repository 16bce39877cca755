// SPDX-License-Identifier: GPL-2.0-only
#include "transport/unix.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <optional>
#include <string>

#include "io/epoll/epoll_backend.h"
#include "transport/unix_dialer.h"

namespace netblk::transport {
namespace {

class Unix : public ::testing::Test {
 protected:
  void SetUp() override {
    char folder[] = "/tmp/netblk-unix-XXXXXX";
    ASSERT_NE(::mkdtemp(folder), nullptr);
    folder_ = folder;
    path_ = folder_ + "/s";
  }
  void TearDown() override {
    ::unlink(path_.c_str());
    EXPECT_EQ(::rmdir(folder_.c_str()), 0) << "something was left behind";
  }
  bool exists() const { return ::access(path_.c_str(), F_OK) == 0; }
  mode_t mode() const {
    struct stat there{};
    return ::lstat(path_.c_str(), &there) == 0 ? there.st_mode & 07777 : 0;
  }

  std::string folder_;
  std::string path_;
};

TEST_F(Unix, ListensWithTheModeThatWasAskedForAndRemovesItsFile) {
  for (const mode_t wanted : {0600u, 0666u, 0660u}) {
    {
      auto listening = unix_listen(path_, wanted);
      ASSERT_TRUE(listening.ok()) << listening.error().message;
      EXPECT_EQ(mode(), wanted);
      auto client = unix_connect(path_, 5000);
      ASSERT_TRUE(client.ok()) << client.error().message;
      io::UniqueFd accepted(::accept4(listening.value().fd.get(), nullptr, nullptr, SOCK_CLOEXEC));
      ASSERT_TRUE(accepted.valid());
      ASSERT_EQ(::send(accepted.get(), "x", 1, 0), 1);
      char byte = 0;
      EXPECT_EQ(::recv(client.value().get(), &byte, 1, 0), 1);
    }
    EXPECT_FALSE(exists());
  }
}

TEST_F(Unix, ADeadServersFileIsReplaced) {
  {
    const io::UniqueFd dead(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, sizeof address.sun_path - 1);
    ASSERT_EQ(::bind(dead.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    ASSERT_EQ(::listen(dead.get(), 1), 0);
  }
  ASSERT_TRUE(exists());
  EXPECT_TRUE(unix_can_listen(path_).ok());
  auto listening = unix_listen(path_, 0600);
  ASSERT_TRUE(listening.ok()) << listening.error().message;
  EXPECT_TRUE(unix_connect(path_, 5000).ok());
}

TEST_F(Unix, ALivingServersSocketStays) {
  auto first = unix_listen(path_, 0600);
  ASSERT_TRUE(first.ok());
  for (const Status& second : {unix_can_listen(path_), [&]() -> Status {
         auto listening = unix_listen(path_, 0600);
         if (!listening) return std::move(listening).error();
         return Ok{};
       }()}) {
    ASSERT_FALSE(second.ok());
    EXPECT_EQ(second.error().code, EADDRINUSE);
    EXPECT_NE(second.error().message.find(path_), std::string::npos);
    EXPECT_NE(second.error().message.find(fmt::format("process {}", ::getpid())), std::string::npos)
        << second.error().message;
  }
  EXPECT_TRUE(unix_connect(path_, 5000).ok());
}

TEST_F(Unix, WhatIsNoSocketStays) {
  std::ofstream(path_) << "kept";
  const auto listening = unix_listen(path_, 0600);
  ASSERT_FALSE(listening.ok());
  EXPECT_NE(listening.error().message.find("no socket"), std::string::npos) << listening.error().message;
  EXPECT_FALSE(unix_can_listen(path_).ok());
  std::string text;
  std::ifstream(path_) >> text;
  EXPECT_EQ(text, "kept");
}

TEST_F(Unix, OnlyTheOwnFileIsRemoved) {
  std::optional<UnixListening> first;
  auto made = unix_listen(path_, 0600);
  ASSERT_TRUE(made.ok());
  first.emplace(std::move(made).value());
  ASSERT_EQ(::unlink(path_.c_str()), 0);
  auto second = unix_listen(path_, 0600);
  ASSERT_TRUE(second.ok()) << second.error().message;
  first.reset();
  EXPECT_TRUE(exists()) << "the socket of the server that came after was removed";
}

TEST_F(Unix, BadPathsAreRefusedInWords) {
  EXPECT_FALSE(unix_can_listen("").ok());
  EXPECT_FALSE(unix_can_listen("s").ok());
  EXPECT_FALSE(unix_listen("s", 0600).ok());
  const auto longer = unix_listen("/" + std::string(200, 'x'), 0600);
  ASSERT_FALSE(longer.ok());
  EXPECT_EQ(longer.error().code, ENAMETOOLONG);
  const auto nowhere = unix_listen(folder_ + "/none/s", 0600);
  ASSERT_FALSE(nowhere.ok());
  EXPECT_EQ(nowhere.error().code, ENOENT);
  EXPECT_EQ(unix_connect(path_, 100).error().code, ENOENT);
}

coro::Task<void> dial_twice(io::Loop& loop, UnixDialer& dialer, std::string path, int& listener_backlog) {
  auto missing = co_await dialer.dial(loop, loop.now_ms() + 1000);
  EXPECT_FALSE(missing.ok());
  auto listening = unix_listen(path, 0600);
  EXPECT_TRUE(listening.ok());
  if (!listening.ok()) co_return;
  auto dialed = co_await dialer.dial(loop, loop.now_ms() + 5000);
  EXPECT_TRUE(dialed.ok());
  listener_backlog = ::accept4(listening.value().fd.get(), nullptr, nullptr, SOCK_CLOEXEC);
  // A full queue is waited for until the deadline, and no longer.
  EXPECT_EQ(::listen(listening.value().fd.get(), 0), 0);
  auto fills = unix_connect(path, 0);
  EXPECT_TRUE(fills.ok());
  auto late = co_await dialer.dial(loop, loop.now_ms() + 50);
  EXPECT_FALSE(late.ok());
  if (!late.ok()) {
    EXPECT_EQ(late.error().code, ETIMEDOUT);
  }
}

TEST_F(Unix, TheDialerConnectsAndGivesUp) {
  const io::SteadyClock clock;
  auto backend = io::make_epoll_backend(1).value();
  auto loop = backend->make_loop(clock).value();
  UnixDialer dialer(path_);
  EXPECT_EQ(dialer.peer(), "unix:" + path_);
  int accepted = -1;
  loop->run(dial_twice(*loop, dialer, path_, accepted));
  const io::UniqueFd owned(accepted);
  EXPECT_TRUE(owned.valid());
}

}  // namespace
}  // namespace netblk::transport
