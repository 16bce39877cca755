// SPDX-License-Identifier: GPL-2.0-only
// UblkDisk: the queue of one disk of ublk_drv, served by any block::Device.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#include "base/result.h"
#include "block/device.h"
#include "io/loop.h"

namespace netblk::attach {

// What the users of the disk were told, in memory of the caller's that may outlive the process: how many changes were
// acknowledged that were not durable by themselves, and how many of the first of them a flush has covered since.
struct UblkTold {
  std::atomic<uint64_t> acknowledged{0};
  std::atomic<uint64_t> flushed{0};
};

struct UblkQueue {
  uint32_t number = 0;  // of /dev/ublkcN
  uint32_t depth = 0;
  uint32_t max_io_bytes = 0;
  bool encoded = false;       // UblkControl::encoded()
  UblkTold* told = nullptr;   // null: nobody asks
};

// All of it runs on one thread, that of `loop`: the kernel's requests come out of the same ring as what the device itself
// waits for, and their answers go to the kernel with what it sends.
class UblkDisk {
 public:
  // Opens the character device and gives every command of the queue; start() or end_recovery() of the control may follow.
  // EBUSY: another process has it. `loop` runs, takes commands (io::takes_commands()) and, as `device`, outlives the result.
  // on_ended: called once on the thread of the loop when the kernel has taken the whole queue back (UblkControl::stop()).
  static Result<std::unique_ptr<UblkDisk>> serve(block::Device& device, io::Loop& loop, const UblkQueue& queue,
                                                 std::function<void()> on_ended);

  // After on_ended; closes the character device.
  ~UblkDisk();

  // Acknowledged changes may be gone: until this is taken back every flush, and every change with FUA, fails with EIO.
  // Thread-safe; the requests that come after it obey.
  void set_lost(bool lost);

 private:
  class Queue;
  explicit UblkDisk(std::unique_ptr<Queue> queue);
  std::unique_ptr<Queue> queue_;
};

}  // namespace netblk::attach
