// SPDX-License-Identifier: GPL-2.0-only
#include "store/medium.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>

#include "base/limits.h"
#include "base/parse.h"

namespace netblk::store {
namespace {

namespace fs = std::filesystem;

std::string first_line(const fs::path& path) {
  std::ifstream file(path);
  std::string text;
  std::getline(file, text);
  std::replace_if(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20 || c == 0x7f; }, ' ');
  while (text.ends_with(' ')) text.pop_back();
  return text;
}

// The folder of /sys of a block device's number, and that of the whole disk when it is a partition.
struct SysBlock {
  explicit SysBlock(dev_t number) {
    std::error_code unknown;
    node = fs::canonical(fmt::format("/sys/dev/block/{}:{}", major(number), minor(number)), unknown);
    if (node.empty()) node = "/sys/dev/block/none";  // no block device: overlayfs, btrfs, tmpfs, a network
    partition = first_line(node / "partition");
    disk = partition.empty() ? node : node.parent_path();
  }
  fs::path node, disk;
  std::string partition;
};

uint64_t disk_sequence(const SysBlock& block) {
  return parse_unsigned(first_line(block.disk / "diskseq"), 0, UINT64_MAX).value_or(0);
}

std::string disk_name(const SysBlock& block) {
  for (const char* file : {"dm/uuid", "md/uuid", "loop/backing_file", "wwid", "device/wwid", "serial", "device/serial",
                           "device/cid"}) {
    const std::string text = first_line(block.disk / file);
    if (text.empty()) continue;
    return fmt::format("{}={}{}", file, text, block.partition.empty() ? "" : " partition " + block.partition);
  }
  return {};
}

class FdMedium final : public Medium {
 public:
  explicit FdMedium(int fd) : fd_(fd) {}

  Result<Seen> look() override {
    struct statx status {};
    if (::statx(fd_, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &status) != 0)
      return make_error(errno, "cannot stat it: {}", errno_text(errno));
    auto size = fd_size_bytes(fd_, false);
    if (!size) return std::move(size).error();
    Seen seen;
    seen.size_bytes = size.value();
    seen.is_block_device = S_ISBLK(status.stx_mode);
    const dev_t number = seen.is_block_device ? makedev(status.stx_rdev_major, status.stx_rdev_minor)
                                              : makedev(status.stx_dev_major, status.stx_dev_minor);
    const SysBlock block(number);
    seen.device = number;
    seen.disk_sequence = disk_sequence(block);
    if (seen.is_block_device) {
      // Inode and times are those of a node that is made anew at each start of the machine.
      seen.name = disk_name(block);
      return seen;
    }
    const auto ns = [](const statx_timestamp& time) { return time.tv_sec * 1'000'000'000 + time.tv_nsec; };
    seen.inode = status.stx_ino;
    seen.ctime_ns = ns(status.stx_ctime);
    if ((status.stx_mask & STATX_BTIME) != 0) seen.birth_ns = ns(status.stx_btime);
    return seen;
  }
  int sync() override { return ::fsync(fd_) == 0 ? 0 : errno; }
  void drop_cache() override { (void)::posix_fadvise(fd_, 0, 0, POSIX_FADV_DONTNEED); }
  int descriptor() const override { return fd_; }

 private:
  int fd_;
};

}  // namespace

std::unique_ptr<Medium> make_fd_medium(int fd) { return std::make_unique<FdMedium>(fd); }

bool is_rotational(int fd) {
  struct stat status;
  if (::fstat(fd, &status) != 0) return false;
  const SysBlock block(S_ISBLK(status.st_mode) ? status.st_rdev : status.st_dev);
  return first_line(block.disk / "queue/rotational") == "1";
}

Result<uint64_t> fd_size_bytes(int fd, bool cached) {
  struct statx status {};
  const int flags = AT_EMPTY_PATH | (cached ? AT_STATX_DONT_SYNC : AT_STATX_SYNC_AS_STAT);
  if (::statx(fd, "", flags, STATX_TYPE | STATX_SIZE, &status) != 0)
    return make_error(errno, "cannot stat it: {}", errno_text(errno));
  uint64_t size = status.stx_size;
  if (S_ISBLK(status.stx_mode) && ::ioctl(fd, BLKGETSIZE64, &size) != 0)
    return make_error(errno, "cannot read its size: {}", errno_text(errno));
  size = std::min(size, limits::kMaxDeviceBytes);
  return size - size % limits::kSectorBytes;
}

}  // namespace netblk::store
