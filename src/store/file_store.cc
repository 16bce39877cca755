// SPDX-License-Identifier: GPL-2.0-only
#include "store/file_store.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <utility>

#include "base/check.h"

namespace netblk::store {

using block::Command;
using block::Request;

namespace {

// What a write-zeroes writes where the storage cannot punch holes.
alignas(4096) constexpr std::array<std::byte, 64 * 1024> kZeroes{};

}  // namespace

FileStore::FileStore(const block::Geometry& geometry, std::unique_ptr<io::File> buffered,
                     std::unique_ptr<io::File> direct, uint32_t direct_alignment)
    : Device(geometry),
      buffered_(std::move(buffered)),
      direct_(std::move(direct)),
      direct_alignment_(direct_alignment),
      sync_(*buffered_) {
  NETBLK_CHECK(direct_ == nullptr || direct_alignment_ > 0, "direct I/O without an alignment");
}

// Of what is left to move: the rest of a short move may be aligned no more.
io::File& FileStore::file_for(uint64_t offset, uint64_t length, const std::byte* data) const {
  if (direct_ == nullptr || data == nullptr) return *buffered_;
  const uint64_t bits = offset | length | reinterpret_cast<uintptr_t>(data);
  return bits % direct_alignment_ == 0 ? *direct_ : *buffered_;
}

void FileStore::start(Request& request, block::Completion completion) {
  auto& held = request.held;
  held.completion = std::move(completion);
  held.owner = this;
  held.progress = 0;
  held.op.request = &request;
  held.op.run = [](coro::Runnable& self) {
    Request& resumed = *static_cast<Request::Held::Io&>(self).request;
    if (of(resumed).absorb(resumed, resumed.held.op.result)) of(resumed).drive(resumed);
  };
  switch (request.command) {
    case Command::kRead:
      held.phase = kMoving;
      return drive(request);
    case Command::kFlush: return sync_.join(request);
    case Command::kWrite:
    case Command::kTrim:
    case Command::kWriteZeroes:
      // A change that would never be durable is not begun: after a failed sync the store takes none.
      if (sync_.poisoned()) return std::move(held.completion).finish(EIO);
      held.phase = request.command == Command::kWrite ? kMoving : kPunching;
      if (order_.acquire(request, [](Request& granted) { of(granted).drive(granted); })) drive(request);
  }
}

// Starts operations until one is in flight or the request is over.
void FileStore::drive(Request& request) {
  if (request.modifies() && request.held.progress == 0 && request.is_abandoned())
    return end_data(request, ECANCELED);
  while (begin_operation(request))
    if (!absorb(request, request.held.op.result)) return;
}

// True: it ended at once.
bool FileStore::begin_operation(Request& request) {
  auto& held = request.held;
  io::Loop& loop = io::loop_of(*request.loop);
  const uint64_t at = request.offset + held.progress;
  const uint64_t left = request.length - held.progress;
  if (held.phase == kPunching) return buffered_->punch_hole(loop, held.op, request.offset, request.length);
  std::byte* const data = request.data == nullptr ? nullptr : request.data + held.progress;
  io::File& file = file_for(at, left, data);
  switch (request.command) {
    case Command::kRead: return file.read(loop, held.op, {data, left}, at);
    case Command::kWrite: return file.write(loop, held.op, {data, left}, at);
    default:
      return file.write(loop, held.op, {kZeroes.data(), static_cast<size_t>(std::min<uint64_t>(left, kZeroes.size()))},
                        at);
  }
}

// Takes an operation's result. True: there is more to do. False: the request is over, or waits for its sync.
bool FileStore::absorb(Request& request, int32_t result) {
  auto& held = request.held;
  if (held.phase == kPunching) {
    if (result == -EOPNOTSUPP && request.command == Command::kWriteZeroes) {
      held.phase = kMoving;
      return true;
    }
    // A trim is a hint: storage that cannot take it is no error.
    end_data(request, result == -EOPNOTSUPP ? 0 : -result);
    return false;
  }
  // Short moves are normal; none at all is an end inside the device: somebody truncated the file under us.
  if (result <= 0) {
    end_data(request, result < 0 ? -result : EIO);
    return false;
  }
  held.progress += static_cast<uint64_t>(result);
  if (held.progress < request.length) return true;
  end_data(request, 0);
  return false;
}

void FileStore::end_data(Request& request, int error) {
  if (request.modifies()) order_.release(request);
  if (error == 0 && request.modifies() && request.fua) return sync_.join(request);
  std::move(request.held.completion).finish(error);
}

}  // namespace netblk::store
