// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_volume_bytes.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "interrupt.h"
#include "store/open_parts.h"
#include "target_guard.h"
#include "volume_store.h"

namespace netblk::tools {
namespace {

// Zeroes in pieces of this size are left out of a new file.
constexpr size_t kHoleBytes = 64u << 10;
constexpr unsigned kFifoLookMs = 20;

bool is_standard(const std::string& path) { return path.empty() || path == "-"; }

bool is_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte each) { return each == std::byte{0}; });
}

io::UniqueFd copy_of(int fd) { return io::UniqueFd(::fcntl(fd, F_DUPFD_CLOEXEC, 0)); }

// Without a reader nobody can write to a FIFO, and the usual open() waits for one whatever signals come.
io::UniqueFd open_fifo(const std::string& path) {
  for (;;) {
    io::UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NONBLOCK));
    if (fd.valid() || errno != ENXIO) return fd;
    if (interrupted()) {
      errno = ECANCELED;
      return fd;
    }
    ::usleep(kFifoLookMs * 1000);
  }
}

Result<std::unique_ptr<OutputFile>> open_there(const std::string& path, mode_t mode) {
  if (S_ISREG(mode) || S_ISDIR(mode)) return make_error(EEXIST, "{} is there: choose another name, or remove it", path);
  if (auto is_free = refuse_in_use(path); !is_free) return std::move(is_free).error();
  // O_EXCL: nobody mounts the device meanwhile.
  io::UniqueFd fd = S_ISFIFO(mode) ? open_fifo(path) : io::UniqueFd(::open(path.c_str(), O_WRONLY | O_CLOEXEC | (S_ISBLK(mode) ? O_EXCL : 0)));
  if (!fd.valid() && errno == ECANCELED) return make_error(ECANCELED, "it was stopped");
  if (!fd.valid() && errno == EBUSY) return make_error(EBUSY, "{} is in use: unmount it first", path);
  if (!fd.valid()) return make_error(errno, "cannot open {}: {}", path, errno_text(errno));
  return std::make_unique<OutputFile>(std::move(fd), path, false);
}

}  // namespace

Result<std::unique_ptr<OutputFile>> OutputFile::open(const std::string& path) {
  if (is_standard(path)) {
    if (::isatty(STDOUT_FILENO) == 1)
      return make_error(EINVAL, "this is no text for a terminal: name a FILE, or send it through a pipe");
    io::UniqueFd fd = copy_of(STDOUT_FILENO);
    if (!fd.valid()) return make_error(errno, "cannot write to the standard output: {}", errno_text(errno));
    return std::make_unique<OutputFile>(std::move(fd), "the standard output", false);
  }
  struct stat there{};
  if (::stat(path.c_str(), &there) == 0) return open_there(path, there.st_mode);
  if (::lstat(path.c_str(), &there) == 0) return make_error(EEXIST, "{} is a link to what is not there: choose another name, or remove it", path);
  const std::string part = path + kPartSuffix;
  io::UniqueFd fd(::open(part.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd.valid() && errno == EEXIST)
    return make_error(EEXIST, "{} is left from a command that was killed, or one is under way: remove it in the first case", part);
  if (!fd.valid()) return make_error(errno, "cannot make {}: {}", part, errno_text(errno));
  return std::make_unique<OutputFile>(std::move(fd), path, true);
}

OutputFile::~OutputFile() {
  if (is_new_) ::unlink((name_ + kPartSuffix).c_str());
}

bool OutputFile::begin_anew() { return is_new_ && ::ftruncate(fd(), 0) == 0 && ::lseek(fd(), 0, SEEK_SET) == 0; }

Status OutputFile::publish(uint64_t size_bytes) {
  if (!is_new_) {
    // A pipe, a terminal: nothing of them stays. A disk, or a file that somebody else has made.
    if (::fdatasync(fd()) == 0 || errno == EINVAL || errno == EROFS) return Ok{};
    return make_error(errno, "{} may not have what was written: {}", name_, errno_text(errno));
  }
  const std::string part = name_ + kPartSuffix;
  if (::ftruncate(fd(), static_cast<off_t>(size_bytes)) != 0)
    return make_error(errno, "cannot write to {}: {}", part, errno_text(errno));
  // Its bytes before its name, and then the name.
  if (::fsync(fd()) != 0) return make_error(errno, "cannot sync {}: {}", part, errno_text(errno));
  if (Status named = rename_to_new(part, name_); !named) return named;
  is_new_ = false;
  return store::make_durable(fd(), name_);
}

Result<InputFile> InputFile::open(const std::string& path) {
  InputFile file;
  file.name = is_standard(path) ? "the standard input" : path;
  // (A FIFO waits for its writer when it is read.)
  file.fd = is_standard(path) ? copy_of(STDIN_FILENO) : io::UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.fd.valid()) return make_error(errno, "cannot open {}: {}", file.name, errno_text(errno));
  return file;
}

FileSource::FileSource(io::Loop& loop, const InputFile& file) : pipe_(loop, copy_of(file.fd.get())), name_(file.name) {}

coro::Task<Result<size_t>> FileSource::read(std::span<std::byte> into) {
  const int64_t got = co_await pipe_.read(into);
  if (got == -ECANCELED) co_return make_error(ECANCELED, "it was stopped");
  if (got < 0) co_return make_error(static_cast<int>(-got), "cannot read {}: {}", name_, errno_text(static_cast<int>(-got)));
  co_return static_cast<size_t>(got);
}

FileSink::FileSink(io::Loop& loop, OutputFile& file) : pipe_(loop, copy_of(file.fd())), file_(file) {}

coro::Task<Status> FileSink::write(std::span<const std::byte> from) {
  while (!from.empty()) {
    const auto part = from.first(std::min<size_t>(from.size(), kHoleBytes - written_bytes_ % kHoleBytes));
    if (!file_.is_new() || !is_zero(part)) {
      const int64_t result = co_await pipe_.write(part);
      if (result == -ECANCELED) co_return make_error(ECANCELED, "it was stopped");
      if (result < 0)
        co_return make_error(static_cast<int>(-result), "cannot write to {}: {}", file_.name(), errno_text(static_cast<int>(-result)));
    } else if (::lseek(pipe_.fd(), static_cast<off_t>(part.size()), SEEK_CUR) < 0) {
      co_return make_error(errno, "cannot write to {}: {}", file_.name(), errno_text(errno));
    }
    written_bytes_ += part.size();
    from = from.subspan(part.size());
  }
  co_return Ok{};
}

}  // namespace netblk::tools
