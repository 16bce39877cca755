// SPDX-License-Identifier: GPL-2.0-only
// Commands to a driver by way of the ring (IORING_OP_URING_CMD), which take the place of ioctl() there.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "base/result.h"
#include "io/loop.h"
#include "io/op.h"

namespace netblk::io {

// What an entry of usual size carries beside the command's number.
using CommandBytes = std::array<std::byte, 16>;

// Whether the loop is a ring of ours.
bool takes_commands(const Loop& loop);

// On the thread of the loop, which takes commands. result: the driver's answer, negative: an errno value. Returns false:
// it never ends at once.
bool command(Loop& loop, Op& op, int fd, uint32_t number, const CommandBytes& bytes);

// A ring of its own, with entries of double size, for commands that may sleep: one at a time, each waited for. Of one
// thread at a time.
class CommandRing {
 public:
  // What such an entry carries.
  static constexpr size_t kBytes = 80;

  static Result<CommandRing> open();
  CommandRing(CommandRing&&) noexcept;
  CommandRing& operator=(CommandRing&&) noexcept;
  ~CommandRing();

  // The driver's answer; negative: an errno value. Not interrupted by signals that are caught.
  int run(int fd, uint32_t number, std::span<const std::byte> bytes);

 private:
  struct Ring;
  explicit CommandRing(std::unique_ptr<Ring> ring);
  std::unique_ptr<Ring> ring_;
};

}  // namespace netblk::io
