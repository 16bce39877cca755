// SPDX-License-Identifier: GPL-2.0-only
// The floor of an NBD server: one thread per connection, one recv into a large buffer, every complete request in it
// answered from memory, or by pread or pwrite, one writev for all their replies. Of the handshake it knows what fio, libnbd
// and nbdcopy need; it has one export under every name.
#include <arpa/inet.h>
#include <getopt.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include <algorithm>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "common.h"

namespace {

using namespace bench;

constexpr uint32_t kOptionGo = 7, kOptionInfo = 6, kOptionExportName = 1, kOptionAbort = 2;
constexpr uint32_t kReplyAck = 1, kReplyInfo = 3, kReplyUnsupported = 0x80000001;
constexpr uint16_t kFlags = 1 | 4 | 8 | 0x100;  // flush, FUA, several connections
constexpr uint32_t kRequestMagic = 0x25609513, kReplyMagic = 0x67446698;
constexpr size_t kNbdRequestBytes = 28, kNbdReplyBytes = 16;
constexpr size_t kInputBytes = kMaxLengthBytes + (size_t{1} << 20);
constexpr size_t kBatch = 512;                     // replies in one writev
constexpr size_t kReadBytes = kMaxLengthBytes * 2;  // of files, for one writev

struct Store {
  uint8_t* memory = nullptr;
  int fd = -1;
  uint64_t size_bytes = 0;
};

bool recv_all(int fd, void* into, size_t bytes) {
  return bytes == 0 || recv(fd, into, bytes, MSG_WAITALL) == static_cast<ssize_t>(bytes);
}

bool send_all(int fd, const void* from, size_t bytes) {
  const auto* at = static_cast<const uint8_t*>(from);
  while (bytes != 0) {
    const ssize_t n = send(fd, at, bytes, MSG_NOSIGNAL);
    if (n <= 0) return false;
    at += n;
    bytes -= static_cast<size_t>(n);
  }
  return true;
}

void put_be(uint8_t* to, uint64_t value, int bytes) {
  for (int i = bytes - 1; i >= 0; --i, value >>= 8) to[i] = static_cast<uint8_t>(value);
}
uint64_t get_be(const uint8_t* from, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) value = value << 8 | from[i];
  return value;
}

bool reply_option(int fd, uint32_t option, uint32_t type, const uint8_t* data, size_t bytes) {
  uint8_t head[20];
  put_be(head, 0x3e889045565a9, 8);
  put_be(head + 8, option, 4);
  put_be(head + 12, type, 4);
  put_be(head + 16, bytes, 4);
  return send_all(fd, head, sizeof head) && send_all(fd, data, bytes);
}

// True: requests follow.
bool shake_hands(int fd, const Store& store) {
  uint8_t hello[18] = {'N', 'B', 'D', 'M', 'A', 'G', 'I', 'C', 'I', 'H', 'A', 'V', 'E', 'O', 'P', 'T', 0, 3};
  uint8_t flags[4];
  if (!send_all(fd, hello, sizeof hello) || !recv_all(fd, flags, sizeof flags)) return false;
  for (;;) {
    uint8_t head[16];
    if (!recv_all(fd, head, sizeof head)) return false;
    const auto option = static_cast<uint32_t>(get_be(head + 8, 4));
    std::vector<uint8_t> data(get_be(head + 12, 4) & 0xffff);
    if (!recv_all(fd, data.data(), data.size())) return false;
    uint8_t info[12 + 124] = {};
    if (option == kOptionExportName) {
      put_be(info, store.size_bytes, 8);
      put_be(info + 8, kFlags, 2);
      return send_all(fd, info, (flags[3] & 2) != 0 ? 10 : 134);
    }
    if (option == kOptionGo || option == kOptionInfo) {
      put_be(info + 2, store.size_bytes, 8);
      put_be(info + 10, kFlags, 2);
      if (!reply_option(fd, option, kReplyInfo, info, 12) || !reply_option(fd, option, kReplyAck, nullptr, 0)) return false;
      if (option == kOptionGo) return true;
      continue;
    }
    if (!reply_option(fd, option, option == kOptionAbort ? kReplyAck : kReplyUnsupported, nullptr, 0)) return false;
    if (option == kOptionAbort) return false;
  }
}

class Session {
 public:
  Session(int fd, const Store& store)
      : fd_(fd), store_(store), in_(map_bytes(kInputBytes)), out_(store.fd >= 0 ? map_bytes(kReadBytes) : nullptr) {}
  ~Session() {
    munmap(in_, kInputBytes);
    if (out_ != nullptr) munmap(out_, kReadBytes);
    close(fd_);
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  void run() {
    while (receive()) {
      bool going = true;
      while (going && end_ - begin_ >= kNbdRequestBytes) {
        const uint8_t* const request = in_ + begin_;
        const auto type = static_cast<uint16_t>(get_be(request + 6, 2));
        const auto length = static_cast<uint32_t>(get_be(request + 24, 4));
        if (get_be(request, 4) != kRequestMagic || type == 2 || length > kMaxLengthBytes) return (void)flush();
        const size_t whole = kNbdRequestBytes + (type == 1 ? length : 0);
        if (end_ - begin_ < whole) break;
        if ((replies_ == kBatch || out_used_ + length > kReadBytes) && !flush()) return;
        answer(request, type, length);
        begin_ += whole;
      }
      if (!flush()) return;
    }
  }

 private:
  bool receive() {
    const size_t left = end_ - begin_;
    if (begin_ != 0 && (left <= 4096 || kInputBytes - begin_ < kNbdRequestBytes + kMaxLengthBytes)) {
      std::memmove(in_, in_ + begin_, left);
      begin_ = 0;
      end_ = left;
    }
    ssize_t n;
    do {
      n = recv(fd_, in_ + end_, kInputBytes - end_, 0);
    } while (n < 0 && errno == EINTR);
    if (n > 0) end_ += static_cast<size_t>(n);
    return n > 0;
  }

  void answer(const uint8_t* request, uint16_t type, uint32_t length) {
    const uint64_t offset = get_be(request + 16, 8);
    uint32_t error = 0;
    const uint8_t* data = nullptr;
    if (type <= 1 && (offset > store_.size_bytes || length > store_.size_bytes - offset)) {
      error = EINVAL;
    } else if (type == 0 && store_.memory != nullptr) {
      data = store_.memory + offset;
    } else if (type == 0) {
      data = out_ + out_used_;
      if (pread(store_.fd, out_ + out_used_, length, static_cast<off_t>(offset)) == static_cast<ssize_t>(length))
        out_used_ += length;
      else
        error = EIO;
    } else if (type == 1 && store_.memory != nullptr) {
      std::memcpy(store_.memory + offset, request + kNbdRequestBytes, length);
    } else if (type == 1) {
      if (pwrite(store_.fd, request + kNbdRequestBytes, length, static_cast<off_t>(offset)) != static_cast<ssize_t>(length))
        error = EIO;
    } else if (type == 3) {
      if (store_.fd >= 0 && fdatasync(store_.fd) != 0) error = EIO;
    } else {
      error = EINVAL;
    }
    uint8_t* const head = heads_ + replies_++ * kNbdReplyBytes;
    put_be(head, kReplyMagic, 4);
    put_be(head + 4, error, 4);
    std::memcpy(head + 8, request + 8, 8);
    if (parts_ > 0 && static_cast<uint8_t*>(iov_[parts_ - 1].iov_base) + iov_[parts_ - 1].iov_len == head)
      iov_[parts_ - 1].iov_len += kNbdReplyBytes;
    else
      iov_[parts_++] = {head, kNbdReplyBytes};
    if (data != nullptr && error == 0) iov_[parts_++] = {const_cast<uint8_t*>(data), length};
  }

  bool flush() {
    iovec* at = iov_;
    size_t left = std::exchange(parts_, 0);
    replies_ = out_used_ = 0;
    while (left > 0) {
      msghdr message{};
      message.msg_iov = at;
      message.msg_iovlen = left;
      ssize_t n = sendmsg(fd_, &message, MSG_NOSIGNAL);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      for (; left > 0 && static_cast<size_t>(n) >= at->iov_len; ++at, --left) n -= static_cast<ssize_t>(at->iov_len);
      if (left > 0) *at = {static_cast<uint8_t*>(at->iov_base) + n, at->iov_len - static_cast<size_t>(n)};
    }
    return true;
  }

  int fd_;
  const Store& store_;
  uint8_t* in_;
  uint8_t* out_;
  size_t begin_ = 0, end_ = 0, replies_ = 0, parts_ = 0, out_used_ = 0;
  uint8_t heads_[kBatch * kNbdReplyBytes];
  iovec iov_[2 * kBatch];
};

[[noreturn]] void usage() {
  std::fputs(
      "usage: bench_floor_nbd memory [--size 256M]\n"
      "       bench_floor_nbd file PATH\n"
      "prints `port N` when it listens on 127.0.0.1:N; ends on SIGTERM\n",
      stderr);
  std::exit(2);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc < 2 ? "" : argv[1];
  Store store;
  if (mode == "memory" && (argc == 2 || (argc == 4 && std::string(argv[2]) == "--size"))) {
    store.size_bytes = argc == 4 ? parse_size(argv[3]) : 256u << 20;
    store.memory = map_bytes(store.size_bytes);
  } else if (mode == "file" && argc == 3) {
    store.fd = open(argv[2], O_RDWR | O_CLOEXEC);
    struct stat st {};
    if (store.fd < 0 || fstat(store.fd, &st) != 0) die("%s: %s", argv[2], std::strerror(errno));
    store.size_bytes = static_cast<uint64_t>(st.st_size);
  } else {
    usage();
  }
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  if (listener < 0 || bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 || listen(listener, 64) != 0 ||
      getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0)
    die("cannot listen: %s", std::strerror(errno));
  std::printf("port %u\n", ntohs(address.sin_port));
  std::fflush(stdout);
  for (;;) {
    const int fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      die("accept: %s", std::strerror(errno));
    }
    const int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    std::thread([fd, &store] {
      if (!shake_hands(fd, store)) {
        close(fd);
        return;
      }
      std::make_unique<Session>(fd, store)->run();
    }).detach();
  }
}
