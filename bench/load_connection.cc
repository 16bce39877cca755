// SPDX-License-Identifier: GPL-2.0-only
#include <arpa/inet.h>
#include <sys/uio.h>

#include <algorithm>

#include "load.h"

namespace bench {

namespace {
constexpr size_t kInputBytes = 1 << 20;
constexpr size_t kPieces = 512;  // below IOV_MAX, a request has at most two
constexpr uint64_t kPatternSalt = 0x6e6574626c6b2f31u;
}  // namespace

int connect_to(const LoadOptions& options) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(options.port);
  if (inet_pton(AF_INET, options.host.c_str(), &address.sin_addr) != 1) die("not an IPv4 address: %s", options.host.c_str());
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int one = 1;
  if (fd < 0 || connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0)
    die("cannot connect to %s:%u: %s", options.host.c_str(), options.port, std::strerror(errno));
  return fd;
}

void put_pattern(uint8_t* block, uint64_t offset, uint32_t length) {
  for (uint32_t at = 0; at < length; at += kSectorBytes) {
    put_be64(block + at, (offset + at) / kSectorBytes);
    put_be64(block + at + 8, kPatternSalt);
  }
}

bool has_pattern(const uint8_t* block, uint64_t offset, uint32_t length) {
  for (uint32_t at = 0; at < length; at += kSectorBytes)
    if (get_be64(block + at) != (offset + at) / kSectorBytes || get_be64(block + at + 8) != kPatternSalt) return false;
  return true;
}

Connection::Connection(const LoadOptions& options, int fd, uint64_t seed)
    : options_(options),
      fd_(fd),
      random_(seed),
      slots_(options.depth),
      headers_(options.depth * kRequestBytes),
      input_(std::min<size_t>(kInputBytes, std::max<size_t>(64 << 10, size_t{2} * options.depth * options.block_bytes))) {
  next_block_ = random_.below(options.span_bytes / options.block_bytes);
  if (options.mix != Mix::kReads) {
    payloads_.resize(size_t{options.block_bytes} * (options.check ? options.depth : 1));
    for (uint8_t& byte : payloads_) byte = static_cast<uint8_t>(random_.next() >> 56);
  }
  if (options.check) assembly_.resize(options.block_bytes);
}

Connection::~Connection() {
  if (fd_ >= 0) close(fd_);
}

uint8_t* Connection::payload(uint64_t number) {
  return payloads_.data() + (options_.check ? (number % options_.depth) * size_t{options_.block_bytes} : 0);
}

void Connection::issue(uint64_t now) {
  const uint64_t blocks = options_.span_bytes / options_.block_bytes;
  while (open() && outstanding() < options_.depth) {
    Slot& slot = slots_[issued_ % options_.depth];
    uint64_t block;
    if (options_.sequential) {
      block = next_block_;
      if (++next_block_ == blocks) next_block_ = 0;
    } else {
      block = random_.below(blocks);
    }
    slot.offset = block * options_.block_bytes;
    slot.read = options_.mix == Mix::kReads || (options_.mix == Mix::kBoth && random_.below(100) < options_.read_percent);
    slot.sent_ns = now;
    put_request(header(issued_), slot.read ? kRead : kWrite, slot.offset / kSectorBytes, options_.block_bytes);
    if (!slot.read && options_.check) put_pattern(payload(issued_), slot.offset, options_.block_bytes);
    ++issued_;
    ++totals_.sent;
  }
}

bool Connection::flush() {
  while (open() && unsent()) {
    iovec pieces[kPieces];
    size_t count = 0;
    size_t skip = sent_bytes_;
    for (uint64_t number = sent_slots_; number != issued_ && count + 2 <= kPieces; ++number) {
      uint8_t* from = header(number);
      size_t bytes = kRequestBytes;
      const size_t skipped = std::min(skip, bytes);
      from += skipped;
      bytes -= skipped;
      skip -= skipped;
      if (bytes != 0) {
        iovec* last = count == 0 ? nullptr : &pieces[count - 1];
        if (last != nullptr && static_cast<uint8_t*>(last->iov_base) + last->iov_len == from) last->iov_len += bytes;
        else pieces[count++] = {from, bytes};
      }
      if (!slots_[number % options_.depth].read) {
        pieces[count++] = {payload(number) + skip, options_.block_bytes - skip};
        skip = 0;
      }
    }
    msghdr message{};
    message.msg_iov = pieces;
    message.msg_iovlen = count;
    const ssize_t n = sendmsg(fd_, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EAGAIN) return true;
      if (errno == EINTR) continue;
      lose();
      return false;
    }
    size_t taken = static_cast<size_t>(n) + sent_bytes_;
    while (sent_slots_ != issued_) {
      const size_t whole =
          kRequestBytes + (slots_[sent_slots_ % options_.depth].read ? 0 : size_t{options_.block_bytes});
      if (taken < whole) break;
      taken -= whole;
      ++sent_slots_;
    }
    sent_bytes_ = taken;
  }
  return open();
}

bool Connection::receive(int flags, bool go_on, Histogram* latency) {
  if (!open()) return false;
  const ssize_t n = recv(fd_, input_.data(), input_.size(), flags);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
  if (n <= 0 || !parse(input_.data(), static_cast<size_t>(n), now_ns(), go_on, latency)) {
    lose();
    return false;
  }
  return true;
}

// False when the bytes cannot be netblk/1 replies to what was sent.
bool Connection::parse(const uint8_t* from, size_t bytes, uint64_t now, bool go_on, Histogram* latency) {
  while (bytes != 0) {
    if (reply_data_left_ != 0) {
      const size_t taken = std::min(bytes, reply_data_left_);
      if (options_.check) std::memcpy(assembly_.data() + (options_.block_bytes - reply_data_left_), from, taken);
      from += taken;
      bytes -= taken;
      reply_data_left_ -= taken;
      if (reply_data_left_ != 0) return true;
      if (options_.check) {
        ++totals_.checked;
        if (!has_pattern(assembly_.data(), slots_[answered_ % options_.depth].offset, options_.block_bytes)) {
          ++totals_.miscompares;
          ++totals_.errors;
        }
      }
      complete(now, go_on, latency);
      continue;
    }
    if (answered_ == sent_slots_) return false;  // a reply to nothing
    const uint8_t status = *from++;
    --bytes;
    if (status == kOk && slots_[answered_ % options_.depth].read) {
      reply_data_left_ = options_.block_bytes;
      continue;
    }
    if (status > kError) return false;
    if (status == kError) ++totals_.errors;
    complete(now, go_on, latency);
  }
  return true;
}

void Connection::complete(uint64_t now, bool go_on, Histogram* latency) {
  if (latency != nullptr) latency->add(now - slots_[answered_ % options_.depth].sent_ns);
  ++answered_;
  ++totals_.answered;
  if (go_on) issue(now);
}

void Connection::lose() {
  close(fd_);
  fd_ = -1;
  ++totals_.errors;
}

void Connection::finish() {
  if (!open()) return;
  uint8_t request[kRequestBytes];
  put_request(request, kDisconnect, 0, 0);
  if (send(fd_, request, sizeof request, MSG_NOSIGNAL) != static_cast<ssize_t>(sizeof request)) ++totals_.errors;
  close(fd_);
  fd_ = -1;
}

}  // namespace bench
