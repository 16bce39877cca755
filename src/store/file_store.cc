// SPDX-License-Identifier: GPL-2.0-only
#include "store/file_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <utility>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/parse.h"
#include "store/extents.h"

namespace netblk::store {

using block::Command;
using block::Request;

namespace {

// What a write-zeroes writes where the storage cannot punch holes.
alignas(4096) constexpr std::array<std::byte, 64 * 1024> kZeroes{};

// Zeroes that are written in one round of the loop; it has other requests to serve.
constexpr uint64_t kZeroesPerRound = 1u << 20;

}  // namespace

FileStore::FileStore(const block::Geometry& geometry, std::unique_ptr<io::File> buffered,
                     std::unique_ptr<io::File> direct, uint32_t direct_alignment, FileHome home)
    : Device(geometry),
      buffered_(std::move(buffered)),
      direct_(std::move(direct)),
      direct_alignment_(direct_alignment),
      home_(std::move(home)),
      order_(home_.exclusion_bytes),
      sync_(*buffered_, [this](std::function<void()> go_on) {
        if (home_.identity == nullptr) return go_on();
        jobs_.run([this, go_on = std::move(go_on)] {
          home_.identity->sync_failed();
          go_on();
        });
      }) {
  NETBLK_CHECK(direct_ == nullptr || direct_alignment_ > 0, "direct I/O without an alignment");
}

FileStore::~FileStore() {
  looks_.finish();
  jobs_.finish();
  const bool is_durable = !home_.before_close || home_.before_close() == 0;
  if (home_.identity == nullptr) return;
  if (!is_durable) home_.identity->sync_failed();
  home_.identity->close();
}

block::Generation FileStore::generation() const {
  return home_.identity != nullptr ? home_.identity->generation() : Device::generation();
}

std::vector<std::byte> FileStore::owners() const {
  return home_.identity != nullptr ? home_.identity->owners() : Device::owners();
}

// Waits for the disk on the job thread, and comes back to the loop.
struct FileStore::KeepOwners : coro::Posted {
  KeepOwners(FileStore& owner, coro::Mailbox& home, std::vector<std::byte> what)
      : Posted([](coro::Runnable& self) { static_cast<KeepOwners&>(self).waiter.resume(); }),
        store(owner), loop(home), record(std::move(what)) {}
  bool await_ready() const { return false; }
  void await_suspend(std::coroutine_handle<> handle) {
    waiter = handle;
    store.jobs_.run([this] {
      kept = store.home_.identity->keep_owners(std::move(record));
      loop.post(*this);
    });
  }
  Status await_resume() { return std::move(kept); }

  FileStore& store;
  coro::Mailbox& loop;
  std::vector<std::byte> record;
  Status kept = Ok{};
  std::coroutine_handle<> waiter;
};

coro::Task<Status> FileStore::keep_owners(coro::Mailbox& loop, std::vector<std::byte> record) {
  if (home_.identity == nullptr) {
    Status kept = co_await Device::keep_owners(loop, std::move(record));
    co_return kept;
  }
  KeepOwners keep(*this, loop, std::move(record));
  Status kept = co_await keep;
  co_return kept;
}

// --- The size -------------------------------------------------------------------------------------------------------

void FileStore::look_at_size(bool cached) {
  const auto size = fd_size_bytes(home_.fd.get(), cached);
  if (!size || size.value() == size_bytes()) return;
  log_info("{}: its size was {} and is now {}", home_.path, size_text(size_bytes()), size_text(size.value()));
  set_size_bytes(size.value());
}

void FileStore::refresh_size() {
  if (!home_.fd.valid()) return;
  const std::lock_guard lock(size_mutex_);
  look_at_size(false);
}

Status FileStore::grow(uint64_t wanted_bytes) {
  if (!home_.fd.valid()) return Device::grow(wanted_bytes);
  const std::lock_guard lock(size_mutex_);
  look_at_size(false);
  if (size_bytes() >= wanted_bytes || geometry().read_only) return Ok{};
  if (auto grown = grow_file(home_.fd.get(), wanted_bytes, home_.path); !grown) return grown;
  if (home_.identity != nullptr) home_.identity->resized();
  look_at_size(false);
  return Ok{};
}

// A file that was cut must not grow again by a write that passed the edge before: the file itself is asked, once for all
// that one round of its loop brings, so that it costs a busy store next to nothing.
bool FileStore::cut_off(const Request& request) {
  if (home_.fd.valid()) {
    const io::Loop& loop = io::loop_of(*request.loop);
    // Rounds are a loop's own count; its address tells it from the others.
    const uint64_t look = loop.round() ^ (reinterpret_cast<uintptr_t>(&loop) << 24);
    if (last_look_.load(std::memory_order_relaxed) != look) {
      last_look_.store(look, std::memory_order_relaxed);
      const std::lock_guard lock(size_mutex_);
      look_at_size(true);
    }
  }
  const uint64_t size = size_bytes();
  return request.offset > size || request.length > size - request.offset;
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
    case Command::kCache:
    case Command::kBlockStatus: return look(request);
    case Command::kWrite:
    case Command::kTrim:
    case Command::kWriteZeroes:
      // A change that would never be durable is not begun: after a failed sync the store takes none.
      if (sync_.poisoned()) return std::move(held.completion).finish(EIO);
      held.phase = first_phase(request);
      if (held.phase == kMoving && request.fast_zero) return std::move(held.completion).finish(EOPNOTSUPP);
      if (home_.identity != nullptr && !home_.identity->writes_begun()) return wait_for_record(request);
      begin_change(request);
  }
}

// A block device zeroes by itself only whole sectors, and may do so by writing: that is not fast. What it has is never
// given back by zeroes that are to stay allocated.
FileStore::Phase FileStore::first_phase(const Request& request) const {
  if (request.command == Command::kWrite) return kMoving;
  if (request.command == Command::kTrim) return kPunching;
  const bool whole = (request.offset | request.length) % home_.punch_alignment == 0;
  if (!whole) return kMoving;
  if (!request.keep_allocated) return kPunching;
  return home_.punch_alignment == 1 ? kZeroing : kMoving;
}

void FileStore::begin_change(Request& request) {
  if (order_.acquire(request, [](Request& granted) { of(granted).drive(granted); })) drive(request);
}

// Only at the first change after the store was opened clean (Identity::begin_writes()).
void FileStore::wait_for_record(Request& request) {
  {
    const std::lock_guard lock(unrecorded_mutex_);
    request.held.next = unrecorded_;
    unrecorded_ = &request;
    if (recording_) return;
    recording_ = true;
  }
  jobs_.run([this] { record_done(home_.identity->begin_writes()); });
}

void FileStore::record_done(const Status& begun) {
  Request* waiting = nullptr;
  {
    const std::lock_guard lock(unrecorded_mutex_);
    waiting = std::exchange(unrecorded_, nullptr);
    recording_ = false;
  }
  if (!begun)
    log_error("{}: its record cannot say that it is being written, so no write is taken: {}", home_.path,
              begun.error().message);
  while (waiting != nullptr) {
    Request& request = *std::exchange(waiting, waiting->held.next);
    request.error = begun ? 0 : begun.error().code;
    request.held.hop.send(request, [](Request& told) {
      if (told.error != 0) return std::move(told.held.completion).finish(told.error);
      of(told).begin_change(told);
    });
  }
}

// Starts operations until one is in flight or the request is over.
void FileStore::drive(Request& request) {
  if (request.modifies() && request.held.progress == 0 && request.is_abandoned())
    return end_data(request, ECANCELED);
  const uint64_t pause_at = request.held.progress + kZeroesPerRound;
  while (begin_operation(request)) {
    if (!absorb(request, request.held.op.result)) return;
    if (request.command == Command::kWriteZeroes && request.held.progress >= pause_at)
      return request.held.hop.send(request, [](Request& resumed) { of(resumed).drive(resumed); });
  }
}

// True: it ended at once.
bool FileStore::begin_operation(Request& request) {
  auto& held = request.held;
  io::Loop& loop = io::loop_of(*request.loop);
  if (request.modifies() && cut_off(request)) return held.op.finish_now(-EINVAL);
  const uint64_t at = request.offset + held.progress;
  const uint64_t left = request.length - held.progress;
  if (held.phase == kPunching) {
    const uint64_t unit = home_.punch_alignment;
    const uint64_t first = (request.offset + unit - 1) / unit * unit;
    const uint64_t last = (request.offset + request.length) / unit * unit;
    if (first >= last) return held.op.finish_now(0);
    return buffered_->punch_hole(loop, held.op, first, last - first);
  }
  if (held.phase == kZeroing) return buffered_->zero_range(loop, held.op, request.offset, request.length);
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
  if (held.phase != kMoving) {
    if (result == -EOPNOTSUPP && request.command == Command::kWriteZeroes && !request.fast_zero) {
      held.phase = kMoving;
      return true;
    }
    if (request.command == Command::kWriteZeroes) {
      end_data(request, -result);
      return false;
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

// --- What waits for the disk and moves no data ----------------------------------------------------------------------

namespace {

// The kernel reads no more ahead for one call than it would for a reader: small steps, and an end.
void read_ahead(int fd, const Request& request) {
  constexpr uint64_t kStepBytes = 128u << 10;
  const uint64_t length = std::min(request.length, limits::kMaxCacheBytes);
  for (uint64_t done = 0; done < length; done += kStepBytes)
    (void)::posix_fadvise(fd, static_cast<off_t>(request.offset + done),
                          static_cast<off_t>(std::min(kStepBytes, length - done)), POSIX_FADV_WILLNEED);
}

}  // namespace

void FileStore::look(Request& request) {
  looks_.run([this, &request] {
    const int fd = home_.fd.get();
    if (request.command == Command::kCache) {
      read_ahead(fd, request);
    } else if (home_.find_extents) {
      home_.find_extents(request);
    } else {
      (void)add_file_extents(fd, 0, request.offset, request.offset + request.length, request);
    }
    request.held.hop.send(request, [](Request& told) { std::move(told.held.completion).finish(0); });
  });
}

}  // namespace netblk::store
