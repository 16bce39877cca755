// SPDX-License-Identifier: GPL-2.0-only
#include "store/extents.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace netblk::store {

bool add_file_extents(int fd, uint64_t shift, uint64_t from, uint64_t until, block::Request& request) {
  for (uint64_t at = from; at < until;) {
    const off_t found = ::lseek(fd, static_cast<off_t>(at + shift), SEEK_DATA);
    // Neither: the file system does not say.
    if (found < 0 && errno != ENXIO) return request.add_extent(until - at, false, false);
    const uint64_t data = found < 0 ? until : std::min(static_cast<uint64_t>(found) - shift, until);
    if (data > at && !request.add_extent(data - at, true, true)) return false;
    if (data == until) return true;
    const off_t next = ::lseek(fd, static_cast<off_t>(data + shift), SEEK_HOLE);
    // A hole that was punched between the two questions may begin at once.
    const uint64_t hole = next < 0 ? until : std::clamp(static_cast<uint64_t>(next) - shift, data, until);
    if (hole > data && !request.add_extent(hole - data, false, false)) return false;
    at = hole;
  }
  return true;
}

}  // namespace netblk::store
