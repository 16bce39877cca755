// SPDX-License-Identifier: GPL-2.0-only
#include "store/memory_store.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/parse.h"
#include "store/write_order.h"

namespace netblk::store {

using block::Command;
using block::Completion;
using block::Request;

namespace {

class MemoryStore final : public block::Device {
 public:
  MemoryStore(std::byte* data, uint64_t size_bytes)
      : Device({.size_bytes = size_bytes, .can_trim = true}), data_(data) {}
  ~MemoryStore() override { ::munmap(data_, geometry().size_bytes); }

 protected:
  void start(Request& request, Completion completion) override {
    request.held.completion = std::move(completion);
    request.held.owner = this;
    if (!request.modifies()) {
      if (request.command == Command::kRead)
        std::memcpy(request.data, data_ + request.offset, request.length);
      return std::move(request.held.completion).finish(0);
    }
    if (order_.acquire(request, [](Request& granted) {
          static_cast<MemoryStore*>(granted.held.owner)->change(granted);
        }))
      change(request);
  }

 private:
  void change(Request& request) {
    const int error = request.is_abandoned() ? ECANCELED : apply(request);
    order_.release(request);
    std::move(request.held.completion).finish(error);
  }

  int apply(const Request& request) {
    std::byte* const at = data_ + request.offset;
    if (request.command == Command::kWrite) {
      std::memcpy(at, request.data, request.length);
      return 0;
    }
    // Whole pages go back to the system; the edges are cleared.
    constexpr uint64_t kPage = 4096;
    const uint64_t first = (request.offset + kPage - 1) / kPage * kPage;
    const uint64_t last = (request.offset + request.length) / kPage * kPage;
    if (first >= last) {
      std::memset(at, 0, request.length);
      return 0;
    }
    std::memset(at, 0, first - request.offset);
    std::memset(data_ + last, 0, request.offset + request.length - last);
    return ::madvise(data_ + first, last - first, MADV_DONTNEED) == 0 ? 0 : errno;
  }

  std::byte* data_;
  WriteOrder order_;
};

class NullStore final : public block::Device {
 public:
  explicit NullStore(uint64_t size_bytes) : Device({.size_bytes = size_bytes, .can_trim = true}) {}

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
