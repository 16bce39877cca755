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

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <span>
#include <sstream>
#include <string_view>

#include "base/crc32c.h"
#include "base/limits.h"
#include "base/parse.h"
#include "io/socket.h"
#include "store/file_store.h"
#include "store/open_parts.h"

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

// "netblk volume scrub": the words of its command line that are neither options nor paths.
std::string command_of(pid_t pid) {
  std::ifstream file(fmt::format("/proc/{}/cmdline", pid));
  std::string text;
  size_t words = 0;
  for (std::string word; words < 4 && std::getline(file, word, '\0'); ++words) {
    if (words == 0) word.erase(0, word.rfind('/') + 1);
    const auto is_plain = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-'; };
    if (word.empty() || word.front() == '-' || !std::all_of(word.begin(), word.end(), is_plain)) break;
    text += (text.empty() ? "" : " ") + word;
  }
  return text;
}

std::string holder_text(pid_t pid) {
  if (pid <= 0) return "another process";
  const std::string command = command_of(pid);
  return command.empty() ? fmt::format("process {}", pid) : fmt::format("process {} ({})", pid, command);
}

}  // namespace

Status lock_file(int fd, const FileOptions& options) {
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
      return holder == ::getpid() ? make_error(EBUSY, "{} is in use by another export: stop that one first, or use another file", options.path)
                                  : make_error(EAGAIN, "{} is in use by {}: stop that one first, or wait for its end", options.path,
                                               holder_text(holder));
    if (!told && options.on_wait)
      options.on_wait(fmt::format("{} is in use by {}; waiting up to {} s for it", options.path, holder_text(holder),
                                  options.lock_wait_ms / 1000));
    told = true;
  }
  return Ok{};
}

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

namespace {

Result<uint64_t> size_of(int fd, const FileOptions& options) {
  struct stat status;
  if (::fstat(fd, &status) != 0) return make_error(errno, "cannot stat {}: {}", options.path, errno_text(errno));
  if (!S_ISBLK(status.st_mode) && !S_ISREG(status.st_mode))
    return make_error(ENOTBLK, "{} is neither a regular file nor a block device", options.path);
  // A block device is as large as it is for readers too.
  if (!options.read_only || S_ISBLK(status.st_mode))
    if (auto grown = grow_file(fd, options.size_bytes, options.path); !grown) return std::move(grown).error();
  auto size = fd_size_bytes(fd, false);
  if (!size) return make_error(size.error().code, "{}: {}", options.path, size.error().message);
  if (size.value() == 0)
    return make_error(ENODATA, "{} is empty: give a size, as in file:{}?size=100M", options.path, options.path);
  return size;
}

// A file's name for a path or a serial number.
std::string as_file_name(std::string_view text) {
  constexpr size_t kMostBytes = 200;
  std::string name;
  for (const char c : text) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                       std::string_view("._-=").find(c) != std::string_view::npos;
    if (plain) {
      name += c;
    } else {
      name += fmt::format("%{:02X}", static_cast<unsigned>(static_cast<uint8_t>(c)));
    }
  }
  if (name.size() > kMostBytes)
    name = fmt::format("{:08x}-{}", crc32c(std::as_bytes(std::span(text))), name.substr(name.size() - kMostBytes));
  return name;
}

}  // namespace

Result<std::unique_ptr<Identity>> open_identity(int fd, const FileOptions& options) {
  auto medium = make_fd_medium(fd);
  auto seen = medium->look();
  if (!seen) return make_error(seen.error().code, "{}: {}", options.path, seen.error().message);
  struct stat status;
  const bool brand_new = ::fstat(fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == 0;

  // One store has one record, by whichever name it is opened.
  std::error_code unknown;
  std::string path = std::filesystem::canonical(options.path, unknown).string();
  if (path.empty()) path = options.path;
  IdentityOptions identity;
  identity.store = options.path;
  identity.boot_id = this_boot_id();
  identity.run_folders = usual_run_folders();
  identity.read_only = options.read_only;
  identity.must_keep = !options.state_folder.empty();
  std::string folder = options.state_folder;
  if (folder.empty() && seen.value().is_block_device) folder = kDeviceStateFolder;
  if (folder.empty()) {
    identity.record_path = path + ".netblk";
    folder = std::filesystem::path(path).parent_path().string();
  } else {
    identity.record_path = fmt::format(
        "{}/{}.netblk", folder, as_file_name(seen.value().name.empty() ? std::string_view(path).substr(path.starts_with('/')) : seen.value().name));
    if (!options.read_only)
      if (auto made = make_record_folder(folder); !made && identity.must_keep) return std::move(made).error();
  }
  identity.run_folders.push_back(folder);
  return Identity::open(std::move(identity), std::move(medium), brand_new);
}

namespace {

bool is_block_device(int fd) {
  struct stat status;
  return ::fstat(fd, &status) == 0 && S_ISBLK(status.st_mode);
}

// What O_DIRECT asks of offsets, lengths and addresses. A block device says; 4096 suits every file system.
uint32_t direct_alignment(int fd) {
  int bytes = 0;
  if (::ioctl(fd, BLKSSZGET, &bytes) == 0 && bytes > 0) return static_cast<uint32_t>(bytes);
  return 4096;
}

}  // namespace

Status grow_file(int fd, uint64_t size_bytes, const std::string& path) {
  struct stat status;
  if (::fstat(fd, &status) != 0) return make_error(errno, "cannot stat {}: {}", path, errno_text(errno));
  if (S_ISBLK(status.st_mode)) {
    auto size = fd_size_bytes(fd, false);
    if (!size) return make_error(size.error().code, "{}: {}", path, size.error().message);
    if (size_bytes > size.value())
      return make_error(ENOSPC, "{} is a block device of {}, smaller than the {} asked for", path,
                        size_text(size.value()), size_text(size_bytes));
    return Ok{};
  }
  if (static_cast<uint64_t>(status.st_size) >= size_bytes) return Ok{};
  if (::ftruncate(fd, static_cast<off_t>(size_bytes)) != 0)
    return make_error(errno, "cannot grow {} to {}: {}", path, size_text(size_bytes), errno_text(errno));
  return make_durable(fd, path);
}

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
  if (auto locked = lock_file(fd.get(), options); !locked) return std::move(locked).error();
  FileHome home;
  home.path = options.path;
  home.direct = options.direct;
  home.fd = io::UniqueFd(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!home.fd.valid()) return make_error(errno, "cannot open {}: {}", options.path, errno_text(errno));
  // Before the file is grown, which changes what it is known by.
  if (options.keep_identity) {
    auto identity = open_identity(home.fd.get(), options);
    if (!identity) return std::move(identity).error();
    home.identity = std::move(identity).value();
  }
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
  if (home.identity != nullptr)
    if (auto started = home.identity->start(); !started) return std::move(started).error();
  const uint32_t alignment = options.direct ? direct_alignment(fd.get()) : 0;
  // A page that is written through the cache and, beside that, past it could lose one of both.
  if (options.direct) home.exclusion_bytes = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const bool is_disk = is_block_device(fd.get());
  if (is_disk) home.punch_alignment = direct_alignment(fd.get());
  // A block device says nothing about what it holds, and has given nothing back that anybody could see.
  const block::Geometry geometry{.size_bytes = size.value(), .read_only = options.read_only, .can_trim = true,
                                 .can_fast_zero = true, .can_block_status = !is_disk, .can_cache = !options.direct,
                                 .rotational = is_rotational(fd.get())};
  auto buffered = backend.make_file(std::move(fd), false);
  auto direct = options.direct ? backend.make_file(std::move(direct_fd), true) : nullptr;
  return std::unique_ptr<block::Device>(
      std::make_unique<FileStore>(geometry, std::move(buffered), std::move(direct), alignment,
                                  std::move(home)));
}

}  // namespace netblk::store
