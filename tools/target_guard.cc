// SPDX-License-Identifier: GPL-2.0-only
#include "target_guard.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <string_view>

#include "block_await.h"
#include "netblk_state.h"

namespace netblk::tools {
namespace {

namespace fs = std::filesystem;

struct Signature {
  const char* name;
  size_t offset;
  std::string_view bytes;
};

using std::literals::string_view_literals::operator""sv;

// Only to say what is there: anything but zeroes counts as data.
constexpr Signature kSignatures[] = {
    {"a GPT partition table", 512, "EFI PART"sv},  {"a GPT partition table", 4096, "EFI PART"sv},
    {"an LVM volume", 512, "LABELONE"sv},          {"an encrypted volume (LUKS)", 0, "LUKS\xba\xbe"sv},
    {"an XFS file system", 0, "XFSB"sv},           {"an ext file system", 1080, "\x53\xef"sv},
    {"a Btrfs file system", 65600, "_BHRfS_M"sv},  {"swap space", 4086, "SWAPSPACE2"sv},
    {"a software RAID member", 4096, "\xfc\x4e\x2b\xa9"sv},
    {"a partition table", 510, "\x55\xaa"sv},
};

// The loop device over this file; empty: none.
std::string loop_over(const struct stat& file) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/sys/block", error)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("loop")) continue;
    const std::string backing = read_text(entry.path().string() + "/loop/backing_file");
    struct stat found{};
    if (!backing.empty() && ::stat(backing.c_str(), &found) == 0 && found.st_dev == file.st_dev &&
        found.st_ino == file.st_ino)
      return "/dev/" + name;
  }
  return {};
}

}  // namespace

Status refuse_in_use(const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) return Ok{};
  if (S_ISREG(status.st_mode)) {
    const std::string loop = loop_over(status);
    if (loop.empty()) return Ok{};
    const auto uses = uses_of(loop);
    return make_error(EBUSY, "{} is the disk {}{}: detach that first (losetup -d {})", path, loop,
                      uses.empty() ? "" : ", which is " + uses.front(), loop);
  }
  if (!S_ISBLK(status.st_mode)) return Ok{};
  const auto uses = uses_of(path);
  if (!uses.empty()) return make_error(EBUSY, "{} is {}: unmount it first", path, uses.front());
  if (is_in_use(path))
    return make_error(EBUSY, "{} is in use (a partition of it is mounted, or another device is built on it): free it first",
                      path);
  return Ok{};
}

std::string data_in(const std::string& first) {
  for (const Signature& signature : kSignatures)
    if (first.size() >= signature.offset + signature.bytes.size() &&
        first.compare(signature.offset, signature.bytes.size(), signature.bytes) == 0)
      return signature.name;
  const bool empty = std::all_of(first.begin(), first.end(), [](char byte) { return byte == 0; });
  return empty ? "" : "data";
}

coro::Task<Status> refuse_data(io::Loop& loop, block::Device& device, uint32_t block_bytes, std::string name,
                               std::string act) {
  const uint64_t size = device.size_bytes();
  const uint64_t whole = std::min<uint64_t>(size, kLookedAtBytes) / block_bytes * block_bytes;
  std::string looked(whole, '\0');
  for (const uint64_t at : {uint64_t{0}, (size - whole) / block_bytes * block_bytes}) {
    const int error = co_await Asked(device, loop, block::Command::kRead, at, whole, reinterpret_cast<std::byte*>(looked.data()));
    if (error != 0) co_return make_error(error, "cannot read {} at byte {}: {}", name, at, errno_text(error));
    const std::string found = data_in(looked);
    if (!found.empty())
      co_return make_error(EEXIST, "{} holds {}, which {} would destroy: use --yes if nobody needs it", name, found, act);
  }
  co_return Ok{};
}

}  // namespace netblk::tools
