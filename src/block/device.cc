// SPDX-License-Identifier: GPL-2.0-only
#include "block/device.h"

#include <cerrno>
#include <utility>

#include "base/limits.h"

namespace netblk::block {
namespace {

std::atomic<unsigned> next_thread_number{0};

unsigned thread_number() {
  static thread_local const unsigned number = next_thread_number.fetch_add(1, std::memory_order_relaxed);
  return number;
}

// A thread that has a shard of its own needs no locked instruction.
void add(std::atomic<uint64_t>& counter, uint64_t amount, bool own) {
  if (own) {
    counter.store(counter.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
  } else {
    counter.fetch_add(amount, std::memory_order_relaxed);
  }
}

// The edge (DESIGN law 5): stores below assert what is refused here.
int refused(const Geometry& geometry, uint64_t size_bytes, const Request& request) {
  if (request.command == Command::kFlush) return 0;
  if (request.modifies() && geometry.read_only) return EROFS;
  if (request.length == 0) return EINVAL;
  if (request.offset > size_bytes || request.length > size_bytes - request.offset) return EINVAL;
  return 0;
}

}  // namespace

const char* command_text(Command command) {
  switch (command) {
    case Command::kRead: return "read";
    case Command::kWrite: return "write";
    case Command::kFlush: return "flush";
    case Command::kTrim: return "trim";
    case Command::kWriteZeroes: return "write-zeroes";
    case Command::kCache: return "cache";
    case Command::kBlockStatus: return "block-status";
  }
  return "unknown";
}

void Completion::finish(int error) && {
  NETBLK_CHECK(request_ != nullptr, "a request is answered twice");
  Request& request = *std::exchange(request_, nullptr);
  NETBLK_CHECK(error != 0 || request.command != Command::kBlockStatus || !request.extents->empty(),
               "a block status without an extent");
  request.error = error;
  request.offset -= std::exchange(request.held.shift, 0);
  request.device->count(request);
  request.on_done(request);
}

Status Device::grow(uint64_t wanted_bytes) {
  if (size_bytes() >= wanted_bytes) return Ok{};
  return make_error(EOPNOTSUPP, "a store of this kind cannot grow while it is in use");
}

void Device::submit(Request& request) {
  NETBLK_CHECK(request.loop != nullptr, "a request without a loop");
  NETBLK_CHECK(request.data != nullptr || (request.command != Command::kRead && request.command != Command::kWrite) ||
                   (request.command == Command::kRead && request.in_place && geometry_.reads_in_place),
               "a read or write without data");
  NETBLK_CHECK(request.command != Command::kBlockStatus || (request.extents != nullptr && request.max_extents > 0),
               "a block status without room for an answer");
  if (request.command == Command::kBlockStatus) request.extents->clear();
  request.device = this;
  Completion completion(request);
  const int error = refused(geometry_, size_bytes(), request);
  if (error != 0) return std::move(completion).finish(error);
  if (!answer_for(request, completion)) start(request, std::move(completion));
}

// What a device need not know of: true if the request has ended here.
bool Device::answer_for(Request& request, Completion& completion) {
  int error = 0;
  if (request.command == Command::kBlockStatus && !geometry_.can_block_status) {
    request.add_extent(request.length, false, false);
  } else if (request.command == Command::kWriteZeroes && request.fast_zero && !geometry_.can_fast_zero) {
    error = EOPNOTSUPP;
  } else if (request.command != Command::kCache || geometry_.can_cache) {
    return false;
  }
  std::move(completion).finish(error);
  return true;
}

// owners() is read by the one who keeps: the server guards both by one lock of its own.
coro::Task<Status> Device::keep_owners(coro::Mailbox&, std::vector<std::byte> record) {
  owners_ = std::move(record);
  co_return Ok{};
}

void Device::count(const Request& request) {
  // The last shard is for all the threads that came too late for one of their own.
  const unsigned number = thread_number();
  const bool own = number < kShards - 1;
  Shard& shard = shards_[own ? number : kShards - 1];
  if (request.error != 0) return add(shard.errors, 1, own);
  switch (request.command) {
    case Command::kRead:
      add(shard.reads, 1, own);
      add(shard.read_bytes, request.length, own);
      break;
    case Command::kWrite:
      add(shard.writes, 1, own);
      add(shard.write_bytes, request.length, own);
      break;
    case Command::kFlush: add(shard.flushes, 1, own); break;
    case Command::kTrim:
    case Command::kWriteZeroes: add(shard.trims, 1, own); break;
    case Command::kCache:
    case Command::kBlockStatus: break;
  }
}

Counters Device::counters() const {
  Counters sum;
  for (const Shard& shard : shards_) {
    sum.reads += shard.reads.load(std::memory_order_relaxed);
    sum.writes += shard.writes.load(std::memory_order_relaxed);
    sum.flushes += shard.flushes.load(std::memory_order_relaxed);
    sum.trims += shard.trims.load(std::memory_order_relaxed);
    sum.read_bytes += shard.read_bytes.load(std::memory_order_relaxed);
    sum.write_bytes += shard.write_bytes.load(std::memory_order_relaxed);
    sum.errors += shard.errors.load(std::memory_order_relaxed);
  }
  return sum;
}

}  // namespace netblk::block
