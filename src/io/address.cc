// SPDX-License-Identifier: GPL-2.0-only
#include "io/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

namespace netblk::io {
namespace {

constexpr std::array<uint8_t, 12> kMappedPrefix = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

Result<Address> from_socket(int fd, int (*get)(int, sockaddr*, socklen_t*)) {
  sockaddr_storage storage{};
  socklen_t length = sizeof storage;
  if (get(fd, reinterpret_cast<sockaddr*>(&storage), &length) != 0)
    return make_error(errno, "cannot read a socket's address: {}", errno_text(errno));
  Address address;
  if (storage.ss_family == AF_INET6) {
    sockaddr_in6 in6;
    std::memcpy(&in6, &storage, sizeof in6);
    std::memcpy(address.ip.data(), &in6.sin6_addr, 16);
    address.port = ntohs(in6.sin6_port);
  } else if (storage.ss_family == AF_INET) {
    sockaddr_in in4;
    std::memcpy(&in4, &storage, sizeof in4);
    std::copy(kMappedPrefix.begin(), kMappedPrefix.end(), address.ip.begin());
    std::memcpy(address.ip.data() + kMappedPrefix.size(), &in4.sin_addr, 4);
    address.port = ntohs(in4.sin_port);
  } else if (storage.ss_family == AF_UNIX) {
    sockaddr_un un;
    std::memcpy(&un, &storage, sizeof un);
    const size_t bytes = length - offsetof(sockaddr_un, sun_path);
    address.unix_name = bytes == 0               ? std::string("unnamed")
                        : un.sun_path[0] == '\0' ? "@" + std::string(un.sun_path + 1, bytes - 1)
                                                 : std::string(un.sun_path, ::strnlen(un.sun_path, bytes));
  } else {
    return make_error(EAFNOSUPPORT, "the socket is neither an internet nor a unix socket");
  }
  return address;
}

}  // namespace

bool Address::is_ipv4() const { return std::equal(kMappedPrefix.begin(), kMappedPrefix.end(), ip.begin()); }

bool Address::is_any() const {
  const auto zero = [](uint8_t byte) { return byte == 0; };
  return !is_unix() && std::all_of(is_ipv4() ? ip.begin() + 12 : ip.begin(), ip.end(), zero);
}

bool Address::is_loopback() const {
  if (is_unix()) return true;
  if (is_ipv4()) return ip[12] == 127;
  return std::all_of(ip.begin(), ip.end() - 1, [](uint8_t byte) { return byte == 0; }) && ip[15] == 1;
}

std::string Address::text() const {
  if (is_unix()) return "unix:" + unix_name;
  std::array<char, INET6_ADDRSTRLEN> buffer{};
  if (is_ipv4()) {
    ::inet_ntop(AF_INET, ip.data() + kMappedPrefix.size(), buffer.data(), buffer.size());
    return fmt::format("{}:{}", buffer.data(), port);
  }
  ::inet_ntop(AF_INET6, ip.data(), buffer.data(), buffer.size());
  return fmt::format("[{}]:{}", buffer.data(), port);
}

Result<Address> peer_address(int fd) {
  auto address = from_socket(fd, &::getpeername);
  if (!address || !address.value().is_unix()) return address;
  // Clients' sockets have no names.
  ucred who{};
  socklen_t length = sizeof who;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length) == 0)
    address.value().unix_name = fmt::format("pid={},uid={}", who.pid, who.uid);
  return address;
}
Result<Address> local_address(int fd) { return from_socket(fd, &::getsockname); }

}  // namespace netblk::io
