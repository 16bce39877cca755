// SPDX-License-Identifier: GPL-2.0-only
// Wanted: who waits for a file that somebody else has locked says so, by a lock on a byte that no file has; whoever has the file for
// something that can wait, or be done by the other, gives way.
#pragma once

#include <fcntl.h>

#include <functional>
#include <string>

#include "io/fd.h"

namespace netblk::store {

// Behind the end of every file.
inline constexpr off_t kWantedAt = off_t{1} << 62;

class Wanted {
 public:
  // fcntl()'s F_OFD_GETLK: 0, and in `lock` one that is in the way of it; or -1.
  using Look = std::function<int(int fd, struct flock& lock)>;

  Wanted() = default;
  // To look at it. Where the file cannot be opened nobody wants it.
  explicit Wanted(const std::string& path, Look look = look_at_file);
  bool is_set() const;

  // As long as the result is there. None where file systems have no such locks, or have the file's own lock (flock) as one of
  // every byte, this one included.
  static io::UniqueFd set(const std::string& path);

 private:
  static int look_at_file(int fd, struct flock& lock);

  io::UniqueFd fd_;
  Look look_;
};

}  // namespace netblk::store
