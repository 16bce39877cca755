// SPDX-License-Identifier: GPL-2.0-only
// FuseDisk: any block::Device as the one file `disk` of a private FUSE mount, for a loop device to stand on.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "block/device.h"
#include "io/loop.h"

namespace netblk::attach {

// One thread reads requests from the kernel and hands them to the device on the thread of `loop`; they are answered
// from their completions, so that no thread waits for a request. When the process dies the kernel fails what is
// waiting, and all that follows, at once.
class FuseDisk {
 public:
  // Mounts on `directory`, which exists and is the caller's alone. `loop` runs and, as `device`, outlives the result.
  // on_closed: called on the reading thread each time the last opener has closed the file.
  static Result<std::unique_ptr<FuseDisk>> mount(block::Device& device, io::Loop& loop, const std::string& directory,
                                                 std::function<void()> on_closed);

  // Unmounts, and waits for the requests in flight and for the last opener to be gone: close it before.
  ~FuseDisk();

  // Of the file. A loop device on it does no caching of its own (direct I/O).
  std::string path() const;

 private:
  class Session;
  explicit FuseDisk(std::unique_ptr<Session> session);
  std::unique_ptr<Session> session_;
};

}  // namespace netblk::attach
