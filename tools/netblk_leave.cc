// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_leave.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <thread>
#include <utility>

#include "io/fd.h"
#include "netblk_helper_process.h"
#include "netblk_state.h"

namespace netblk::tools {
namespace {

constexpr const char* kRoot = "/run/netblk";
constexpr const char* kLeaving = "/run/netblk/leaving";
constexpr int kLockTries = 10;
constexpr auto kLockPause = std::chrono::milliseconds(20);
// The kernel does not say when a device is closed.
constexpr auto kLookPeriod = std::chrono::milliseconds(200);

std::string file_of(const std::string& node) { return std::string(kLeaving) + "/" + node.substr(node.rfind('/') + 1); }

Status make_folder(const char* path) {
  if (::mkdir(path, 0755) == 0 || errno == EEXIST) return Ok{};
  return make_error(errno, "cannot make {}: {}", path, errno_text(errno));
}

void remove_file(const std::string& node) {
  (void)::unlink(file_of(node).c_str());
  (void)::rmdir(kLeaving);  // when they are empty
  (void)::rmdir(kRoot);
}

bool is_called_off(int lock) {
  struct stat held{};
  return ::fstat(lock, &held) != 0 || held.st_nlink == 0;
}

// The life of the process. A look at the device itself is exclusive, and could be in a user's way: first at its mounts.
int wait_and_detach(const std::string& node, const std::string& source, int lock, const std::function<Result<bool>()>& detach) {
  for (;; std::this_thread::sleep_for(kLookPeriod)) {
    if (is_called_off(lock)) return 0;
    if (!uses_of(node).empty() || is_in_use(node)) continue;
    auto attaching = lock_attachments();
    if (!attaching && attaching.error().code == ETIMEDOUT) continue;
    if (!attaching || is_called_off(lock)) return 0;
    const auto done = detach();
    if (done) {
      remove_file(node);
      return 0;
    }
    if (done.error().code == EBUSY) continue;
    ::syslog(LOG_DAEMON | LOG_ERR, "netblk: %s: its lazy detach failed: %s", node.c_str(), done.error().message.c_str());
    const std::string told = source + "\n" + done.error().message;
    (void)!::write(lock, told.data(), told.size());
    return 1;
  }
}

}  // namespace

Status leave_lazily(const std::string& node, const std::string& source, const std::function<Result<bool>()>& detach) {
  Status made = make_folder(kRoot);
  if (made) made = make_folder(kLeaving);
  if (!made) return made;
  const std::string file = file_of(node);
  const io::UniqueFd opened(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  // Not one of the standard numbers, which the process gives away.
  const io::UniqueFd lock(opened.valid() ? ::fcntl(opened.get(), F_DUPFD_CLOEXEC, 3) : -1);
  if (!lock.valid()) return make_error(errno, "cannot make {}: {}", file, errno_text(errno));
  // A look at it has it for a moment; a process that waits already, for long.
  int tries = kLockTries;
  while (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    if (--tries == 0) return Ok{};
    std::this_thread::sleep_for(kLockPause);
  }
  (void)::ftruncate(lock.get(), 0);  // what an earlier one had to say
  const pid_t child = ::fork();
  if (child < 0) return make_error(errno, "cannot start a process: {}", errno_text(errno));
  if (child != 0) return Ok{};
  // The lock belongs to the open file, which the child has as well; the parent's end does not release it.
  leave_caller_with(lock.get());
  ::_exit(wait_and_detach(node, source, lock.get(), detach));
}

bool is_leaving(const std::string& node) {
  const io::UniqueFd lock(::open(file_of(node).c_str(), O_RDONLY | O_CLOEXEC));
  return lock.valid() && ::flock(lock.get(), LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

std::vector<FailedLeave> failed_leaves() {
  std::vector<FailedLeave> failed;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(kLeaving, error)) {
    // One that waits still has written nothing.
    const std::string text = read_text(entry.path());
    const size_t line = text.find('\n');
    if (line != std::string::npos)
      failed.push_back({"/dev/" + entry.path().filename().string(), text.substr(0, line), text.substr(line + 1)});
  }
  return failed;
}

bool forget_failed_leave(const std::string& node) {
  if (read_text(file_of(node)).empty()) return false;
  remove_file(node);
  return true;
}

void stay(const std::string& node) {
  if (read_text(file_of(node)).empty()) remove_file(node);
}

}  // namespace netblk::tools
