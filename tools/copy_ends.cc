// SPDX-License-Identifier: GPL-2.0-only
#include "copy_ends.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "base/limits.h"
#include "base/parse.h"
#include "command_line.h"
#include "store/file_store.h"
#include "target_guard.h"

namespace netblk::tools {
namespace {

constexpr const char* kStandardStream = "-";
// Of an export: more than any server would have, and what the pieces of a copy are multiples of.
constexpr uint32_t kMaxBlockBytes = 64u << 10;

Error cannot(const char* what, const std::string& path, int error) {
  return make_error(error, "cannot {} {}: {}", what, path, errno_text(error));
}

// lseek() changes a position that nobody else uses.
Extent extent_at(int fd, uint64_t offset) {
  const off_t data = ::lseek(fd, static_cast<off_t>(offset), SEEK_DATA);
  if (data < 0 && errno == ENXIO) return {.hole = true, .end = UINT64_MAX};
  if (data < 0) return {.hole = false, .end = UINT64_MAX};  // the file system cannot tell
  if (static_cast<uint64_t>(data) > offset) return {.hole = true, .end = static_cast<uint64_t>(data)};
  const off_t hole = ::lseek(fd, static_cast<off_t>(offset), SEEK_HOLE);
  return {.hole = false, .end = hole < 0 ? UINT64_MAX : static_cast<uint64_t>(hole)};
}

// Big sizes would overflow where they are rounded up.
uint64_t bounded(uint64_t end) { return std::min<uint64_t>(end, limits::kMaxDeviceBytes); }

Result<uint64_t> block_device_size(int fd, const std::string& path) {
  uint64_t size = 0;
  if (::ioctl(fd, BLKGETSIZE64, &size) != 0) return cannot("read the size of", path, errno);
  return size;
}

std::string identity_of(const struct stat& status) {
  if (S_ISBLK(status.st_mode)) return fmt::format("block device {}:{}", major(status.st_rdev), minor(status.st_rdev));
  return fmt::format("file {}:{}", status.st_dev, status.st_ino);
}

std::unique_ptr<block::Device> make_disk(io::Backend& backend, io::UniqueFd fd, uint64_t size_bytes, bool read_only) {
  const block::Geometry geometry{.size_bytes = size_bytes, .read_only = read_only, .can_trim = true};
  return std::make_unique<store::FileStore>(geometry, backend.make_file(std::move(fd), false), nullptr, 0);
}

// A second descriptor with a position of its own: for holes, size and times.
Result<io::UniqueFd> look_at(const std::string& path, int access) {
  io::UniqueFd fd(::open(path.c_str(), access | O_CLOEXEC));
  if (!fd.valid()) return cannot("open", path, errno);
  return fd;
}

coro::Task<Result<CopyEnd>> open_served(io::Loop& loop, std::string text, bool read_only, EndOptions options) {
  auto uri = parse_server_uri(text);
  if (!uri) co_return std::move(uri).error();
  ExportOptions wanted;
  wanted.read_only = read_only;
  wanted.takeover = options.force && !read_only;
  wanted.connections = options.connections;
  wanted.timeout_ms = options.timeout_ms;
  wanted.trust_reconnect = options.trust_reconnect;
  wanted.purpose = read_only ? "copy from" : "copy to";
  CopyEnd end;
  end.name = uri.value().text();
  auto served = co_await open_export(loop, uri.value(), wanted);
  if (!served) co_return std::move(served).error();
  end.served = std::move(served).value();
  const ExportFacts info = end.served->facts();
  if (!std::has_single_bit(info.block_bytes) || info.block_bytes > kMaxBlockBytes) {
    co_await end.close();
    co_return make_error(EIO, "{} has blocks of {} bytes, which cannot be copied", end.name, info.block_bytes);
  }
  end.identity = info.identity;
  end.size_bytes = info.size_bytes;
  end.block_bytes = info.block_bytes;
  co_return std::move(end);
}

Result<CopyEnd> open_pipe(io::Loop& loop, const std::string& name, io::UniqueFd fd) {
  CopyEnd end;
  end.name = name;
  end.pipe = std::make_unique<PipeFile>(loop, std::move(fd));
  return end;
}

Result<CopyEnd> open_standard(io::Loop& loop, int number, const char* name) {
  if (number == STDOUT_FILENO && ::isatty(number) != 0)
    return make_error(EIO, "the standard output is a terminal: send it to a file or a program");
  io::UniqueFd fd(::fcntl(number, F_DUPFD_CLOEXEC, 3));
  if (!fd.valid()) return cannot("use", name, errno);
  return open_pipe(loop, name, std::move(fd));
}

Result<CopyEnd> open_source_path(io::Backend& backend, io::Loop& loop, const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) return cannot("open", path, errno);
  if (S_ISDIR(status.st_mode)) return make_error(EISDIR, "{} is a directory; a disk is a file or a block device", path);
  io::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return cannot("open", path, errno);
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) return open_pipe(loop, path, std::move(fd));

  CopyEnd end;
  end.name = path;
  end.identity = identity_of(status);
  if (S_ISBLK(status.st_mode)) {
    auto size = block_device_size(fd.get(), path);
    if (!size) return std::move(size).error();
    end.size_bytes = size.value();
  } else {
    end.path = path;
    end.size_bytes = static_cast<uint64_t>(status.st_size);
    auto file = look_at(path, O_RDONLY);
    if (!file) return std::move(file).error();
    end.file = std::move(file).value();
    if (::flock(end.file.get(), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK)
      note(fmt::format("{} is in use by another process: what it writes meanwhile may be in the copy, or not", path));
  }
  end.disk = make_disk(backend, std::move(fd), *end.size_bytes, true);
  return end;
}

Result<CopyEnd> open_new_file(io::Backend& backend, const std::string& path, int flags, const CopyEnd& source) {
  io::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | flags, 0666));
  if (!fd.valid()) return cannot(flags != 0 ? "create" : "open", path, errno);
  CopyEnd end;
  end.name = path;
  end.path = path;
  end.fresh = true;
  struct stat status{};
  if (::fstat(fd.get(), &status) != 0) return cannot("look at", path, errno);
  end.identity = identity_of(status);
  if (source.size_bytes && ::ftruncate(fd.get(), static_cast<off_t>(*source.size_bytes)) != 0)
    return cannot("size", path, errno);
  auto file = look_at(path, O_RDWR);
  if (!file) return std::move(file).error();
  end.file = std::move(file).value();
  (void)::flock(end.file.get(), LOCK_EX | LOCK_NB);
  end.size_bytes = source.size_bytes;
  end.disk = make_disk(backend, std::move(fd), source.size_bytes.value_or(limits::kMaxDeviceBytes), false);
  return end;
}

Result<CopyEnd> open_target_path(io::Backend& backend, io::Loop& loop, const std::string& path, const CopyEnd& source,
                                 const EndOptions& options) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) {
    if (errno != ENOENT) return cannot("open", path, errno);
    return open_new_file(backend, path, O_CREAT | O_EXCL, source);
  }
  if (S_ISDIR(status.st_mode)) return make_error(EISDIR, "{} is a directory; name the file in it", path);
  if (!source.identity.empty() && source.identity == identity_of(status))
    return make_error(EBUSY, "{} and {} are the same disk", source.name, path);
  if (auto is_free = refuse_in_use(path); !is_free) return std::move(is_free).error();
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode)) {
    io::UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!fd.valid()) return cannot("open", path, errno);
    return open_pipe(loop, path, std::move(fd));
  }

  CopyEnd end;
  end.name = path;
  end.identity = identity_of(status);
  // O_EXCL: nobody mounts the device meanwhile.
  io::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | (S_ISBLK(status.st_mode) ? O_EXCL : 0)));
  if (!fd.valid() && errno == EBUSY) return make_error(EBUSY, "{} is in use: unmount it first", path);
  if (!fd.valid()) return cannot("write to", path, errno);
  if (S_ISBLK(status.st_mode)) {
    int read_only = 0;
    if (::ioctl(fd.get(), BLKROGET, &read_only) == 0 && read_only != 0)
      return make_error(EROFS, "{} is read-only", path);
    auto size = block_device_size(fd.get(), path);
    if (!size) return std::move(size).error();
    end.size_bytes = size.value();
    int block_bytes = 0;
    if (::ioctl(fd.get(), BLKSSZGET, &block_bytes) == 0 && block_bytes > 0) end.block_bytes = static_cast<uint32_t>(block_bytes);
  } else {
    auto file = look_at(path, O_RDWR);
    if (!file) return std::move(file).error();
    end.path = path;
    end.file = std::move(file).value();
    if (::flock(end.file.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK && !options.force)
      return make_error(EBUSY, "{} is in use by another process, perhaps a server: stop that first, or use --force", path);
    if (status.st_size == 0) {
      end.file.reset();
      return open_new_file(backend, path, 0, source);
    }
    end.size_bytes = static_cast<uint64_t>(status.st_size);
    if (source.size_bytes && *source.size_bytes > *end.size_bytes && options.force) {
      if (::ftruncate(fd.get(), static_cast<off_t>(*source.size_bytes)) != 0) return cannot("grow", path, errno);
      end.size_bytes = source.size_bytes;
    }
  }
  end.disk = make_disk(backend, std::move(fd), *end.size_bytes, false);
  return end;
}

}  // namespace

CopySource CopyEnd::as_source() const {
  CopySource source{.name = name, .device = device(), .pipe = pipe.get(), .size_bytes = size_bytes, .extent_at = {}};
  if (file.valid())
    source.extent_at = [fd = file.get()](uint64_t offset) {
      Extent extent = extent_at(fd, offset);
      extent.end = bounded(extent.end);
      return extent;
    };
  return source;
}

CopyTarget CopyEnd::as_target() const {
  return {.name = name, .device = device(), .pipe = pipe.get(), .block_bytes = block_bytes, .fresh = fresh};
}

std::string CopyEnd::version() const {
  if (served) return served->facts().version;
  struct stat status{};
  if (file.valid() && ::fstat(file.get(), &status) == 0)
    return fmt::format("{} bytes, {}.{:09}", status.st_size, status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
  return fmt::format("{} bytes", size_bytes.value_or(0));
}

Status CopyEnd::settle(uint64_t bytes) {
  if (!fresh) return Ok{};
  if (!size_bytes && ::ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) return cannot("size", path, errno);
  if (::fsync(file.get()) != 0) return cannot("sync", path, errno);
  std::error_code unknown;
  const std::string folder = std::filesystem::absolute(path, unknown).parent_path().string();
  const io::UniqueFd folder_fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder_fd.valid() && ::fsync(folder_fd.get()) != 0 && errno != EINVAL) return cannot("sync", folder, errno);
  return Ok{};
}

coro::Task<void> CopyEnd::close() {
  if (served) co_await served->close();
  served.reset();
  disk.reset();
  pipe.reset();
}

coro::Task<Result<CopyEnd>> open_source(io::Backend& backend, io::Loop& loop, std::string text, EndOptions options) {
  if (text == kStandardStream) co_return open_standard(loop, STDIN_FILENO, "the standard input");
  if (!looks_like_uri(text)) co_return open_source_path(backend, loop, text);
  auto end = co_await open_served(loop, text, true, options);
  co_return std::move(end);
}

coro::Task<Result<CopyEnd>> open_target(io::Backend& backend, io::Loop& loop, std::string text, const CopyEnd& source,
                                        EndOptions options) {
  if (text == kStandardStream) co_return open_standard(loop, STDOUT_FILENO, "the standard output");
  Result<CopyEnd> end = CopyEnd{};
  if (looks_like_uri(text)) {
    end = co_await open_served(loop, text, false, options);
  } else {
    end = open_target_path(backend, loop, text, source, options);
  }
  if (!end) co_return std::move(end);
  CopyEnd& target = end.value();
  std::optional<Error> refused;
  if (target.served && target.served->facts().read_only)
    refused = make_error(EROFS, "{} is read-only", target.name);
  else if (target.served && target.identity == source.identity)
    refused = make_error(EBUSY, "{} and {} are the same disk", source.name, target.name);
  else if (source.size_bytes && target.size_bytes && *source.size_bytes > *target.size_bytes)
    refused = make_error(ENOSPC, "{} has {} bytes and {} only {}: nothing was written{}", source.name, *source.size_bytes,
                         target.name, *target.size_bytes,
                         target.file.valid() ? "; remove it, or let it grow with --force" : "; use a larger one");
  if (refused) {
    co_await target.close();
    co_return std::move(*refused);
  }
  co_return std::move(end);
}

}  // namespace netblk::tools
