// SPDX-License-Identifier: GPL-2.0-only
#include "attach/fuse/loop_device.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/log.h"
#include "io/fd.h"

namespace netblk::attach {
namespace {

// Another process may take the free number between our question and our claim.
constexpr int kClaimTries = 100;
constexpr int kBusyTries = 50;
constexpr auto kBusyPause = std::chrono::milliseconds(100);

io::UniqueFd open_file(const std::string& path, int flags) { return io::UniqueFd(::open(path.c_str(), flags | O_CLOEXEC)); }

// Without udev or devtmpfs the node of a new loop device may be missing.
void ensure_node(const std::string& node, int number) {
  constexpr unsigned kLoopMajor = 7;
  struct stat found{};
  if (::stat(node.c_str(), &found) == 0) return;
  (void)::mknod(node.c_str(), S_IFBLK | 0660, makedev(kLoopMajor, static_cast<unsigned>(number)));
}

std::string in_sysfs(const std::string& node, const char* attribute) {
  return "/sys/block/" + node.substr(node.rfind('/') + 1) + "/" + attribute;
}

}  // namespace

Result<std::string> loop_attach(const std::string& file, const LoopOptions& options) {
  const io::UniqueFd backing = open_file(file, options.read_only ? O_RDONLY : O_RDWR);
  if (!backing.valid()) return make_error(errno, "cannot open {}: {}", file, errno_text(errno));
  const io::UniqueFd control = open_file("/dev/loop-control", O_RDWR);
  if (!control.valid())
    return make_error(errno, "cannot open /dev/loop-control: {} (the kernel's loop device is needed)",
                      errno_text(errno));
  for (int attempt = 0; attempt < kClaimTries; ++attempt) {
    const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
    if (number < 0) return make_error(errno, "no free loop device: {}", errno_text(errno));
    const std::string node = "/dev/loop" + std::to_string(number);
    ensure_node(node, number);
    const io::UniqueFd device = open_file(node, options.read_only ? O_RDONLY : O_RDWR);
    if (!device.valid()) return make_error(errno, "cannot open {}: {}", node, errno_text(errno));
    loop_config config{};
    config.fd = static_cast<__u32>(backing.get());
    config.block_size = options.block_bytes;
    config.info.lo_flags = LO_FLAGS_DIRECT_IO | LO_FLAGS_PARTSCAN;
    if (options.read_only) config.info.lo_flags |= LO_FLAGS_READ_ONLY;
    std::strncpy(reinterpret_cast<char*>(config.info.lo_file_name), file.c_str(), LO_NAME_SIZE - 1);
    if (::ioctl(device.get(), LOOP_CONFIGURE, &config) == 0) return node;
    if (errno != EBUSY) return make_error(errno, "cannot configure {}: {}", node, errno_text(errno));
  }
  return make_error(EBUSY, "other processes took every free loop device first; try again");
}

Status loop_detach(const std::string& device) {
  const io::UniqueFd node = open_file(device, O_RDONLY);
  if (!node.valid()) return make_error(errno, "cannot open {}: {}", device, errno_text(errno));
  // A kernel that is configuring or probing the device says EBUSY for a moment.
  for (int attempt = 0; attempt < kBusyTries; ++attempt) {
    if (::ioctl(node.get(), LOOP_CLR_FD, 0) == 0) return Ok{};
    if (errno != EBUSY) break;
    std::this_thread::sleep_for(kBusyPause);
  }
  return make_error(errno, "cannot detach {}: {}", device, errno_text(errno));
}

Status loop_resize(const std::string& device) {
  const io::UniqueFd node = open_file(device, O_RDONLY);
  if (!node.valid()) return make_error(errno, "cannot open {}: {}", device, errno_text(errno));
  if (::ioctl(node.get(), LOOP_SET_CAPACITY, 0) == 0) return Ok{};
  return make_error(errno, "cannot resize {}: {}", device, errno_text(errno));
}

std::optional<std::string> loop_backing_file(const std::string& device) {
  const io::UniqueFd attribute = open_file(in_sysfs(device, "loop/backing_file"), O_RDONLY);
  if (!attribute.valid()) return std::nullopt;
  std::array<char, PATH_MAX> text;
  const ssize_t got = ::read(attribute.get(), text.data(), text.size());
  if (got <= 0) return std::nullopt;
  std::string path(text.data(), static_cast<size_t>(got));
  if (path.back() == '\n') path.pop_back();
  return path;
}

}  // namespace netblk::attach
