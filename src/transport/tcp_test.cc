// SPDX-License-Identifier: GPL-2.0-only
#include "transport/tcp.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

namespace netblk::transport {
namespace {

// Listens at once.
Result<io::UniqueFd> listen_at(const std::string& host, uint16_t port) {
  auto fd = tcp_bind(host, port);
  if (!fd) return fd;
  if (auto listening = start_listening(fd.value().get()); !listening) return std::move(listening).error();
  return fd;
}

io::Address address4(uint8_t a, uint8_t b, uint8_t c, uint8_t d, uint16_t port) {
  io::Address address;
  address.ip = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d};
  address.port = port;
  return address;
}

io::Address address6(const char* text, uint16_t port) {
  io::Address address;
  EXPECT_EQ(::inet_pton(AF_INET6, text, address.ip.data()), 1);
  address.port = port;
  return address;
}

int option(int fd, int level, int name) {
  int value = -1;
  socklen_t length = sizeof value;
  EXPECT_EQ(::getsockopt(fd, level, name, &value, &length), 0);
  return value;
}

io::UniqueFd accept_from(int listener) {
  // Some listeners do not block.
  for (;;) {
    io::UniqueFd fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
    if (fd.valid() || errno != EAGAIN) return fd;
    std::this_thread::yield();
  }
}

TEST(Address, IsWrittenAsPeopleWriteIt) {
  EXPECT_EQ(address4(192, 0, 2, 1, 10809).text(), "192.0.2.1:10809");
  EXPECT_EQ(address4(127, 0, 0, 1, 1).text(), "127.0.0.1:1");
  EXPECT_EQ(address6("2001:db8::1", 10809).text(), "[2001:db8::1]:10809");
  EXPECT_EQ(address6("::1", 65535).text(), "[::1]:65535");
  EXPECT_EQ(address6("::", 0).text(), "[::]:0");
}

TEST(Address, KnowsLoopbackAndItsFamily) {
  EXPECT_TRUE(address4(127, 0, 0, 1, 0).is_loopback());
  EXPECT_TRUE(address4(127, 255, 1, 2, 0).is_loopback());
  EXPECT_FALSE(address4(128, 0, 0, 1, 0).is_loopback());
  EXPECT_FALSE(address4(0, 0, 0, 1, 0).is_loopback());
  EXPECT_TRUE(address6("::1", 0).is_loopback());
  EXPECT_FALSE(address6("::", 0).is_loopback());
  EXPECT_FALSE(address6("::2", 0).is_loopback());
  EXPECT_FALSE(address6("2001:db8::1", 0).is_loopback());
  EXPECT_FALSE(address6("fe80::1", 0).is_loopback());
  EXPECT_TRUE(address4(10, 0, 0, 1, 0).is_ipv4());
  EXPECT_FALSE(address6("::1", 0).is_ipv4());
}

TEST(Tcp, ListensOnAFreeLoopbackPortAndConnects) {
  auto listener = listen_at("127.0.0.1", 0);
  ASSERT_TRUE(listener.ok()) << listener.error().message;
  const auto local = io::local_address(listener.value().get());
  ASSERT_TRUE(local.ok());
  EXPECT_TRUE(local.value().is_loopback());
  EXPECT_NE(local.value().port, 0);
  auto client = tcp_connect("127.0.0.1", local.value().port, 5000);
  ASSERT_TRUE(client.ok()) << client.error().message;
  const io::UniqueFd accepted = accept_from(listener.value().get());
  ASSERT_TRUE(accepted.valid());
  EXPECT_EQ(io::peer_address(accepted.get()).value().text(), io::local_address(client.value().get()).value().text());
  EXPECT_EQ(io::peer_address(client.value().get()).value().text(), local.value().text());
  EXPECT_NE(::fcntl(listener.value().get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_NE(::fcntl(client.value().get(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST(Tcp, EveryAddressTakesIpv4AndIpv6) {
  for (const char* host : {"", "*", "::"}) {
    auto listener = listen_at(host, 0);
    ASSERT_TRUE(listener.ok()) << '"' << host << "\": " << listener.error().message;
    const uint16_t port = io::local_address(listener.value().get()).value().port;
    for (const char* target : {"127.0.0.1", "::1"}) {
      auto client = tcp_connect(target, port, 5000);
      if (!client && (client.error().code == EADDRNOTAVAIL || client.error().code == EAFNOSUPPORT)) {
        std::fprintf(stderr, "NOT TESTED: %s: %s\n", target, client.error().message.c_str());
        continue;
      }
      ASSERT_TRUE(client.ok()) << client.error().message;
      const io::UniqueFd accepted = accept_from(listener.value().get());
      const auto peer = io::peer_address(accepted.get());
      ASSERT_TRUE(peer.ok());
      EXPECT_TRUE(peer.value().is_loopback()) << peer.value().text();
      EXPECT_EQ(peer.value().is_ipv4(), std::string(target) == "127.0.0.1") << peer.value().text();
    }
  }
}

TEST(Tcp, ANameIsResolved) {
  auto listener = listen_at("localhost", 0);
  ASSERT_TRUE(listener.ok()) << listener.error().message;
  const auto local = io::local_address(listener.value().get());
  EXPECT_TRUE(local.value().is_loopback());
  auto client = tcp_connect("localhost", local.value().port, 5000);
  EXPECT_TRUE(client.ok()) << client.error().message;
}

TEST(Tcp, APortInUseIsRefusedInWords) {
  auto first = listen_at("127.0.0.1", 0);
  ASSERT_TRUE(first.ok());
  const uint16_t port = io::local_address(first.value().get()).value().port;
  const auto second = listen_at("127.0.0.1", port);
  ASSERT_FALSE(second.ok());
  EXPECT_EQ(second.error().code, EADDRINUSE);
  EXPECT_NE(second.error().message.find(std::to_string(port)), std::string::npos) << second.error().message;
  EXPECT_NE(second.error().message.find("127.0.0.1"), std::string::npos);
  EXPECT_EQ(second.error().message.find('\n'), std::string::npos);
}

TEST(Tcp, APortIsTakenBackAtOnceThoughConnectionsLinger) {
  auto first = listen_at("127.0.0.1", 0);
  ASSERT_TRUE(first.ok());
  const uint16_t port = io::local_address(first.value().get()).value().port;
  {
    auto client = tcp_connect("127.0.0.1", port, 5000);
    ASSERT_TRUE(client.ok());
    io::UniqueFd accepted = accept_from(first.value().get());
    accepted.reset();  // the server's side closes first: TIME_WAIT is on its port
    char byte;
    EXPECT_EQ(::recv(client.value().get(), &byte, 1, 0), 0);
  }
  first.value().reset();
  const auto again = listen_at("127.0.0.1", port);
  EXPECT_TRUE(again.ok()) << again.error().message;
}

TEST(Tcp, AnAddressThatIsNotOursIsRefusedInWords) {
  const auto listener = listen_at("192.0.2.1", 0);  // TEST-NET-1: nobody's
  ASSERT_FALSE(listener.ok());
  EXPECT_EQ(listener.error().code, EADDRNOTAVAIL);
  EXPECT_NE(listener.error().message.find("192.0.2.1"), std::string::npos) << listener.error().message;
}

TEST(Tcp, AHostThatIsNoneIsRefusedInWords) {
  for (const char* host : {"256.1.1.1", "1.2.3.4.5", "no such host", "[::1"}) {
    const auto listener = listen_at(host, 0);
    ASSERT_FALSE(listener.ok()) << host;
    EXPECT_EQ(listener.error().code, EINVAL) << host;
    EXPECT_NE(listener.error().message.find(host), std::string::npos) << listener.error().message;
    const auto client = tcp_connect(host, 10809, 1000);
    ASSERT_FALSE(client.ok()) << host;
    // as of a machine that is away: a name server may be as well
    EXPECT_EQ(client.error().code, EHOSTUNREACH) << host;
    EXPECT_NE(client.error().message.find(host), std::string::npos) << client.error().message;
  }
}

TEST(Tcp, ARefusedConnectionIsSaidInWords) {
  uint16_t port;
  {
    auto listener = listen_at("127.0.0.1", 0);
    ASSERT_TRUE(listener.ok());
    port = io::local_address(listener.value().get()).value().port;
  }
  const auto client = tcp_connect("127.0.0.1", port, 5000);
  ASSERT_FALSE(client.ok());
  EXPECT_EQ(client.error().code, ECONNREFUSED);
  EXPECT_NE(client.error().message.find(std::to_string(port)), std::string::npos) << client.error().message;
}

// A listener whose backlog is full answers nobody: the connection has its own time limit.
TEST(Tcp, AnUnansweredConnectionEndsInTime) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  const io::UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  ASSERT_EQ(::bind(listener.get(), generic, length), 0);
  ASSERT_EQ(::listen(listener.get(), 0), 0);
  ASSERT_EQ(::getsockname(listener.get(), generic, &length), 0);
  std::vector<io::UniqueFd> filling;
  for (int i = 0; i < 8; ++i) {
    filling.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    (void)::connect(filling.back().get(), generic, length);
  }
  const auto client = tcp_connect("127.0.0.1", ntohs(address.sin_port), 50);
  ASSERT_FALSE(client.ok());
  EXPECT_EQ(client.error().code, ETIMEDOUT) << client.error().message;
}

TEST(Tcp, TunesForSmallMessagesAndDeadPeers) {
  auto listener = listen_at("127.0.0.1", 0);
  ASSERT_TRUE(listener.ok());
  auto client = tcp_connect("127.0.0.1", io::local_address(listener.value().get()).value().port, 5000);
  ASSERT_TRUE(client.ok());
  const io::UniqueFd accepted = accept_from(listener.value().get());
  tune_tcp(accepted.get());
  for (const int fd : {client.value().get(), accepted.get()}) {
    EXPECT_NE(option(fd, IPPROTO_TCP, TCP_NODELAY), 0);
    EXPECT_NE(option(fd, SOL_SOCKET, SO_KEEPALIVE), 0);
    const int probing = option(fd, IPPROTO_TCP, TCP_KEEPINTVL) * option(fd, IPPROTO_TCP, TCP_KEEPCNT);
    const int seconds = option(fd, IPPROTO_TCP, TCP_KEEPIDLE) + probing;
    EXPECT_LE(seconds, 150) << "\"within about two minutes\"";
    EXPECT_GE(seconds, 30);
  }
}

TEST(Tcp, AddressesOfWhatIsNoSocketAreErrors) {
  EXPECT_FALSE(io::local_address(-1).ok());
  EXPECT_FALSE(io::peer_address(0).ok());
}

TEST(Address, OfAUnixSocketSaysWhoIsThere) {
  int fds[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
  const io::UniqueFd a(fds[0]), b(fds[1]);
  const auto peer = io::peer_address(b.get());
  ASSERT_TRUE(peer.ok());
  EXPECT_TRUE(peer.value().is_unix());
  EXPECT_TRUE(peer.value().is_loopback());
  EXPECT_EQ(peer.value().text(), fmt::format("unix:pid={},uid={}", ::getpid(), ::getuid()));
  EXPECT_FALSE(address4(127, 0, 0, 1, 0).is_unix());
}

}  // namespace
}  // namespace netblk::transport
