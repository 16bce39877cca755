// SPDX-License-Identifier: GPL-2.0-only
#include "server/buffer_pool.h"

#include <malloc.h>
#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>

#include "base/check.h"

namespace netblk::server {
namespace {

constexpr size_t kAlignment = 4096;

}  // namespace

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    reset();
    pool_ = other.pool_;
    data_ = std::exchange(other.data_, nullptr);
    size_bytes_ = other.size_bytes_;
  }
  return *this;
}

void Buffer::reset() {
  if (data_ != nullptr) pool_->give_back(std::exchange(data_, nullptr), size_bytes_);
}

BufferPool::~BufferPool() { trim(); }

void BufferPool::trim() {
  for (auto& list : free_) {
    for (std::byte* data : list) std::free(data);
    list.clear();
    list.shrink_to_fit();
  }
  cached_bytes_ = 0;
  ::malloc_trim(0);
}

unsigned BufferPool::shift_for(uint32_t size_bytes) {
  const auto shift = static_cast<unsigned>(std::bit_width(size_bytes - 1));
  return shift < kSmallestShift ? kSmallestShift : shift;
}

Buffer BufferPool::take(uint32_t size_bytes) {
  NETBLK_CHECK(size_bytes > 0 && size_bytes <= limits::kMaxBufferBytes, "a buffer of an impossible size");
  ++taken_;
  const unsigned shift = shift_for(size_bytes);
  if (shift > kLargestShift) {
    void* const data =
        ::mmap(nullptr, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    NETBLK_CHECK(data != MAP_FAILED, "out of memory");
    return Buffer(*this, static_cast<std::byte*>(data), size_bytes);
  }
  auto& list = free_[shift - kSmallestShift];
  if (!list.empty()) {
    std::byte* const data = list.back();
    list.pop_back();
    cached_bytes_ -= uint64_t{1} << shift;
    return Buffer(*this, data, size_bytes);
  }
  auto* const data = static_cast<std::byte*>(std::aligned_alloc(kAlignment, size_t{1} << shift));
  NETBLK_CHECK(data != nullptr, "out of memory");
  return Buffer(*this, data, size_bytes);
}

void BufferPool::give_back(std::byte* data, uint32_t size_bytes) {
  --taken_;
  const unsigned shift = shift_for(size_bytes);
  if (shift > kLargestShift) {
    ::munmap(data, size_bytes);
    return;
  }
  const uint64_t bytes = uint64_t{1} << shift;
  if (cached_bytes_ + bytes > limits::kBufferCacheBytes) {
    std::free(data);
    return;
  }
  cached_bytes_ += bytes;
  free_[shift - kSmallestShift].push_back(data);
}

bool DataBudget::take(uint64_t bytes, coro::Event& waiter) {
  if (waiting_.empty() && fits(bytes)) {
    held_ += bytes;
    return true;
  }
  waiting_.push_back({bytes, &waiter, 0});
  return false;
}

void DataBudget::give_back(uint64_t bytes) {
  NETBLK_CHECK(bytes <= held_, "more bytes come back than were taken");
  held_ -= bytes;
  while (!waiting_.empty()) {
    auto chosen = waiting_.begin();
    if (chosen->overtaken < limits::kBudgetOvertakes)
      chosen = std::min_element(waiting_.begin(), waiting_.end(),
                                [](const Waiting& a, const Waiting& b) { return a.bytes < b.bytes; });
    if (!fits(chosen->bytes)) return;
    for (auto passed = waiting_.begin(); passed != chosen; ++passed) ++passed->overtaken;
    held_ += chosen->bytes;
    chosen->waiter->set();
    waiting_.erase(chosen);
  }
}

}  // namespace netblk::server
