// SPDX-License-Identifier: GPL-2.0-only
// A bare loopback TCP stream of messages of one size: one process sends, the other receives each message whole into the
// same memory, and nobody looks at the bytes. The most that 1 MiB READs or WRITEs one after another can reach.
#include <arpa/inet.h>

#include "common.h"

namespace {

using namespace bench;

void drain(int fd, size_t bytes) {
  uint8_t* const into = map_bytes(bytes);
  while (recv(fd, into, bytes, MSG_WAITALL) > 0) {
  }
  close(fd);
}

[[noreturn]] void usage() {
  std::fputs(
      "usage: bench_stream serve            prints `port N`; takes messages of 1 MiB until it is ended\n"
      "       bench_stream send PORT SECONDS [BYTES=1M]\n",
      stderr);
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) usage();
  const std::string mode = argv[1];
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  socklen_t length = sizeof address;
  if (mode == "serve" && argc == 2) {
    if (bind(fd, generic, length) != 0 || listen(fd, 16) != 0 || getsockname(fd, generic, &length) != 0)
      die("cannot listen: %s", std::strerror(errno));
    std::printf("port %u\n", ntohs(address.sin_port));
    std::fflush(stdout);
    for (int taken; (taken = accept4(fd, nullptr, nullptr, SOCK_CLOEXEC)) >= 0;) drain(taken, 1 << 20);
    die("accept: %s", std::strerror(errno));
  }
  if (mode != "send" || argc < 4 || argc > 5) usage();
  address.sin_port = htons(static_cast<uint16_t>(parse_size(argv[2])));
  const double seconds = parse_seconds(argv[3]);
  const size_t bytes = argc == 5 ? parse_size(argv[4]) : 1 << 20;
  if (bytes == 0 || bytes > kMaxLengthBytes) usage();
  if (connect(fd, generic, length) != 0) die("cannot connect: %s", std::strerror(errno));
  uint8_t* const from = map_bytes(bytes);
  std::memset(from, 0x5a, bytes);
  uint64_t count = 0, start = now_ns();
  const auto send_one = [&] {
    for (size_t at = 0; at < bytes;) {
      const ssize_t n = send(fd, from + at, bytes - at, MSG_NOSIGNAL);
      if (n <= 0) die("send: %s", std::strerror(errno));
      at += static_cast<size_t>(n);
    }
  };
  // The window of the connection grows first.
  while (static_cast<double>(now_ns() - start) < 0.05e9) send_one();
  start = now_ns();
  do {
    send_one();
    ++count;
  } while (static_cast<double>(now_ns() - start) < seconds * 1e9);
  const double elapsed = static_cast<double>(now_ns() - start) / 1e9;
  const double rate = static_cast<double>(count) / elapsed;
  std::printf("{\"iops\": %.1f, \"mib_per_s\": %.2f, \"requests\": %llu, \"seconds\": %.3f, \"errors\": 0}\n", rate,
              rate * static_cast<double>(bytes) / (1 << 20), static_cast<unsigned long long>(count), elapsed);
  return 0;
}
