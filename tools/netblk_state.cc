// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_state.h"

#include <fcntl.h>
#include <fmt/format.h>
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

bool is_same(const Record& record, const struct stat& lock) { return record.lock_inode == 0 || record.lock_inode == lock.st_ino; }

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

// Of the whole process, which runs one command. Set once, before it is used.
uint64_t lock_patience_ms = 60'000;
constexpr auto kLockPause = std::chrono::milliseconds(20);

// Who has the lock on the file, as /proc/locks tells it: "1: FLOCK ADVISORY WRITE 4711 fe:01:131 0 EOF".
std::string holder_of(int file) {
  struct stat found{};
  std::ifstream locks("/proc/locks");
  if (::fstat(file, &found) != 0) return "another process";
  const std::string wanted = fmt::format("{:02x}:{:02x}:{}", major(found.st_dev), minor(found.st_dev), found.st_ino);
  for (std::string line; std::getline(locks, line);) {
    std::istringstream words(line);
    std::string number, kind, advisory, access, pid, place;
    if (words >> number >> kind >> advisory >> access >> pid >> place && kind == "FLOCK" && place == wanted)
      return "process " + pid;
  }
  return "another process";
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

void set_lock_patience(uint64_t milliseconds) { lock_patience_ms = milliseconds; }

Result<io::UniqueFd> lock_attachments() {
  io::UniqueFd lock(::open(kLock, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(lock_patience_ms);
  while (lock.valid() && ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) lock.reset();
    if (lock.valid() && std::chrono::steady_clock::now() >= end)
      return make_error(ETIMEDOUT, "{} attaches or detaches a disk, and has not come to an end for {:.3g} s: --lock-wait waits longer",
                        holder_of(lock.get()), static_cast<double>(lock_patience_ms) / 1000);
    std::this_thread::sleep_for(kLockPause);
  }
  if (!lock.valid()) return make_error(errno, "cannot lock {}: {}", kLock, errno_text(errno));
  return lock;
}

// The folder of a helper that was killed before it had a record: nobody else takes it away. Invalid: it is no such one.
static io::UniqueFd lock_abandoned(const std::string& directory) {
  const std::string record = directory + "/state.json";
  if (::access(record.c_str(), F_OK) == 0) return {};
  io::UniqueFd lock(::open((directory + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock.valid() || ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) return {};
  // It may have lived, and written one, or have been taken away.
  struct stat held{};
  if (::access(record.c_str(), F_OK) == 0 || ::fstat(lock.get(), &held) != 0 || held.st_nlink == 0) return {};
  return lock;
}

Result<NewFolder> make_state_folder() {
  for (int number = 0; number < kMaxAttachments; ++number) {
    // Each time: a detach takes it away when it is empty.
    if (::mkdir(kRoot, 0755) != 0 && errno != EEXIST)
      return make_error(errno, "cannot make {}: {}", kRoot, errno_text(errno));
    const std::string directory = fmt::format("{}/{}", kRoot, number);
    if (::mkdir(directory.c_str(), 0700) != 0) {
      if (errno == EEXIST) {
        io::UniqueFd lock = lock_abandoned(directory);
        if (lock.valid()) return NewFolder{directory, std::move(lock)};
        continue;
      }
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
  struct stat found{};
  if (::fstat(lock.get(), &found) != 0 || !is_same(record, found))
    return make_error(ENOENT, "{} has been detached meanwhile", record.device);
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
                     {"read_only", record.given.read_only},
                     {"pid", record.pid},
                     {"given_size_bytes", record.given.size_bytes},
                     {"given_timeout_ms", record.given.timeout_given ? record.given.timeout_ms : 0},
                     {"for_ever", record.given.for_ever},
                     {"connections", record.given.connections},
                     {"shared", record.given.shared},
                     {"trust_reconnect", record.given.trust_reconnect},
                     {"flags", record.nbd_flags},
                     {"ublk_number", record.ublk.number},
                     {"ublk_mark", record.ublk.mark},
                     {"store_uuid", record.seen.store_uuid},
                     {"generation", record.seen.generation},
                     {"lost", record.seen.lost},
                     {"lost_why", record.seen.lost_why}};
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

std::optional<Record> read_record(const std::string& directory) {
  const json text = json::parse(read_text(directory + "/state.json"), nullptr, false);
  if (!text.is_object()) return std::nullopt;
  Record record;
  record.directory = directory;
  struct stat lock{};
  if (::stat((directory + "/lock").c_str(), &lock) == 0) record.lock_inode = lock.st_ino;
  try {
    record.way = text.value("way", "fuse");
    record.device = text.at("device").get<std::string>();
    record.server = text.at("server").get<std::string>();
    record.size_bytes = text.at("size_bytes").get<uint64_t>();
    record.given.read_only = text.at("read_only").get<bool>();
    record.pid = text.at("pid").get<int64_t>();
    record.given.size_bytes = text.value("given_size_bytes", uint64_t{0});
    const uint64_t timeout_ms = text.value("given_timeout_ms", uint64_t{0});
    record.given.timeout_given = timeout_ms != 0;
    if (timeout_ms != 0) record.given.timeout_ms = timeout_ms;
    record.given.for_ever = text.value("for_ever", false);
    record.given.connections = text.value("connections", 1u);
    record.given.shared = text.value("shared", false);
    record.given.trust_reconnect = text.value("trust_reconnect", false);
    record.nbd_flags = text.value("flags", uint16_t{0});
    record.ublk.number = text.value("ublk_number", int64_t{-1});
    record.ublk.mark = text.value("ublk_mark", uint64_t{0});
    record.seen.store_uuid = text.value("store_uuid", "");
    record.seen.generation = text.value("generation", uint64_t{0});
    record.seen.lost = text.value("lost", false);
    record.seen.lost_why = text.value("lost_why", "");
  } catch (const json::exception&) {
    return std::nullopt;
  }
  return record;
}

std::vector<Record> read_records() {
  std::vector<Record> records;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(kRoot, error)) {
    // Servers keep what they know of their stores here, too, and there may be many.
    if (entry.path().filename().string().find_first_not_of("0123456789") != std::string::npos) continue;
    if (auto record = read_record(entry.path().string())) records.push_back(std::move(*record));
  }
  std::sort(records.begin(), records.end(), [](const Record& a, const Record& b) {
    return a.directory.size() != b.directory.size() ? a.directory.size() < b.directory.size()
                                                    : a.directory < b.directory;
  });
  return records;
}

bool is_dying(const Record& record) { return is_dying(record.pid); }

bool is_alive(const Record& record) {
  const auto end = std::chrono::steady_clock::now() + kKilledPatience;
  for (;;) {
    const io::UniqueFd lock(::open((record.directory + "/lock").c_str(), O_RDONLY | O_CLOEXEC));
    struct stat found{};
    if (!lock.valid() || ::fstat(lock.get(), &found) != 0 || !is_same(record, found)) return false;
    if (::flock(lock.get(), LOCK_SH | LOCK_NB) == 0 || errno != EWOULDBLOCK) return false;
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
  if (uninterrupted([&] { return ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address); }) != 0)
    return "";
  (void)uninterrupted([&] { return ::send(fd.get(), word.data(), word.size(), MSG_NOSIGNAL); });
  (void)::shutdown(fd.get(), SHUT_WR);
  std::string text;
  std::array<char, 4096> part{};
  for (;;) {
    const ssize_t got = uninterrupted([&] { return ::recv(fd.get(), part.data(), part.size(), 0); });
    if (got <= 0) break;
    text.append(part.data(), static_cast<size_t>(got));
  }
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

Status remove_leftovers(const Record& record) {
  struct stat lock{};
  if (::stat((record.directory + "/lock").c_str(), &lock) == 0 && !is_same(record, lock)) return Ok{};
  // Lazily: a dead FUSE mount answers nothing, and somebody may still stand in it.
  while (::umount2(record.mount_directory().c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) == 0) {
  }
  if (errno != EINVAL && errno != ENOENT)
    return make_error(errno, "cannot unmount {}: {}", record.mount_directory(), errno_text(errno));
  // A helper that was started for a disk that has just gone may still put a file there, before it sees that.
  std::error_code error;
  for (const auto end = std::chrono::steady_clock::now() + kLookPatience;; std::this_thread::sleep_for(kPollPause)) {
    fs::remove_all(record.directory, error);
    if (error != std::errc::directory_not_empty || std::chrono::steady_clock::now() >= end) break;
  }
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

Status check_unused(const std::string& device) {
  const std::vector<std::string> uses = uses_of(device);
  if (!uses.empty()) return make_error(EBUSY, "{} is {}: unmount it first, or use --force", device, uses.front());
  if (is_in_use(device))
    return make_error(EBUSY, "{} is in use by another process or device: close it first, or use --force", device);
  return Ok{};
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

Status check_still_unused(const std::string& device, const Status& written) {
  Status unused = check_unused(device);
  // Nobody else is told of that: the kernel tells it once.
  if (!unused && !written)
    return make_error(EBUSY, "{}; and what was written to it before has not all reached the server", unused.error().message);
  return unused;
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
