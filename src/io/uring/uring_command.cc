// SPDX-License-Identifier: GPL-2.0-only
#include "io/uring/uring_command.h"

#include <liburing.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "io/uring/uring_loop.h"

namespace netblk::io {
namespace {

// Where the bytes of a command begin in its entry, of either size.
constexpr size_t kBytesAt = 48;

void put(io_uring_sqe& sqe, int fd, uint32_t number, std::span<const std::byte> bytes, void* data) {
  auto* const entry = reinterpret_cast<std::byte*>(&sqe);
  io_uring_prep_rw(IORING_OP_URING_CMD, &sqe, fd, nullptr, 0, 0);
  sqe.cmd_op = number;
  std::memcpy(entry + kBytesAt, bytes.data(), bytes.size());
  io_uring_sqe_set_data(&sqe, data);
}

}  // namespace

bool takes_commands(const Loop& loop) { return dynamic_cast<const UringLoop*>(&loop) != nullptr; }

bool command(Loop& loop, Op& op, int fd, uint32_t number, const CommandBytes& bytes) {
  put(static_cast<UringLoop&>(loop).entry(op), fd, number, bytes, &op);
  return false;
}

struct CommandRing::Ring {
  io_uring ring{};
  bool made = false;
  Ring() = default;
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring() {
    if (made) io_uring_queue_exit(&ring);
  }
};

CommandRing::CommandRing(std::unique_ptr<Ring> ring) : ring_(std::move(ring)) {}
CommandRing::CommandRing(CommandRing&&) noexcept = default;
CommandRing& CommandRing::operator=(CommandRing&&) noexcept = default;
CommandRing::~CommandRing() = default;

Result<CommandRing> CommandRing::open() {
  auto ring = std::make_unique<Ring>();
  const int made = io_uring_queue_init(2, &ring->ring, IORING_SETUP_SQE128);
  if (made == -EINVAL) return make_error(EINVAL, "io_uring of this kernel has no large entries (needs Linux 5.19)");
  if (made != 0) return make_error(-made, "io_uring is refused: {}", errno_text(-made));
  ring->made = true;
  return CommandRing(std::move(ring));
}

int CommandRing::run(int fd, uint32_t number, std::span<const std::byte> bytes) {
  NETBLK_CHECK(bytes.size() <= kBytes, "a command is too long");
  io_uring_sqe* const sqe = io_uring_get_sqe(&ring_->ring);
  NETBLK_CHECK(sqe != nullptr, "a command is given while another runs");
  std::memset(static_cast<void*>(sqe), 0, 2 * sizeof *sqe);
  put(*sqe, fd, number, bytes, nullptr);
  int submitted;
  do {
    submitted = io_uring_submit(&ring_->ring);
  } while (submitted == -EINTR || submitted == -EAGAIN);
  if (submitted < 0) return submitted;
  io_uring_cqe* cqe = nullptr;
  int waited;
  do {
    waited = io_uring_wait_cqe(&ring_->ring, &cqe);
  } while (waited == -EINTR);
  NETBLK_CHECK(waited == 0, "waiting on io_uring failed");
  const int result = cqe->res;
  io_uring_cqe_seen(&ring_->ring, cqe);
  return result;
}

}  // namespace netblk::io
