// SPDX-License-Identifier: GPL-2.0-only
#include "store/memory_store.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/parse.h"

namespace netblk::store {

using block::Command;
using block::Completion;
using block::Request;

namespace {

// Every request ends inside submit(). Overlapping requests of several threads run one after another: each holds the
// locks of all the stripes that it touches, taken in the order of their numbers.
class MemoryStore final : public block::Device {
 public:
  MemoryStore(std::byte* data, uint64_t size_bytes)
      : Device({.size_bytes = size_bytes, .can_trim = true, .writes_inline = true}), data_(data) {}
  ~MemoryStore() override { ::munmap(data_, geometry().size_bytes); }

 protected:
  void start(Request& request, Completion completion) override {
    int error = 0;
    if (request.command != Command::kFlush) {
      const uint64_t first = request.offset / kStripeBytes;
      const uint64_t count = std::min((request.offset + request.length - 1) / kStripeBytes - first + 1, kStripes);
      each_stripe(first, count, [](std::mutex& stripe) { stripe.lock(); });
      error = request.modifies() && request.is_abandoned() ? ECANCELED : apply(request);
      each_stripe(first, count, [](std::mutex& stripe) { stripe.unlock(); });
    }
    std::move(completion).finish(error);
  }

 private:
  static constexpr uint64_t kStripes = 64;
  static constexpr uint64_t kStripeBytes = 1u << 20;

  // Stripes first to first + count - 1, modulo their number, by number: the wrapped ones come first.
  template <class Action>
  void each_stripe(uint64_t first, uint64_t count, Action action) {
    const uint64_t start = first % kStripes;
    const uint64_t wrapped = start + count > kStripes ? start + count - kStripes : 0;
    for (uint64_t i = 0; i < wrapped; ++i) action(stripes_[i]);
    for (uint64_t i = start; i < std::min(start + count, kStripes); ++i) action(stripes_[i]);
  }

  int apply(const Request& request) {
    std::byte* const at = data_ + request.offset;
    if (request.command == Command::kRead) {
      std::memcpy(request.data, at, request.length);
      return 0;
    }
    if (request.command == Command::kWrite) {
      std::memcpy(at, request.data, request.length);
      return 0;
    }
    // Whole pages go back to the system; the edges are cleared.
    constexpr uint64_t kPage = 4096;
    const uint64_t first = (request.offset + kPage - 1) / kPage * kPage;
    const uint64_t last = (request.offset + request.length) / kPage * kPage;
    if (first >= last || (request.command == Command::kWriteZeroes && request.keep_allocated)) {
      std::memset(at, 0, request.length);
      return 0;
    }
    std::memset(at, 0, first - request.offset);
    std::memset(data_ + last, 0, request.offset + request.length - last);
    return ::madvise(data_ + first, last - first, MADV_DONTNEED) == 0 ? 0 : errno;
  }

  std::byte* data_;
  std::array<std::mutex, kStripes> stripes_;
};

class NullStore final : public block::Device {
 public:
  explicit NullStore(uint64_t size_bytes)
      : Device({.size_bytes = size_bytes, .can_trim = true, .writes_inline = true}) {}

 protected:
  void start(Request& request, Completion completion) override {
    if (request.command == Command::kRead) std::memset(request.data, 0, request.length);
    std::move(completion).finish(0);
  }
};

}  // namespace

Result<std::unique_ptr<block::Device>> make_memory_store(uint64_t size_bytes) {
  void* const data = ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    return make_error(errno, "cannot map {} of memory: {}", size_text(size_bytes), errno_text(errno));
  return std::unique_ptr<block::Device>(std::make_unique<MemoryStore>(static_cast<std::byte*>(data), size_bytes));
}

std::unique_ptr<block::Device> make_null_store(uint64_t size_bytes) { return std::make_unique<NullStore>(size_bytes); }

}  // namespace netblk::store
