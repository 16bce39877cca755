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

// The thread of `loop` reads requests from the kernel, hands them to the device and answers them from their completions:
// a request changes no thread, and none waits for it. When the process dies the kernel fails what is waiting, and all that
// follows, at once.
class FuseDisk {
 public:
  // Mounts on `directory`, which exists and is the caller's alone. `loop` runs and, as `device`, outlives the result.
  // on_closed: called on the loop's thread each time the last opener has closed the file.
  static Result<std::unique_ptr<FuseDisk>> mount(block::Device& device, io::Loop& loop, const std::string& directory,
                                                 std::function<void()> on_closed);

  // Unmounts, and waits for the requests in flight and for the last opener to be gone: close it before.
  ~FuseDisk();

  // The device has another size than it had: the file shows it from now on. Not on the loop's thread.
  Status show_size();

  // Of the file. A loop device on it does no caching of its own (direct I/O).
  std::string path() const;

 private:
  class Session;
  explicit FuseDisk(std::unique_ptr<Session> session);
  std::unique_ptr<Session> session_;
};

}  // namespace netblk::attach
