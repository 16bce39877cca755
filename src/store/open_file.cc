// SPDX-License-Identifier: GPL-2.0-only
// Opening, locking and sizing of what a FileStore serves.
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/limits.h"
#include "base/parse.h"
#include "io/socket.h"
#include "store/file_store.h"

namespace netblk::store {
namespace {

constexpr uint64_t kLockPollMs = 50;

void sleep_ms(uint64_t ms) {
  const timespec time{static_cast<time_t>(ms / 1000), static_cast<long>(ms % 1000) * 1'000'000};
  ::nanosleep(&time, nullptr);
}

// The process that holds the lock, as /proc/locks has it; 0 where it does not say.
pid_t lock_holder(int fd) {
  struct stat status;
  if (::fstat(fd, &status) != 0) return 0;
  const std::string wanted =
      fmt::format("{:02x}:{:02x}:{}", major(status.st_dev), minor(status.st_dev), status.st_ino);
  std::ifstream locks("/proc/locks");
  for (std::string line; std::getline(locks, line);) {
    std::istringstream words(line);
    std::string number, kind, advisory, mode, where;
    pid_t pid = 0;
    if (words >> number >> kind >> advisory >> mode >> pid >> where && kind == "FLOCK" && where == wanted) return pid;
  }
  return 0;
}

std::string holder_text(pid_t pid) { return pid > 0 ? fmt::format(" (process {})", pid) : std::string(); }

Status lock(int fd, const FileOptions& options) {
  const int mode = (options.read_only ? LOCK_SH : LOCK_EX) | LOCK_NB;
  const io::SteadyClock clock;
  const uint64_t give_up_at = clock.now_ms() + options.lock_wait_ms;
  for (bool told = false; ::flock(fd, mode) != 0; sleep_ms(kLockPollMs)) {
    const int error = errno;
    if (error != EWOULDBLOCK && error != EINTR)
      return make_error(error, "cannot lock {}: {}", options.path, errno_text(error));
    if (options.stop_waiting && options.stop_waiting())
      return make_error(EINTR, "stopped while waiting for {}", options.path);
    const pid_t holder = lock_holder(fd);
    // Waiting for oneself is vain.
    if (clock.now_ms() >= give_up_at || holder == ::getpid())
      return make_error(holder == ::getpid() ? EBUSY : EAGAIN, "{} is in use by another {}{}: stop that one first, or use another file", options.path,
                        holder == ::getpid() ? "export" : "server", holder_text(holder));
    if (!told && options.on_wait)
      options.on_wait(fmt::format("{} is in use{}; waiting up to {} s for it", options.path, holder_text(holder),
                                  options.lock_wait_ms / 1000));
    told = true;
  }
  return Ok{};
}

// A new or grown file is durable, its name included, before the first write is: otherwise an answered write could be
// lost with the file.
Status make_durable(int fd, const std::string& path) {
  if (::fsync(fd) != 0) return make_error(errno, "cannot sync {}: {}", path, errno_text(errno));
  std::error_code unknown;
  const std::string folder = std::filesystem::absolute(path, unknown).parent_path().string();
  const io::UniqueFd folder_fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // A folder that may be searched but not read cannot be synced; some file systems sync none.
  if (folder_fd.valid() && ::fsync(folder_fd.get()) != 0 && errno != EINVAL)
    return make_error(errno, "cannot sync {}: {}", folder, errno_text(errno));
  return Ok{};
}

Result<uint64_t> size_of(int fd, const FileOptions& options) {
  struct stat status;
  if (::fstat(fd, &status) != 0) return make_error(errno, "cannot stat {}: {}", options.path, errno_text(errno));
  uint64_t size = 0;
  if (S_ISBLK(status.st_mode)) {
    if (::ioctl(fd, BLKGETSIZE64, &size) != 0)
      return make_error(errno, "cannot read the size of {}: {}", options.path, errno_text(errno));
    if (options.size_bytes > size)
      return make_error(ENOSPC, "{} is a block device of {}, smaller than the {} asked for", options.path,
                        size_text(size), size_text(options.size_bytes));
  } else if (S_ISREG(status.st_mode)) {
    size = static_cast<uint64_t>(status.st_size);
    if (size < options.size_bytes && !options.read_only) {
      if (::ftruncate(fd, static_cast<off_t>(options.size_bytes)) != 0)
        return make_error(errno, "cannot grow {} to {}: {}", options.path, size_text(options.size_bytes),
                          errno_text(errno));
      if (auto durable = make_durable(fd, options.path); !durable) return std::move(durable).error();
      size = options.size_bytes;
    }
  } else {
    return make_error(ENOTBLK, "{} is neither a regular file nor a block device", options.path);
  }
  if (size < limits::kSectorBytes)
    return make_error(ENODATA, "{} is empty: give a size, as in file:{}?size=100M", options.path, options.path);
  return size;
}

// What O_DIRECT asks of offsets, lengths and addresses. A block device says; 4096 suits every file system.
uint32_t direct_alignment(int fd) {
  int bytes = 0;
  if (::ioctl(fd, BLKSSZGET, &bytes) == 0 && bytes > 0) return static_cast<uint32_t>(bytes);
  return 4096;
}

}  // namespace

Result<std::unique_ptr<block::Device>> open_file_store(io::Backend& backend, const FileOptions& options) {
  const int access = options.read_only ? O_RDONLY : O_RDWR;
  const int create = options.size_bytes > 0 && !options.read_only ? O_CREAT : 0;
  // O_NONBLOCK: the open of a FIFO does not wait for its other end, and the FIFO is then refused in words. It means
  // nothing to files and block devices.
  io::UniqueFd fd(::open(options.path.c_str(), access | create | O_CLOEXEC | O_NONBLOCK, 0600));
  if (!fd.valid()) {
    const int error = errno;
    if (error == ENOENT && options.read_only)
      return make_error(error, "cannot open {}: {}; a read-only export creates nothing", options.path,
                        errno_text(error));
    if (error == ENOENT && create == 0)
      return make_error(error, "cannot open {}: {}; give a size to create it, as in file:{}?size=100M", options.path,
                        errno_text(error), options.path);
    return make_error(error, "cannot open {}: {}", options.path, errno_text(error));
  }
  if (auto locked = lock(fd.get(), options); !locked) return std::move(locked).error();
  auto size = size_of(fd.get(), options);
  if (!size) return std::move(size).error();
  io::set_nonblocking(fd.get(), false);

  io::UniqueFd direct_fd;
  if (options.direct) {
    direct_fd = io::UniqueFd(::open(options.path.c_str(), access | O_DIRECT | O_CLOEXEC));
    if (!direct_fd.valid())
      return make_error(errno, "cannot open {} for direct I/O: {}; leave out direct=1", options.path,
                        errno_text(errno));
  }
  const uint32_t alignment = options.direct ? direct_alignment(fd.get()) : 0;
  const block::Geometry geometry{.size_bytes = size.value(), .read_only = options.read_only, .can_trim = true};
  auto buffered = backend.make_file(std::move(fd), false);
  auto direct = options.direct ? backend.make_file(std::move(direct_fd), true) : nullptr;
  return std::unique_ptr<block::Device>(
      std::make_unique<FileStore>(geometry, std::move(buffered), std::move(direct), alignment));
}

}  // namespace netblk::store
