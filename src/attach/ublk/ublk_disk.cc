// SPDX-License-Identifier: GPL-2.0-only
#include "attach/ublk/ublk_disk.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <future>
#include <thread>
#include <utility>
#include <vector>

#include "attach/ublk/ublk_abi.h"
#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"
#include "io/uring/uring_command.h"

namespace netblk::attach {
namespace {

using block::Command;
using block::Request;

// A node may come a moment after its device, and the one who served it before may still be on its way out.
constexpr uint64_t kOpenWithinMs = 30'000;
constexpr auto kOpenPause = std::chrono::milliseconds(20);

// Memory mapped for as long as it lives.
class Mapping {
 public:
  Mapping() = default;
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (memory_ != nullptr) (void)::munmap(memory_, bytes_);
  }
  Status map(size_t bytes, int protection, int flags, int fd, const char* what) {
    void* const memory = ::mmap(nullptr, bytes, protection, flags, fd, 0);
    if (memory == MAP_FAILED) return make_error(errno, "cannot map {}: {}", what, errno_text(errno));
    memory_ = memory;
    bytes_ = bytes;
    return Ok{};
  }
  std::byte* bytes() const { return static_cast<std::byte*>(memory_); }

 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

// The kernel's status codes know few of errno's values, and a user of a disk fewer: the rest is a failure of the disk.
int32_t answer_of(int error) {
  switch (error) {
    case ENOSPC:
    case EOPNOTSUPP:
      return -error;
    default:
      return -EIO;
  }
}

Result<io::UniqueFd> open_queue(uint32_t number, const io::Clock& clock) {
  const std::string node = fmt::format("/dev/ublkc{}", number);
  const uint64_t end_ms = clock.now_ms() + kOpenWithinMs;
  for (;;) {
    io::UniqueFd fd(::open(node.c_str(), O_RDWR | O_CLOEXEC));
    if (fd.valid()) return fd;
    const int error = errno;
    if ((error != ENOENT && error != EBUSY && error != EACCES) || clock.now_ms() >= end_ms)
      return make_error(error, "cannot open {}: {}", node, errno_text(error));
    std::this_thread::sleep_for(kOpenPause);
  }
}

}  // namespace

class UblkDisk::Queue {
 public:
  Queue(block::Device& device, io::Loop& loop, const UblkQueue& queue, std::function<void()> on_ended)
      : device_(device), loop_(loop), queue_(queue), on_ended_(std::move(on_ended)), begin_(*this) {}
  Queue(const Queue&) = delete;
  Queue& operator=(const Queue&) = delete;
  ~Queue() { NETBLK_CHECK(taken_.load(std::memory_order_acquire) == 0, "a queue of ublk is destroyed while the kernel has it"); }

  Status start();
  void set_lost(bool lost) { lost_.store(lost, std::memory_order_release); }

 private:
  // One tag: its command is with the kernel, or its request with the device.
  struct Slot : io::Op {
    Slot(Queue& owner, uint16_t number)
        : Op([](coro::Runnable& self) {
            auto& slot = static_cast<Slot&>(self);
            slot.queue.arrived(slot);
          }),
          queue(owner), tag(number), request(*this) {}

    struct SlotRequest : Request {
      explicit SlotRequest(Slot& owner)
          : Request([](Request& done) {
              Slot& ended = static_cast<SlotRequest&>(done).slot;
              ended.queue.answer(ended);
            }),
            slot(owner) {}
      Slot& slot;
    };
    Queue& queue;
    const uint16_t tag;
    std::byte* buffer = nullptr;
    uint64_t flush_mark = 0;  // of a flush: what was acknowledged when it came
    SlotRequest request;
  };

  struct Begin : io::Posted {
    explicit Begin(Queue& owner)
        : Posted([](coro::Runnable& self) { static_cast<Begin&>(self).queue.give_all(); }), queue(owner) {}
    Queue& queue;
    std::promise<void> given;
  };

  void give_all();
  void give(Slot& slot, uint32_t command, int32_t result);
  void arrived(Slot& slot);
  bool understood(Slot& slot);
  void answer(Slot& slot);
  void note(const Slot& slot) const;

  block::Device& device_;
  io::Loop& loop_;
  const UblkQueue queue_;
  const std::function<void()> on_ended_;
  std::atomic<bool> lost_{false};
  std::atomic<uint32_t> taken_{0};  // slots that are the kernel's or the device's
  io::UniqueFd fd_;
  Mapping asked_;  // what the kernel asks, by tag
  Mapping data_;
  std::vector<std::unique_ptr<Slot>> slots_;
  Begin begin_;
};

Status UblkDisk::Queue::start() {
  auto fd = open_queue(queue_.number, loop_.clock());
  if (!fd) return std::move(fd).error();
  fd_ = std::move(fd).value();
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t asked_bytes = (queue_.depth * sizeof(ublksrv_io_desc) + page - 1) / page * page;
  Status mapped = asked_.map(asked_bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fd_.get(), "the queue of ublk");
  if (!mapped) return mapped;
  mapped = data_.map(size_t{queue_.depth} * queue_.max_io_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                     "memory for data");
  if (!mapped) return mapped;
  slots_.reserve(queue_.depth);
  for (uint32_t tag = 0; tag < queue_.depth; ++tag) {
    slots_.push_back(std::make_unique<Slot>(*this, static_cast<uint16_t>(tag)));
    Slot& slot = *slots_.back();
    slot.buffer = data_.bytes() + size_t{tag} * queue_.max_io_bytes;
    slot.request.loop = &loop_;
  }
  taken_ = queue_.depth;
  auto given = begin_.given.get_future();
  loop_.post(begin_);
  given.wait();
  return Ok{};
}

void UblkDisk::Queue::give_all() {
  for (const auto& slot : slots_) give(*slot, UBLK_IO_FETCH_REQ, 0);
  begin_.given.set_value();
}

void UblkDisk::Queue::give(Slot& slot, uint32_t command, int32_t result) {
  ublksrv_io_cmd words{};
  words.q_id = 0;
  words.tag = slot.tag;
  words.result = result;
  words.addr = reinterpret_cast<uint64_t>(slot.buffer);
  io::CommandBytes bytes{};
  static_assert(sizeof words <= sizeof bytes);
  std::memcpy(bytes.data(), &words, sizeof words);
  (void)io::command(loop_, slot, fd_.get(), abi::queue_number(command, queue_.encoded), bytes);
}

void UblkDisk::Queue::arrived(Slot& slot) {
  if (slot.result == UBLK_IO_RES_OK) {
    if (understood(slot)) device_.submit(slot.request);
    return;
  }
  if (slot.result != UBLK_IO_RES_ABORT)
    log_error("{}: the kernel's ublk refuses a command of its queue: {}", ublk_node(queue_.number), errno_text(-slot.result));
  // The last one ends the queue: who waits for it may destroy it at once.
  if (taken_.load(std::memory_order_relaxed) == 1) {
    const std::function<void()> ended = on_ended_;
    taken_.store(0, std::memory_order_release);
    ended();
    return;
  }
  taken_.fetch_sub(1, std::memory_order_acq_rel);
}

// Whether there is a request for the device now; otherwise it was answered.
bool UblkDisk::Queue::understood(Slot& slot) {
  ublksrv_io_desc asked;
  std::memcpy(&asked, asked_.bytes() + slot.tag * sizeof asked, sizeof asked);
  Request& request = slot.request;
  request.offset = asked.start_sector * limits::kSectorBytes;
  request.length = uint64_t{asked.nr_sectors} * limits::kSectorBytes;
  request.data = nullptr;
  request.fua = (asked.op_flags & UBLK_IO_F_FUA) != 0;
  request.keep_allocated = false;
  switch (ublksrv_get_op(&asked)) {
    case UBLK_IO_OP_READ:
      request.command = Command::kRead;
      request.fua = false;
      request.data = slot.buffer;
      break;
    case UBLK_IO_OP_WRITE:
      request.command = Command::kWrite;
      request.data = slot.buffer;
      break;
    case UBLK_IO_OP_FLUSH:
      request.command = Command::kFlush;
      request.fua = false;
      request.offset = request.length = 0;
      break;
    case UBLK_IO_OP_DISCARD:
      request.command = Command::kTrim;
      break;
    case UBLK_IO_OP_WRITE_ZEROES:
      request.command = Command::kWriteZeroes;
      request.keep_allocated = (asked.op_flags & UBLK_IO_F_NOUNMAP) != 0;
      break;
    default:
      give(slot, UBLK_IO_COMMIT_AND_FETCH_REQ, -EOPNOTSUPP);
      return false;
  }
  const bool flushes = request.command == Command::kFlush || request.fua;
  if ((flushes && lost_.load(std::memory_order_acquire)) || (request.data != nullptr && request.length > queue_.max_io_bytes)) {
    give(slot, UBLK_IO_COMMIT_AND_FETCH_REQ, -EIO);
    return false;
  }
  if (queue_.told != nullptr) slot.flush_mark = queue_.told->acknowledged.load(std::memory_order_relaxed);
  return true;
}

void UblkDisk::Queue::answer(Slot& slot) {
  const Request& request = slot.request;
  if (request.error != 0) return give(slot, UBLK_IO_COMMIT_AND_FETCH_REQ, answer_of(request.error));
  // Before the kernel hears of it: whoever comes after a sudden end may count too many, and never too few.
  if (queue_.told != nullptr) note(slot);
  const bool moves = request.command == Command::kRead || request.command == Command::kWrite;
  give(slot, UBLK_IO_COMMIT_AND_FETCH_REQ, moves ? static_cast<int32_t>(request.length) : 0);
}

void UblkDisk::Queue::note(const Slot& slot) const {
  UblkTold& told = *queue_.told;
  if (slot.request.command == Command::kFlush) {
    if (slot.flush_mark > told.flushed.load(std::memory_order_relaxed))
      told.flushed.store(slot.flush_mark, std::memory_order_relaxed);
  } else if (slot.request.modifies() && !slot.request.fua) {
    told.acknowledged.store(told.acknowledged.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  }
}

UblkDisk::UblkDisk(std::unique_ptr<Queue> queue) : queue_(std::move(queue)) {}
UblkDisk::~UblkDisk() = default;

Result<std::unique_ptr<UblkDisk>> UblkDisk::serve(block::Device& device, io::Loop& loop, const UblkQueue& queue,
                                                  std::function<void()> on_ended) {
  NETBLK_CHECK(io::takes_commands(loop), "ublk is served by a loop of another kind");
  auto made = std::make_unique<Queue>(device, loop, queue, std::move(on_ended));
  Status started = made->start();
  if (!started) return std::move(started).error();
  return std::unique_ptr<UblkDisk>(new UblkDisk(std::move(made)));
}

void UblkDisk::set_lost(bool lost) { queue_->set_lost(lost); }

}  // namespace netblk::attach
