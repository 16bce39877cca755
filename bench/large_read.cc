// SPDX-License-Identifier: GPL-2.0-only
// What a large READ from a file costs a server, by how its data reach the socket: pread + send, sendfile, splice through
// a pipe, pread + zero-copy send; on loopback, from the page cache. With --crc a checksum is made of every byte first,
// as netblk/2 with crc32c does. One line of JSON for each way: MiB/s, and the sender's CPU per message.
#include <arpa/inet.h>
#include <fcntl.h>
#include <isa-l/crc.h>
#include <linux/errqueue.h>
#include <poll.h>
#include <sys/sendfile.h>

#include <thread>

#include "common.h"

namespace {

using namespace bench;

struct Sender {
  int file;
  int socket;
  int pipe_in, pipe_out;
  uint64_t file_bytes;
  uint32_t bytes;
  bool crc;
  uint8_t* memory;
  uint8_t* mapped;
  uint32_t zero_copies = 0;
  uint32_t checksum = 0;

  void check(const uint8_t* at) {
    if (crc) checksum ^= crc32_iscsi(const_cast<unsigned char*>(at), static_cast<int>(bytes), 0);
  }
  void send_all(const uint8_t* from, size_t left, int flags) {
    while (left != 0) {
      const ssize_t n = send(socket, from, left, MSG_NOSIGNAL | flags);
      if (n < 0 && errno == ENOBUFS) {
        reap(true);
        continue;
      }
      if (n <= 0) die("send: %s", std::strerror(errno));
      if ((flags & MSG_ZEROCOPY) != 0) ++zero_copies;
      from += n;
      left -= static_cast<size_t>(n);
    }
  }
  // The memory is the kernel's until it says so on the error queue.
  void reap(bool all) {
    while (zero_copies != 0) {
      char control[128];
      msghdr message{};
      message.msg_control = control;
      message.msg_controllen = sizeof control;
      if (recvmsg(socket, &message, MSG_ERRQUEUE) < 0) {
        if (errno != EAGAIN) die("error queue: %s", std::strerror(errno));
        if (!all) return;
        pollfd p{socket, 0, 0};
        poll(&p, 1, 1000);
        continue;
      }
      for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
        sock_extended_err told{};
        std::memcpy(&told, CMSG_DATA(c), sizeof told);
        zero_copies -= told.ee_data - told.ee_info + 1;
      }
    }
  }
  void by_send(uint64_t at) {
    if (pread(file, memory, bytes, static_cast<off_t>(at)) != static_cast<ssize_t>(bytes)) die("pread");
    check(memory);
    send_all(memory, bytes, 0);
  }
  void by_sendfile(uint64_t at) {
    check(mapped + at);
    auto offset = static_cast<off_t>(at);
    for (size_t left = bytes; left != 0;) {
      const ssize_t n = sendfile(socket, file, &offset, left);
      if (n <= 0) die("sendfile: %s", std::strerror(errno));
      left -= static_cast<size_t>(n);
    }
  }
  void by_splice(uint64_t at) {
    check(mapped + at);
    auto offset = static_cast<off64_t>(at);
    for (size_t left = bytes; left != 0;) {
      const ssize_t in = splice(file, &offset, pipe_in, nullptr, left, SPLICE_F_MOVE);
      if (in <= 0) die("splice: %s", std::strerror(errno));
      for (ssize_t out = 0; out < in;) {
        const unsigned more = left == static_cast<size_t>(in) ? 0 : SPLICE_F_MORE;
        const ssize_t n = splice(pipe_out, nullptr, socket, nullptr, static_cast<size_t>(in - out), SPLICE_F_MOVE | more);
        if (n <= 0) die("splice: %s", std::strerror(errno));
        out += n;
      }
      left -= static_cast<size_t>(in);
    }
  }
  void by_zero_copy(uint64_t at) {
    if (pread(file, memory, bytes, static_cast<off_t>(at)) != static_cast<ssize_t>(bytes)) die("pread");
    check(memory);
    send_all(memory, bytes, MSG_ZEROCOPY);
    reap(true);
  }
};

struct Way {
  const char* name;
  void (Sender::*send)(uint64_t at);
};
constexpr Way kWays[] = {{"send", &Sender::by_send},
                         {"sendfile", &Sender::by_sendfile},
                         {"splice", &Sender::by_splice},
                         {"zerocopy", &Sender::by_zero_copy}};

void receive_all(int fd) {
  uint8_t* const into = map_bytes(1 << 20);
  while (recv(fd, into, 1 << 20, 0) > 0) {
  }
  close(fd);
}

void connect_pair(int (&ends)[2]) {
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  auto* const generic = reinterpret_cast<sockaddr*>(&address);
  ends[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (bind(listener, generic, length) != 0 || listen(listener, 1) != 0 || getsockname(listener, generic, &length) != 0 ||
      connect(ends[0], generic, length) != 0 || (ends[1] = accept(listener, nullptr, nullptr)) < 0)
    die("no pair of sockets: %s", std::strerror(errno));
  close(listener);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) die("usage: bench_large_read FILE BYTES SECONDS [--crc]   FILE: at least 64 MiB; BYTES of each message");
  const uint64_t bytes = parse_size(argv[2]);
  const double seconds = parse_seconds(argv[3]);
  const bool crc = argc > 4 && std::strcmp(argv[4], "--crc") == 0;
  const int file = open(argv[1], O_RDONLY | O_CLOEXEC);
  const off_t size = lseek(file, 0, SEEK_END);
  if (size < (64 << 20) || bytes == 0 || bytes > (32u << 20)) die("%s: not a file of 64 MiB", argv[1]);
  auto* const mapped = static_cast<uint8_t*>(mmap(nullptr, static_cast<size_t>(size), PROT_READ, MAP_SHARED | MAP_POPULATE, file, 0));
  if (mapped == MAP_FAILED) die("mmap: %s", std::strerror(errno));
  for (const Way& way : kWays) {
    int ends[2];
    connect_pair(ends);
    const int one = 1;
    setsockopt(ends[0], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(ends[0], SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one);
    int pipes[2];
    if (pipe2(pipes, O_CLOEXEC) != 0) die("pipe: %s", std::strerror(errno));
    fcntl(pipes[1], F_SETPIPE_SZ, 1 << 20);
    std::thread receiver(receive_all, ends[1]);
    Sender sender{.file = file, .socket = ends[0], .pipe_in = pipes[1], .pipe_out = pipes[0],
                  .file_bytes = static_cast<uint64_t>(size), .bytes = static_cast<uint32_t>(bytes), .crc = crc,
                  .memory = map_bytes(bytes), .mapped = mapped};
    const uint64_t messages_in_file = sender.file_bytes / bytes;
    const uint64_t start = now_ns(), cpu_start = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    uint64_t count = 0;
    do {
      (sender.*way.send)(count % messages_in_file * bytes);
      ++count;
    } while (static_cast<double>(now_ns() - start) < seconds * 1e9);
    const double elapsed = static_cast<double>(now_ns() - start) / 1e9;
    const double cpu = static_cast<double>(clock_ns(CLOCK_THREAD_CPUTIME_ID) - cpu_start) / 1e3 / static_cast<double>(count);
    std::printf("{\"way\": \"%s\", \"crc\": %s, \"bytes\": %llu, \"mib_per_s\": %.1f, \"cpu_us_per_message\": %.2f, \"errors\": 0}\n", way.name,
                crc ? "true" : "false", static_cast<unsigned long long>(bytes), static_cast<double>(count * bytes) / elapsed / (1 << 20), cpu);
    munmap(sender.memory, bytes);
    shutdown(ends[0], SHUT_WR);
    receiver.join();
    for (const int fd : {ends[0], pipes[0], pipes[1]}) close(fd);
  }
  return 0;
}
