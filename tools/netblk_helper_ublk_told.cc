// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_ublk_told.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>

#include "io/fd.h"

namespace netblk::tools {

static_assert(std::atomic<uint64_t>::is_always_lock_free, "the counts are shared between processes");

void ToldFile::Unmap::operator()(attach::UblkTold* told) const { (void)::munmap(told, sizeof *told); }

// A new file has zeroes, which is what the counts begin with.
Result<ToldFile> ToldFile::open(const std::string& path) {
  const io::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd.valid() || ::ftruncate(fd.get(), sizeof(attach::UblkTold)) != 0)
    return make_error(errno, "cannot make {}: {}", path, errno_text(errno));
  void* const memory = ::mmap(nullptr, sizeof(attach::UblkTold), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (memory == MAP_FAILED) return make_error(errno, "cannot map {}: {}", path, errno_text(errno));
  return ToldFile(static_cast<attach::UblkTold*>(memory));
}

}  // namespace netblk::tools
