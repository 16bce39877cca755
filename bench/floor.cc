// SPDX-License-Identifier: GPL-2.0-only
// The floor: the least that a netblk/1 server can do for a request. One thread per connection, one recv into a large
// buffer, every complete request in it answered by one memcpy, pread or pwrite, one send for all their replies.
// `floor echo` is a bare loopback echo of fixed sizes that does not look at what it gets.
#include <arpa/inet.h>
#include <getopt.h>
#include <sys/stat.h>

#include <algorithm>
#include <thread>

#include "common.h"

namespace {

using namespace bench;

constexpr size_t kInputBytes = kMaxLengthBytes + (size_t{1} << 20);
// A batch of replies is sent once it holds this much, so that it stays in the core's cache.
constexpr size_t kReplyBatchBytes = 512 << 10;
constexpr size_t kOutputBytes = kReplyBatchBytes + kMaxLengthBytes + 1;

enum class Mode { kMemory, kFile, kEcho };

struct Options {
  Mode mode = Mode::kMemory;
  uint16_t port = 0;
  uint64_t size_bytes = 256u << 20;
  std::string path;
  bool durable = false;
  size_t echo_in_bytes = kRequestBytes;
  size_t echo_out_bytes = 4097;
};

struct Store {
  uint8_t* memory = nullptr;
  int fd = -1;
  uint64_t size_bytes = 0;
  bool durable = false;

  bool read(uint8_t* to, uint32_t length, uint64_t offset) const {
    if (memory != nullptr) {
      std::memcpy(to, memory + offset, length);
      return true;
    }
    return pread(fd, to, length, static_cast<off_t>(offset)) == static_cast<ssize_t>(length);
  }
  bool write(const uint8_t* from, uint32_t length, uint64_t offset) const {
    if (memory != nullptr) {
      std::memcpy(memory + offset, from, length);
      return true;
    }
    if (pwrite(fd, from, length, static_cast<off_t>(offset)) != static_cast<ssize_t>(length)) return false;
    return !durable || fdatasync(fd) == 0;
  }
  bool holds(uint64_t sector, uint32_t length) const {
    const uint64_t sectors = size_bytes / kSectorBytes;
    return length != 0 && length % kSectorBytes == 0 && sector <= sectors && length / kSectorBytes <= sectors - sector;
  }
};

bool send_all(int fd, const uint8_t* from, size_t bytes) {
  while (bytes != 0) {
    const ssize_t n = send(fd, from, bytes, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    from += n;
    bytes -= static_cast<size_t>(n);
  }
  return true;
}

class Session {
 public:
  Session(int fd, const Store& store)
      : fd_(fd), store_(store), in_(map_bytes(kInputBytes)), out_(map_bytes(kOutputBytes)) {}
  ~Session() {
    munmap(in_, kInputBytes);
    munmap(out_, kOutputBytes);
    close(fd_);
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  void run() {
    for (;;) {
      make_room();
      const ssize_t n = recv(fd_, in_ + end_, kInputBytes - end_, 0);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return;
      end_ += static_cast<size_t>(n);
      while (end_ - begin_ >= kRequestBytes) {
        const Step step = answer_one();
        if (step == Step::kClose) return;
        if (step == Step::kIncomplete) break;
      }
      if (!flush()) return;
    }
  }

 private:
  enum class Step { kAnswered, kIncomplete, kClose };

  Step answer_one() {
    const uint8_t* request = in_ + begin_;
    const uint8_t command = request[0];
    const uint64_t sector = get_be64(request + 1);
    const uint32_t length = get_be32(request + 9);
    if ((command != kRead && command != kWrite) || length > kMaxLengthBytes) {
      flush();
      return Step::kClose;
    }
    const size_t whole = kRequestBytes + (command == kWrite ? length : 0);
    if (end_ - begin_ < whole) return Step::kIncomplete;
    if (out_used_ != 0 && out_used_ + 1 + length > kReplyBatchBytes && !flush()) return Step::kClose;
    uint8_t* status = out_ + out_used_++;
    *status = kError;
    if (store_.holds(sector, length)) {
      const uint64_t offset = sector * kSectorBytes;
      if (command == kWrite) {
        if (store_.write(request + kRequestBytes, length, offset)) *status = kOk;
      } else if (store_.read(out_ + out_used_, length, offset)) {
        *status = kOk;
        out_used_ += length;
      }
    }
    begin_ += whole;
    return Step::kAnswered;
  }

  bool flush() {
    const size_t bytes = out_used_;
    out_used_ = 0;
    return bytes == 0 || send_all(fd_, out_, bytes);
  }

  // Moves what is left of an incomplete request to the front when that is cheap, or when the request would not fit.
  void make_room() {
    const size_t left = end_ - begin_;
    if (begin_ != 0 && (left <= 4096 || kInputBytes - begin_ < kRequestBytes + kMaxLengthBytes)) {
      std::memmove(in_, in_ + begin_, left);
      begin_ = 0;
      end_ = left;
    }
  }

  int fd_;
  const Store& store_;
  uint8_t* in_;
  uint8_t* out_;
  size_t begin_ = 0;
  size_t end_ = 0;
  size_t out_used_ = 0;
};

void echo(int fd, const Options& options) {
  const size_t most = std::max<size_t>(1, kReplyBatchBytes / options.echo_out_bytes);
  const size_t in_bytes = std::max<size_t>(options.echo_in_bytes, 256 << 10);
  const size_t out_bytes = most * options.echo_out_bytes;
  uint8_t* in = map_bytes(in_bytes);
  uint8_t* out = map_bytes(out_bytes);
  std::memset(out, 0, out_bytes);  // own pages, not the kernel's one page of zeroes
  size_t got = 0;
  for (;;) {
    const ssize_t n = recv(fd, in, in_bytes, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    got += static_cast<size_t>(n);
    size_t replies = got / options.echo_in_bytes;
    got %= options.echo_in_bytes;
    bool ok = true;
    while (replies != 0 && ok) {
      const size_t now = std::min(replies, most);
      ok = send_all(fd, out, now * options.echo_out_bytes);
      replies -= now;
    }
    if (!ok) break;
  }
  munmap(in, in_bytes);
  munmap(out, out_bytes);
  close(fd);
}

[[noreturn]] void usage() {
  std::fputs(
      "usage: floor memory [--port P] [--size 256M]\n"
      "       floor file --path PATH [--port P] [--size 256M] [--durable]\n"
      "       floor echo [--port P] [--in 13] [--out 4097]\n"
      "prints `port N` when it listens on 127.0.0.1:N; ends on SIGTERM\n",
      stderr);
  std::exit(2);
}

Options parse(int argc, char** argv) {
  Options o;
  if (argc < 2) usage();
  const std::string mode = argv[1];
  if (mode == "memory") o.mode = Mode::kMemory;
  else if (mode == "file") o.mode = Mode::kFile;
  else if (mode == "echo") o.mode = Mode::kEcho;
  else usage();
  static const option kOptions[] = {{"port", required_argument, nullptr, 'p'},  {"size", required_argument, nullptr, 's'},
                                    {"path", required_argument, nullptr, 'f'},  {"durable", no_argument, nullptr, 'd'},
                                    {"in", required_argument, nullptr, 'i'},    {"out", required_argument, nullptr, 'o'},
                                    {nullptr, 0, nullptr, 0}};
  optind = 2;
  for (int c; (c = getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    switch (c) {
      case 'p': {
        const uint64_t port = parse_size(optarg);
        if (port > 65535) die("not a port: %s", optarg);
        o.port = static_cast<uint16_t>(port);
        break;
      }
      case 's': o.size_bytes = parse_size(optarg); break;
      case 'f': o.path = optarg; break;
      case 'd': o.durable = true; break;
      case 'i': o.echo_in_bytes = parse_size(optarg); break;
      case 'o': o.echo_out_bytes = parse_size(optarg); break;
      default: usage();
    }
  }
  if (optind != argc || o.echo_in_bytes == 0 || o.echo_out_bytes == 0) usage();
  if (o.echo_in_bytes > kInputBytes || o.echo_out_bytes > kInputBytes) usage();
  if (o.mode == Mode::kFile && o.path.empty()) usage();
  return o;
}

Store open_store(const Options& o) {
  Store store;
  store.size_bytes = o.size_bytes;
  store.durable = o.durable;
  if (o.mode == Mode::kMemory) {
    store.memory = map_bytes(o.size_bytes);
  } else if (o.mode == Mode::kFile) {
    store.fd = open(o.path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    struct stat st {};
    if (store.fd < 0 || fstat(store.fd, &st) != 0) die("%s: %s", o.path.c_str(), std::strerror(errno));
    if (static_cast<uint64_t>(st.st_size) < o.size_bytes && ftruncate(store.fd, static_cast<off_t>(o.size_bytes)) != 0)
      die("%s: %s", o.path.c_str(), std::strerror(errno));
    store.size_bytes = std::max<uint64_t>(o.size_bytes, static_cast<uint64_t>(st.st_size));
  }
  return store;
}

}  // namespace

int main(int argc, char** argv) {
  const Options options = parse(argc, argv);
  const Store store = open_store(options);
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int one = 1;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(options.port);
  socklen_t length = sizeof address;
  if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
      bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || listen(listener, 4096) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0)
    die("cannot listen on 127.0.0.1:%u: %s", options.port, std::strerror(errno));
  std::printf("port %u\n", ntohs(address.sin_port));
  std::fflush(stdout);
  for (;;) {
    const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      die("accept: %s", std::strerror(errno));
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    std::thread([fd, &store, &options] {
      if (options.mode == Mode::kEcho) echo(fd, options);
      else Session(fd, store).run();
    }).detach();
  }
}
