// SPDX-License-Identifier: GPL-2.0-only
#include "store/memory_store.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <utility>

#include "base/parse.h"
#include "store/home_lock.h"

namespace netblk::store {

using block::Command;
using block::Completion;
using block::Request;

namespace {

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24  // Linux 5.18
#endif

// READs, WRITEs and block status end inside submit(). Overlapping requests of several threads run one after another: each
// holds the locks of all the stripes that it touches, taken in the order of their numbers. READs in place copy nothing:
// their users look at the memory later, under no lock. A TRIM or WRITE_ZEROES may be as long as the disk, and clearing
// memory takes its time: it goes in pieces, each of them whole, and after so many bytes the loop's others have their turn.
class MemoryStore final : public block::Device {
 public:
  // data, used: mappings of zeroes that the system fills when they are first written; `used` has a bit for each page.
  MemoryStore(std::byte* data, uint64_t* used, uint64_t size_bytes)
      : Device({.size_bytes = size_bytes, .can_trim = true, .can_fast_zero = true, .can_block_status = true,
                .writes_inline = true, .reads_in_place = true}),
        data_(data), used_(used) {}
  ~MemoryStore() override {
    ::munmap(data_, size_bytes());
    ::munmap(used_, used_bytes(size_bytes()));
  }

  static uint64_t page_bytes() {
    static const auto bytes = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
    return bytes;
  }
  static uint64_t used_bytes(uint64_t size_bytes) {
    const uint64_t pages = (size_bytes + page_bytes() - 1) / page_bytes();
    return (pages + 63) / 64 * sizeof(uint64_t);
  }

 protected:
  void start(Request& request, Completion completion) override {
    int error = 0;
    if (request.command == Command::kRead && request.in_place) {
      request.data = data_ + request.offset;
    } else if (request.command == Command::kTrim || request.command == Command::kWriteZeroes) {
      request.held.progress = request.held.phase = 0;
      return clear_on(request, std::move(completion));
    } else if (request.command != Command::kFlush) {
      guarded(request.offset, request.offset + request.length, [&] { error = apply(request); });
    }
    std::move(completion).finish(error);
  }

 private:
  static constexpr uint64_t kStripes = 64;
  // Of a disk: pages are whole in one.
  static constexpr uint64_t kPieceBytes = 8u << 20;
  // What one turn of the loop clears. To look at a piece, and to give memory back, costs as much as some bytes.
  static constexpr uint64_t kTurnBytes = 8u << 20;
  static constexpr uint64_t kLookCost = 16u << 10;
  static constexpr uint64_t kGivenBackPerByte = 8;
  // The bits of a stripe's pages fill whole words, so that each word is guarded by one lock.
  static uint64_t stripe_bytes() { return std::max<uint64_t>(1u << 20, 64 * page_bytes()); }

  // Stripes first to first + count - 1, modulo their number, by number: the wrapped ones come first.
  template <class Action>
  void each_stripe(uint64_t first, uint64_t count, Action action) {
    const uint64_t start = first % kStripes;
    const uint64_t wrapped = start + count > kStripes ? start + count - kStripes : 0;
    for (uint64_t i = 0; i < wrapped; ++i) action(stripes_[i]);
    for (uint64_t i = start; i < std::min(start + count, kStripes); ++i) action(stripes_[i]);
  }

  template <class Action>
  void guarded(uint64_t offset, uint64_t end, Action action) {
    if (home_.enter()) {
      action();
      home_.leave();
      return;
    }
    const uint64_t stripe = stripe_bytes();
    const uint64_t first = offset / stripe;
    const uint64_t count = std::min((end - 1) / stripe - first + 1, kStripes);
    each_stripe(first, count, [](std::mutex& one) { one.lock(); });
    action();
    each_stripe(first, count, [](std::mutex& one) { one.unlock(); });
  }

  bool is_used(uint64_t page) const { return (used_[page / 64] >> (page % 64) & 1) != 0; }
  // Of the pages [page, end): how many, from the first, are as that one.
  uint64_t alike(uint64_t page, uint64_t end) const {
    const uint64_t flip = is_used(page) ? ~uint64_t{0} : 0;
    uint64_t at = page;
    while (at < end) {
      const uint64_t others = (used_[at / 64] ^ flip) >> (at % 64);
      if (others != 0) return std::min(at + static_cast<uint64_t>(std::countr_zero(others)), end) - page;
      at = (at / 64 + 1) * 64;
    }
    return end - page;
  }
  // Reads before it writes: pages that are in use already cost no store.
  void mark(uint64_t page, uint64_t end, bool used) {
    while (page < end) {
      const uint64_t bits = std::min(end - page, 64 - page % 64);
      const uint64_t mask = (bits == 64 ? ~uint64_t{0} : (uint64_t{1} << bits) - 1) << (page % 64);
      uint64_t& word = used_[page / 64];
      const uint64_t wanted = used ? word | mask : word & ~mask;
      if (word != wanted) word = wanted;
      page += bits;
    }
  }

  int apply(Request& request) {
    if (request.modifies() && request.is_abandoned()) return ECANCELED;
    if (request.command == Command::kWrite) {
      mark_bytes(request.offset, request.offset + request.length);
      std::memcpy(data_ + request.offset, request.data, request.length);
    } else {
      each_run(request);
    }
    return 0;
  }
  void mark_bytes(uint64_t offset, uint64_t end) {
    mark(offset / page_bytes(), (end + page_bytes() - 1) / page_bytes(), true);
  }

  // A page that was never written is not touched: a read of it would make the system map it.
  void each_run(Request& request) {
    const uint64_t page = page_bytes();
    const uint64_t end = request.offset + request.length;
    const uint64_t end_page = (end + page - 1) / page;
    for (uint64_t at = request.offset; at < end;) {
      const bool used = is_used(at / page);
      const uint64_t until = std::min(end, (at / page + alike(at / page, end_page)) * page);
      if (request.command == Command::kBlockStatus) {
        if (!request.add_extent(until - at, !used, !used)) return;
      } else if (used) {
        std::memcpy(request.data + (at - request.offset), data_ + at, until - at);
      } else {
        std::memset(request.data + (at - request.offset), 0, until - at);
      }
      at = until;
    }
  }

  // held.progress: the bytes that are done; held.phase: something has changed.
  void clear_on(Request& request, Completion completion) {
    const uint64_t end = request.offset + request.length;
    uint64_t work = 0;
    while (request.held.progress < request.length) {
      if (work >= kTurnBytes) {
        request.held.completion = std::move(completion);
        request.held.owner = this;
        return request.held.hop.send(request, [](Request& waiting) {
          static_cast<MemoryStore*>(waiting.held.owner)->clear_on(waiting, std::move(waiting.held.completion));
        });
      }
      const uint64_t at = request.offset + request.held.progress;
      const uint64_t until = std::min(end, (at / kPieceBytes + 1) * kPieceBytes);
      int error = 0;
      guarded(at, until, [&] { error = clear_piece(request, at, until, work); });
      if (error != 0) return std::move(completion).finish(error);
      work += kLookCost;
      request.held.progress += until - at;
    }
    std::move(completion).finish(0);
  }

  int clear_piece(Request& request, uint64_t offset, uint64_t end, uint64_t& work) {
    if (request.is_abandoned()) return ECANCELED;
    const bool keep = request.command == Command::kWriteZeroes && request.keep_allocated;
    const bool fast = request.command == Command::kWriteZeroes && request.fast_zero;
    if (!keep) return clear(offset, end, fast, request.held.phase, work);
    if (fast) return EOPNOTSUPP;
    mark_bytes(offset, end);
    std::memset(data_ + offset, 0, end - offset);
    work += end - offset;
    return 0;
  }

  // Locked memory (mlockall) goes back only where the system knows how.
  static bool give_back(std::byte* data, uint64_t bytes) {
    return ::madvise(data, bytes, MADV_DONTNEED) == 0 || ::madvise(data, bytes, MADV_DONTNEED_LOCKED) == 0;
  }

  // Whole pages go back to the system; the edges, and what it does not take, are cleared.
  int clear(uint64_t offset, uint64_t end, bool fast, uint8_t& changed, uint64_t& work) {
    const uint64_t page = page_bytes();
    const uint64_t first = (offset + page - 1) / page;
    // What lies beyond the end of the device is no edge.
    const uint64_t last = end == size_bytes() ? (end + page - 1) / page : end / page;
    for (uint64_t at = first; at < last;) {
      const uint64_t run = alike(at, last);
      if (is_used(at)) {
        if (give_back(data_ + at * page, run * page)) {
          mark(at, at + run, false);
          work += run * page / kGivenBackPerByte;
        } else if (fast && changed == 0) {
          return EOPNOTSUPP;
        } else {
          // Still there, and known to be zeroes to nobody.
          std::memset(data_ + at * page, 0, run * page);
          work += run * page;
        }
        changed = 1;
      }
      at += run;
    }
    clear_edge(offset, std::min(first * page, end), changed);
    clear_edge(std::max(first, last) * page, end, changed);
    return 0;
  }
  void clear_edge(uint64_t offset, uint64_t end, uint8_t& changed) {
    if (offset >= end || !is_used(offset / page_bytes())) return;
    std::memset(data_ + offset, 0, end - offset);
    changed = 1;
  }

  std::byte* data_;
  uint64_t* used_;
  HomeLock home_;
  std::array<std::mutex, kStripes> stripes_;
};

class NullStore final : public block::Device {
 public:
  explicit NullStore(uint64_t size_bytes)
      : Device({.size_bytes = size_bytes, .can_trim = true, .can_fast_zero = true, .can_block_status = true,
                .writes_inline = true}) {}

 protected:
  void start(Request& request, Completion completion) override {
    if (request.command == Command::kBlockStatus) request.add_extent(request.length, true, true);
    if (request.command == Command::kRead) std::memset(request.data, 0, request.length);
    std::move(completion).finish(0);
  }
};

}  // namespace

Result<std::unique_ptr<block::Device>> make_memory_store(uint64_t size_bytes) {
  const auto zeroes = [](uint64_t bytes) {
    return ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  };
  void* const data = zeroes(size_bytes);
  void* const used = data == MAP_FAILED ? MAP_FAILED : zeroes(MemoryStore::used_bytes(size_bytes));
  if (used == MAP_FAILED) {
    const int error = errno;
    if (data != MAP_FAILED) ::munmap(data, size_bytes);
    return make_error(error, "cannot map {} of memory: {}", size_text(size_bytes), errno_text(error));
  }
  return std::unique_ptr<block::Device>(
      std::make_unique<MemoryStore>(static_cast<std::byte*>(data), static_cast<uint64_t*>(used), size_bytes));
}

std::unique_ptr<block::Device> make_null_store(uint64_t size_bytes) { return std::make_unique<NullStore>(size_bytes); }

}  // namespace netblk::store
