// SPDX-License-Identifier: GPL-2.0-only
// The control device of ublk_drv: disks of the kernel that a process serves are made, begun, ended and told about. It needs
// CAP_SYS_ADMIN. Names and layouts are of <linux/ublk_cmd.h>; what kernels after the build's own have is known here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "io/fd.h"
#include "io/uring/uring_command.h"

namespace netblk::attach {

// What the disk says of itself. Bytes; block sizes are powers of two from 512 to a page.
struct UblkTraits {
  uint64_t size_bytes = 0;
  uint32_t logical_bytes = 512;
  uint32_t physical_bytes = 512;  // not below logical_bytes
  uint32_t optimal_bytes = 4096;  // not below physical_bytes
  uint32_t max_io_bytes = 256u << 10;
  bool read_only = false;
  bool rotational = false;
  bool volatile_cache = false;  // writes are durable after a flush only
  bool fua = false;             // or with it, each by itself; says nothing without a cache
  bool can_trim = false;
  bool can_write_zeroes = false;
};

struct UblkSetup {
  uint32_t depth = 128;
  uint32_t max_io_bytes = 256u << 10;
  // Requests wait when the serving process has died, and those that it had begun are given to its successor again;
  // otherwise the disk goes with it.
  bool recovers = true;
  // Anything that tells our disks from those of others; the kernel keeps it.
  uint64_t mark = 0;
};

enum class UblkState : uint8_t { kDead, kLive, kQuiesced };

struct UblkInfo {
  UblkState state = UblkState::kDead;  // dead: not begun, or ended
  uint64_t mark = 0;
  int pid = -1;  // of who serves it, or did last
  uint32_t depth = 0;
  uint32_t max_io_bytes = 0;
  bool recovers = false;
};

class UblkControl {
 public:
  // ENOENT: the module is not loaded. The message names it, and the command; or says that this kernel has none. EPERM: not
  // root, or io_uring is refused here.
  static Result<UblkControl> open();

  // Takes this number. EEXIST: it is taken. What the kernel made of the setup is in info().
  Status add(uint32_t number, const UblkSetup& setup);
  Status set_traits(uint32_t number, const UblkTraits& traits);
  // Every command of the queue has been given (UblkDisk::serve()). Returns when /dev/ublkbN is there and its partition table
  // has been read.
  Status start(uint32_t number);
  // Waits for the requests that are being served. Then the disk is gone, and what waited has ended with EIO. What is not
  // begun stays so.
  Status stop(uint32_t number);
  // Whether somebody still has the block device of a disk that was stopped open.
  Result<bool> is_held(uint32_t number);
  // Of a disk that was stopped, that nobody holds and whose character device is closed: otherwise it waits for both, in some
  // kernels with every other command in the machine waiting for it.
  Status remove(uint32_t number);
  // ENODEV: there is none of this number.
  Result<UblkInfo> info(uint32_t number);

  // Another process takes over a disk whose own has died. EBUSY: the kernel has not finished with that yet. Between the two
  // it gives every command of the queue.
  Status begin_recovery(uint32_t number);
  Status end_recovery(uint32_t number);

  // EOPNOTSUPP: before Linux 6.16 the size stays as it is.
  Status resize(uint32_t number, uint64_t size_bytes);

  // Commands of this kernel have the form of ioctl()'s numbers.
  bool encoded() const { return (features_ & kEncoded) != 0; }

 private:
  static constexpr uint64_t kEncoded = uint64_t{1} << 6;
  UblkControl(io::UniqueFd fd, io::CommandRing ring) : fd_(std::move(fd)), ring_(std::move(ring)) {}
  int run(uint32_t command, uint32_t number, void* buffer, size_t bytes, uint64_t word = 0);

  io::UniqueFd fd_;
  io::CommandRing ring_;
  uint64_t features_ = 0;  // nothing: the kernel does not tell them (before 6.5)
};

// Whether this machine can have such disks: OK, or why not, and what to do about it.
Status ublk_found();

// The number of "/dev/ublkb3", which may be there or not.
std::optional<uint32_t> ublk_number(const std::string& node);
std::string ublk_node(uint32_t number);

}  // namespace netblk::attach
