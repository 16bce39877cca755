// SPDX-License-Identifier: GPL-2.0-only
// What the benchmark programs share. They use nothing of the project's own code, so that a mistake there cannot hide here.
#pragma once

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

namespace bench {

// netblk/1: cmd u8 | sector u64 | length u32, big-endian, packed; the reply begins with a status byte.
inline constexpr size_t kRequestBytes = 13;
inline constexpr uint8_t kRead = 1;
inline constexpr uint8_t kWrite = 2;
inline constexpr uint8_t kDisconnect = 3;
inline constexpr uint8_t kOk = 0;
inline constexpr uint8_t kError = 1;
inline constexpr uint32_t kSectorBytes = 512;
inline constexpr uint32_t kMaxLengthBytes = 32u << 20;

[[noreturn]] __attribute__((format(printf, 1, 2))) inline void die(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::exit(1);
}

inline uint64_t clock_ns(clockid_t clock) {
  timespec t{};
  if (clock_gettime(clock, &t) != 0) return 0;
  return static_cast<uint64_t>(t.tv_sec) * 1'000'000'000u + static_cast<uint64_t>(t.tv_nsec);
}

inline uint64_t now_ns() { return clock_ns(CLOCK_MONOTONIC); }

// Bytes, or K, M, G, T as powers of 1024.
inline uint64_t parse_size(const char* text) {
  char* end = nullptr;
  errno = 0;
  const unsigned long long value = std::strtoull(text, &end, 10);
  if (errno != 0 || end == text || *text == '-') die("not a size: %s", text);
  unsigned shift = 0;
  switch (*end) {
    case 'K': case 'k': shift = 10; break;
    case 'M': case 'm': shift = 20; break;
    case 'G': case 'g': shift = 30; break;
    case 'T': case 't': shift = 40; break;
    default: break;
  }
  if (shift != 0) ++end;
  if (*end != '\0' || value > (UINT64_MAX >> shift)) die("not a size: %s", text);
  return value << shift;
}

inline double parse_seconds(const char* text) {
  char* end = nullptr;
  const double value = std::strtod(text, &end);
  if (end == text || *end != '\0' || !(value >= 0) || value > 86400) die("not a number of seconds: %s", text);
  return value;
}

inline void put_be64(uint8_t* to, uint64_t value) {
  value = __builtin_bswap64(value);
  std::memcpy(to, &value, sizeof value);
}
inline void put_be32(uint8_t* to, uint32_t value) {
  value = __builtin_bswap32(value);
  std::memcpy(to, &value, sizeof value);
}
inline uint64_t get_be64(const uint8_t* from) {
  uint64_t value;
  std::memcpy(&value, from, sizeof value);
  return __builtin_bswap64(value);
}
inline uint32_t get_be32(const uint8_t* from) {
  uint32_t value;
  std::memcpy(&value, from, sizeof value);
  return __builtin_bswap32(value);
}

inline void put_request(uint8_t* to, uint8_t command, uint64_t sector, uint32_t length) {
  to[0] = command;
  put_be64(to + 1, sector);
  put_be32(to + 9, length);
}

// Address space that becomes memory only where it is touched; never freed before the process ends or `unmap` is called.
inline uint8_t* map_bytes(size_t bytes) {
  void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (at == MAP_FAILED) die("cannot map %zu bytes: %s", bytes, std::strerror(errno));
  return static_cast<uint8_t*>(at);
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u | 1) {}
  uint64_t next() {  // xorshift64*
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return state_ * 0x2545f4914f6cdd1du;
  }
  // Uniform enough for offsets: the bias is below 2^-32 for any bound that fits in 32 bits.
  uint64_t below(uint64_t bound) {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint64_t>((static_cast<Wide>(next()) * bound) >> 64);
  }

 private:
  uint64_t state_;
};

// Log-linear: 32 buckets to an octave, so a percentile is exact to about 3 %.
class Histogram {
 public:
  void add(uint64_t ns) {
    ++counts_[index(ns)];
    if (ns > max_) max_ = ns;
  }
  void merge(const Histogram& other) {
    for (size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
    if (other.max_ > max_) max_ = other.max_;
  }
  uint64_t count() const {
    uint64_t sum = 0;
    for (uint64_t c : counts_) sum += c;
    return sum;
  }
  double max_us() const { return static_cast<double>(max_) / 1e3; }
  double percentile_us(double fraction) const {
    const uint64_t total = count();
    if (total == 0) return 0;
    const auto wanted = static_cast<uint64_t>(fraction * static_cast<double>(total - 1)) + 1;
    uint64_t seen = 0;
    for (size_t i = 0; i < counts_.size(); ++i) {
      seen += counts_[i];
      if (seen >= wanted) return middle_ns(i) / 1e3;
    }
    return max_us();
  }

 private:
  static constexpr unsigned kSubBits = 5;
  static constexpr size_t kSub = size_t{1} << kSubBits;
  static size_t index(uint64_t ns) {
    if (ns < kSub) return static_cast<size_t>(ns);
    const unsigned exponent = static_cast<unsigned>(std::bit_width(ns)) - 1;
    return (exponent - kSubBits + 1) * kSub + static_cast<size_t>((ns >> (exponent - kSubBits)) & (kSub - 1));
  }
  static double middle_ns(size_t i) {
    if (i < kSub) return static_cast<double>(i);
    const unsigned shift = static_cast<unsigned>(i / kSub) - 1;
    const double low = static_cast<double>((kSub + i % kSub) << shift);
    return low + static_cast<double>(uint64_t{1} << shift) / 2;
  }
  std::array<uint64_t, (64 - kSubBits + 1) * kSub> counts_{};
  uint64_t max_ = 0;
};

}  // namespace bench
