// SPDX-License-Identifier: GPL-2.0-only
// Opening of an image under an overlay.
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "base/crc32c.h"
#include "base/parse.h"
#include "io/socket.h"
#include "store/file_store.h"
#include "store/open_parts.h"
#include "store/overlay.h"

namespace netblk::store {
namespace {

struct Base {
  io::UniqueFd fd, fd_to_look;
  OverlayBase facts;
  bool rotational = false;
};

// The beginning, the end, and pieces between: enough to tell two images apart, and cheap for a large one.
Result<uint32_t> sample_crc(int fd, uint64_t size_bytes) {
  constexpr uint64_t kPieces = 64, kPieceBytes = 16u << 10;
  std::vector<std::byte> sample;
  for (uint64_t i = 0; i <= kPieces; ++i) {
    const uint64_t last = size_bytes > kPieceBytes ? size_bytes - kPieceBytes : 0;
    const uint64_t at = last / kPieces * i + last % kPieces * i / kPieces;
    std::vector<std::byte> piece(std::min(kPieceBytes, size_bytes));
    const ssize_t got = ::pread(fd, piece.data(), piece.size(), static_cast<off_t>(at));
    if (got < 0) return make_error(errno, "cannot read it: {}", errno_text(errno));
    sample.insert(sample.end(), piece.begin(), piece.begin() + got);
  }
  return crc32c(sample);
}

Result<Base> open_base(const FileOptions& options) {
  FileOptions reading = options;
  reading.read_only = true;
  Base base;
  base.fd = io::UniqueFd(::open(options.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!base.fd.valid()) return make_error(errno, "cannot open {}: {}", options.path, errno_text(errno));
  struct stat status;
  if (::fstat(base.fd.get(), &status) != 0) return make_error(errno, "cannot stat {}: {}", options.path, errno_text(errno));
  if (!S_ISBLK(status.st_mode) && !S_ISREG(status.st_mode))
    return make_error(ENOTBLK, "{} is neither a regular file nor a block device", options.path);
  io::set_nonblocking(base.fd.get(), false);
  if (auto locked = lock_file(base.fd.get(), reading); !locked) return std::move(locked).error();
  base.fd_to_look = io::UniqueFd(::fcntl(base.fd.get(), F_DUPFD_CLOEXEC, 0));
  auto size = fd_size_bytes(base.fd.get(), false);
  if (!size) return make_error(size.error().code, "{}: {}", options.path, size.error().message);
  if (size.value() == 0) return make_error(ENODATA, "{} is empty: there is nothing to lay an overlay over", options.path);
  auto crc = sample_crc(base.fd.get(), size.value());
  if (!crc) return make_error(crc.error().code, "{}: {}", options.path, crc.error().message);
  base.facts.size_bytes = size.value();
  base.facts.sample_crc = crc.value();
  if (S_ISREG(status.st_mode)) base.facts.changed_ns = status.st_mtim.tv_sec * 1'000'000'000 + status.st_mtim.tv_nsec;
  base.rotational = is_rotational(base.fd.get());
  return base;
}

struct Top {
  io::UniqueFd fd;
  std::unique_ptr<OverlayMap> map;
  std::unique_ptr<Identity> identity;
};

Result<Top> open_discarded(const OverlayBase& base) {
  const char* const folder = ::getenv("TMPDIR");
  const std::string where = folder != nullptr && *folder != '\0' ? folder : "/var/tmp";
  Top top;
  top.fd = io::UniqueFd(::open(where.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!top.fd.valid()) return make_error(errno, "cannot make a file for an overlay in {}: {}; TMPDIR names another folder",
                                         where, errno_text(errno));
  top.map = std::make_unique<OverlayMap>(base.size_bytes, -1);
  if (::ftruncate(top.fd.get(), static_cast<off_t>(top.map->data_at() + base.size_bytes)) != 0)
    return make_error(errno, "cannot size a file for an overlay in {}: {}", where, errno_text(errno));
  return top;
}

Result<Top> open_kept(const OverlayBase& base, const FileOptions& options) {
  const int access = options.read_only ? O_RDONLY : O_RDWR | O_CREAT;
  Top top;
  top.fd = io::UniqueFd(::open(options.path.c_str(), access | O_CLOEXEC | O_NONBLOCK, 0600));
  if (!top.fd.valid()) return make_error(errno, "cannot open {}: {}", options.path, errno_text(errno));
  struct stat status;
  if (::fstat(top.fd.get(), &status) != 0) return make_error(errno, "cannot stat {}: {}", options.path, errno_text(errno));
  if (!S_ISREG(status.st_mode)) return make_error(EMEDIUMTYPE, "{} is no regular file, as an overlay is", options.path);
  io::set_nonblocking(top.fd.get(), false);
  if (auto locked = lock_file(top.fd.get(), options); !locked) return std::move(locked).error();
  if (options.keep_identity) {
    auto identity = open_identity(top.fd.get(), options);
    if (!identity) return std::move(identity).error();
    top.identity = std::move(identity).value();
  }
  top.map = std::make_unique<OverlayMap>(base.size_bytes, top.fd.get());
  const bool is_new = status.st_size == 0 && !options.read_only;
  Status ready = is_new ? top.map->create(base, this_boot_id()) : top.map->load(base, this_boot_id(), options.read_only);
  if (!ready) return make_error(ready.error().code, "{}: {}", options.path, ready.error().message);
  if (is_new)
    if (auto kept = make_durable(top.fd.get(), options.path); !kept) return std::move(kept).error();
  if (top.identity != nullptr)
    if (auto started = top.identity->start(); !started) return std::move(started).error();
  return top;
}

}  // namespace

Result<std::unique_ptr<block::Device>> open_overlay_store(io::Backend& backend, const FileOptions& options,
                                                          const std::string& overlay) {
  auto opened = open_base(options);
  if (!opened) return std::move(opened).error();
  Base base = std::move(opened).value();
  const bool kept = overlay != kDiscardedOverlay;
  FileOptions over = options;
  over.path = overlay;
  auto made = kept ? open_kept(base.facts, over) : open_discarded(base.facts);
  if (!made) return std::move(made).error();
  Top top = std::move(made).value();

  FileHome home;
  home.path = kept ? overlay : options.path;
  home.punch_alignment = kOverlayBlockBytes;
  home.exclusion_bytes = kOverlayBlockBytes;
  home.identity = std::move(top.identity);
  auto base_file = backend.make_file(std::move(base.fd), false);
  auto top_file = backend.make_file(io::UniqueFd(::fcntl(top.fd.get(), F_DUPFD_CLOEXEC, 0)), false);
  io::UniqueFd look(::fcntl(top.fd.get(), F_DUPFD_CLOEXEC, 0));
  auto file = std::make_unique<OverlayFile>(std::move(base_file), std::move(top_file), std::move(base.fd_to_look),
                                            std::move(look), std::move(top.map), kept);
  // The map and the record go on with this one.
  home.record_fd = std::move(top.fd);
  home.find_extents = [overlay_file = file.get()](block::Request& request) { overlay_file->find_extents(request); };
  if (!options.read_only) home.before_close = [overlay_file = file.get()] { return overlay_file->sync_now(); };
  const block::Geometry geometry{.size_bytes = base.facts.size_bytes, .read_only = options.read_only, .can_trim = true,
                                 .can_fast_zero = true, .can_block_status = true, .rotational = base.rotational};
  return std::unique_ptr<block::Device>(
      std::make_unique<FileStore>(geometry, std::move(file), nullptr, 0, std::move(home)));
}

}  // namespace netblk::store
