// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_state.h"

#include <fcntl.h>
#include <linux/blkpg.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <thread>

#include "base/parse.h"

namespace netblk::tools {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kRoot = "/run/netblk";
// Beside the folder, which goes when it is empty; a lock that goes would be held by two.
constexpr const char* kLock = "/run/netblk.lock";
constexpr int kMaxAttachments = 4096;
constexpr timeval kControlTimeout{.tv_sec = 10, .tv_usec = 0};
constexpr auto kPollPause = std::chrono::milliseconds(20);
// For a process that was killed to be gone; for one that only looks at a lock to be done.
constexpr auto kKilledPatience = std::chrono::seconds(10);
constexpr auto kLookPatience = std::chrono::seconds(2);

std::string canonical(const std::string& path) {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  return error ? path : real.string();
}

// Whether a signal has ended the process, or is about to: proc(5), `stat` and `status`.
bool is_dying(int64_t pid) {
  constexpr uint64_t kExiting = 0x4;      // PF_EXITING of the kernel's sched.h
  constexpr uint64_t kSignalled = 0x400;  // PF_SIGNALED
  constexpr uint64_t kKill = uint64_t{1} << (SIGKILL - 1);
  const std::string stat = read_text(fmt::format("/proc/{}/stat", pid));
  const size_t name_end = stat.rfind(')');
  if (name_end == std::string::npos) return false;  // its lock has gone with it, or is another's
  std::istringstream words(stat.substr(name_end + 1));
  std::string state, skipped;
  uint64_t flags = 0;
  words >> state >> skipped >> skipped >> skipped >> skipped >> skipped >> flags;
  if (state == "Z" || state == "X" || (flags & (kExiting | kSignalled)) != 0) return true;
  std::ifstream status(fmt::format("/proc/{}/status", pid));
  for (std::string line; std::getline(status, line);)
    if ((line.starts_with("SigPnd:") || line.starts_with("ShdPnd:")) &&
        (std::strtoull(line.c_str() + sizeof "SigPnd:", nullptr, 16) & kKill) != 0)
      return true;
  return false;
}

// mountinfo writes blanks and backslashes of a path as \OOO.
std::string unescaped(const std::string& text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\\' && i + 3 < text.size()) {
      plain += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
      i += 3;
    } else {
      plain += text[i];
    }
  }
  return plain;
}

}  // namespace

std::string canonical_device(const std::string& device) {
  return canonical(device.find('/') == std::string::npos ? "/dev/" + device : device);
}

std::string read_text(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  std::string result = text.str();
  while (!result.empty() && result.back() == '\n') result.pop_back();
  return result;
}

Result<io::UniqueFd> lock_attachments() {
  io::UniqueFd lock(::open(kLock, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock.valid() || ::flock(lock.get(), LOCK_EX) != 0)
    return make_error(errno, "cannot lock {}: {}", kLock, errno_text(errno));
  return lock;
}

Result<NewFolder> make_state_folder() {
  for (int number = 0; number < kMaxAttachments; ++number) {
    // Each time: a detach takes it away when it is empty.
    if (::mkdir(kRoot, 0755) != 0 && errno != EEXIST)
      return make_error(errno, "cannot make {}: {}", kRoot, errno_text(errno));
    const std::string directory = fmt::format("{}/{}", kRoot, number);
    if (::mkdir(directory.c_str(), 0700) != 0) {
      if (errno == EEXIST) continue;
      if (errno == ENOENT) {
        --number;
        continue;
      }
      return make_error(errno, "cannot make {}: {}", directory, errno_text(errno));
    }
    io::UniqueFd lock(::open((directory + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    // A look from outside holds the lock for a moment: wait for it.
    if (!lock.valid() || ::flock(lock.get(), LOCK_EX) != 0)
      return make_error(errno, "cannot lock {}: {}", directory, errno_text(errno));
    return NewFolder{directory, std::move(lock)};
  }
  return make_error(ENOSPC, "{} attachments are there already", kMaxAttachments);
}

Result<io::UniqueFd> take_over_folder(const Record& record) {
  io::UniqueFd lock(::open((record.directory + "/lock").c_str(), O_RDWR | O_CLOEXEC));
  if (!lock.valid()) return make_error(errno, "cannot open the lock of {}: {}", record.directory, errno_text(errno));
  // A look from outside holds the lock for a moment.
  for (const auto end = std::chrono::steady_clock::now() + kLookPatience; ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0;) {
    if (std::chrono::steady_clock::now() >= end)
      return make_error(EBUSY, "the helper of {} (process {}) lives", record.device, record.pid);
    std::this_thread::sleep_for(kPollPause);
  }
  return lock;
}

Status write_record(const Record& record) {
  const json text = {{"way", record.way},
                     {"device", record.device},
                     {"server", record.server},
                     {"size_bytes", record.size_bytes},
                     {"read_only", record.read_only},
                     {"pid", record.pid},
                     {"given_size_bytes", record.nbd.given_size_bytes},
                     {"given_timeout_ms", record.nbd.given_timeout_ms},
                     {"connections", record.nbd.connections},
                     {"flags", record.nbd.flags},
                     {"shared", record.nbd.shared},
                     {"trust_reconnect", record.ublk.trust_reconnect},
                     {"ublk_number", record.ublk.number},
                     {"ublk_mark", record.ublk.mark},
                     {"store_uuid", record.ublk.store_uuid},
                     {"generation", record.ublk.generation},
                     {"lost", record.ublk.lost},
                     {"lost_why", record.ublk.lost_why}};
  const std::string path = record.directory + "/state.json";
  const std::string next = path + ".new";
  {
    std::ofstream file(next, std::ios::trunc);
    file << text.dump() << '\n';
    file.close();
    if (!file) return make_error(EIO, "cannot write {}", next);
  }
  if (::rename(next.c_str(), path.c_str()) != 0)
    return make_error(errno, "cannot write {}: {}", path, errno_text(errno));
  return Ok{};
}

std::vector<Record> read_records() {
  std::vector<Record> records;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(kRoot, error)) {
    // Servers keep what they know of their stores here, too, and there may be many.
    if (entry.path().filename().string().find_first_not_of("0123456789") != std::string::npos) continue;
    const json text = json::parse(read_text(entry.path().string() + "/state.json"), nullptr, false);
    if (!text.is_object()) continue;
    Record record;
    record.directory = entry.path().string();
    try {
      record.way = text.value("way", "fuse");
      record.device = text.at("device").get<std::string>();
      record.server = text.at("server").get<std::string>();
      record.size_bytes = text.at("size_bytes").get<uint64_t>();
      record.read_only = text.at("read_only").get<bool>();
      record.pid = text.at("pid").get<int64_t>();
      record.nbd.given_size_bytes = text.value("given_size_bytes", uint64_t{0});
      record.nbd.given_timeout_ms = text.value("given_timeout_ms", uint64_t{0});
      record.nbd.connections = text.value("connections", 1u);
      record.nbd.flags = text.value("flags", uint16_t{0});
      record.nbd.shared = text.value("shared", false);
      record.ublk.trust_reconnect = text.value("trust_reconnect", false);
      record.ublk.number = text.value("ublk_number", int64_t{-1});
      record.ublk.mark = text.value("ublk_mark", uint64_t{0});
      record.ublk.store_uuid = text.value("store_uuid", "");
      record.ublk.generation = text.value("generation", uint64_t{0});
      record.ublk.lost = text.value("lost", false);
      record.ublk.lost_why = text.value("lost_why", "");
    } catch (const json::exception&) {
      continue;  // not ours
    }
    records.push_back(std::move(record));
  }
  std::sort(records.begin(), records.end(), [](const Record& a, const Record& b) {
    return a.directory.size() != b.directory.size() ? a.directory.size() < b.directory.size()
                                                    : a.directory < b.directory;
  });
  return records;
}

bool is_alive(const Record& record) {
  const auto end = std::chrono::steady_clock::now() + kKilledPatience;
  for (;;) {
    const io::UniqueFd lock(::open((record.directory + "/lock").c_str(), O_RDONLY | O_CLOEXEC));
    if (!lock.valid() || ::flock(lock.get(), LOCK_SH | LOCK_NB) == 0 || errno != EWOULDBLOCK) return false;
    // Who was killed holds its lock until its memory is given back, and does nothing for anybody any more.
    if (!is_dying(record.pid) || std::chrono::steady_clock::now() >= end) return true;
    std::this_thread::sleep_for(kPollPause);
  }
}

bool wait_until_gone(const Record& record, uint64_t timeout_ms) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  while (is_alive(record)) {
    if (std::chrono::steady_clock::now() >= end) return false;
    std::this_thread::sleep_for(kPollPause);
  }
  return true;
}

std::string ask_helper(const Record& record, const std::string& word) {
  const io::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = record.control_socket();
  if (!fd.valid() || path.size() >= sizeof address.sun_path) return "";
  std::memcpy(address.sun_path, path.c_str(), path.size());
  (void)::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &kControlTimeout, sizeof kControlTimeout);
  (void)::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &kControlTimeout, sizeof kControlTimeout);
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return "";
  (void)!::send(fd.get(), word.data(), word.size(), MSG_NOSIGNAL);
  (void)::shutdown(fd.get(), SHUT_WR);
  std::string text;
  std::array<char, 4096> part{};
  ssize_t got;
  while ((got = ::recv(fd.get(), part.data(), part.size(), 0)) > 0) text.append(part.data(), static_cast<size_t>(got));
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

Status remove_leftovers(const Record& record) {
  // Lazily: a dead FUSE mount answers nothing, and somebody may still stand in it.
  while (::umount2(record.mount_directory().c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0) {
  }
  if (errno != EINVAL && errno != ENOENT)
    return make_error(errno, "cannot unmount {}: {}", record.mount_directory(), errno_text(errno));
  std::error_code error;
  fs::remove_all(record.directory, error);
  if (error) return make_error(error.value(), "cannot remove {}: {}", record.directory, error.message());
  (void)::rmdir(kRoot);  // when it is empty
  return Ok{};
}

std::vector<std::string> uses_of(const std::string& device) {
  std::vector<std::string> uses;
  struct stat node{};
  if (::stat(device.c_str(), &node) != 0) return uses;
  // The disk and its partitions.
  std::vector<std::string> numbers = {fmt::format("{}:{}", major(node.st_rdev), minor(node.st_rdev))};
  std::vector<std::string> names = {canonical(device)};
  const std::string disk = names.front().substr(names.front().rfind('/') + 1);
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/sys/class/block/" + disk, error)) {
    if (!fs::exists(entry.path() / "partition", error)) continue;
    numbers.push_back(read_text(entry.path() / "dev"));
    names.push_back("/dev/" + entry.path().filename().string());
  }
  const auto is_one_of = [](const std::string& one, const std::vector<std::string>& all) {
    return std::find(all.begin(), all.end(), one) != all.end();
  };
  std::ifstream mounts("/proc/self/mountinfo");
  for (std::string line; std::getline(mounts, line);) {
    std::istringstream words(line);
    std::string id, parent, mounted, root, point, word;
    words >> id >> parent >> mounted >> root >> point;
    while (words >> word && word != "-") {
    }
    std::string type, source;
    words >> type >> source;
    // A file system over several devices has a number of its own: its source is one of them.
    if (is_one_of(mounted, numbers) || (source.starts_with("/dev/") && is_one_of(canonical(unescaped(source)), names)))
      uses.push_back("mounted on " + unescaped(point));
  }
  std::ifstream swaps("/proc/swaps");
  for (std::string line; std::getline(swaps, line);) {
    const std::string file = line.substr(0, line.find_first_of(" \t"));
    if (file.starts_with("/dev/") && is_one_of(canonical(unescaped(file)), names)) uses.push_back("used as swap");
  }
  return uses;
}

bool is_in_use(const std::string& device) {
  const io::UniqueFd alone(::open(device.c_str(), O_RDONLY | O_EXCL | O_CLOEXEC));
  return !alone.valid() && errno == EBUSY;
}

Status write_back(const std::string& device, const std::function<void()>& look) {
  Status written = Ok{};
  std::atomic<bool> done{false};
  std::thread writer([&] {
    written = write_back(device);
    done = true;
  });
  while (!done) {
    std::this_thread::sleep_for(kPollPause);
    if (!done) look();
  }
  writer.join();
  return written;
}

Status write_back(const std::string& device) {
  const io::UniqueFd node(::open(device.c_str(), O_RDONLY | O_CLOEXEC));
  if (!node.valid()) return make_error(errno, "cannot open {}: {}", device, errno_text(errno));
  if (::fsync(node.get()) != 0)
    return make_error(errno, "{} is detached, but data written to it did not reach the server: {}", device,
                      errno_text(errno));
  return Ok{};
}

void forget_partitions(const std::string& device) {
  const std::string disk = device.substr(device.rfind('/') + 1);
  const io::UniqueFd node(::open(device.c_str(), O_RDONLY | O_CLOEXEC));
  if (!node.valid()) return;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator("/sys/class/block/" + disk, error)) {
    const auto number = parse_unsigned(read_text(entry.path() / "partition"), 1, INT_MAX);
    if (!number) continue;
    blkpg_partition partition{};
    partition.pno = static_cast<int>(*number);
    blkpg_ioctl_arg wish{.op = BLKPG_DEL_PARTITION, .flags = 0, .datalen = sizeof partition, .data = &partition};
    (void)::ioctl(node.get(), BLKPG, &wish);
  }
}

}  // namespace netblk::tools
