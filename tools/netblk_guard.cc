// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_guard.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/parse.h"
#include "io/fd.h"
#include "netblk_attach.h"
#include "netblk_attach_ublk.h"
#include "netblk_helper_process.h"
#include "netblk_source.h"

namespace netblk::tools {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr milliseconds kMinBackoff{100};
constexpr milliseconds kMaxBackoff{2000};
// Who has lived so long was sound; of one that ends before, the next is no new beginning.
constexpr milliseconds kSound{10'000};

bool is_called_off(int lock) {
  struct stat held{};
  return ::fstat(lock, &held) != 0 || held.st_nlink == 0;
}

// Returns when the helper has ended, or when it cannot be told that it has not.
void wait_for_death(const Record& record) {
  const io::UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, static_cast<pid_t>(record.pid), 0)));
  pollfd ended{process.get(), POLLIN, 0};
  // Its lock is looked at once more: the number may have been another's already.
  if (process.valid() && is_alive(record)) (void)::poll(&ended, 1, -1);
}

// The program that this process runs, if it has been replaced meanwhile.
std::optional<std::string> newer_program() {
  std::error_code error;
  std::string path = std::filesystem::read_symlink("/proc/self/exe", error).string();
  constexpr std::string_view kDeleted = " (deleted)";
  if (error || !path.ends_with(kDeleted)) return std::nullopt;
  path.resize(path.size() - kDeleted.size());
  return ::access(path.c_str(), X_OK) == 0 ? std::optional(path) : std::nullopt;
}

class Guard {
 public:
  Guard(std::string directory, int lock) : directory_(std::move(directory)), lock_(lock) {}

  // The life of the process.
  int run();

 private:
  bool bring_back();
  bool clear_stopped();
  bool give_up();

  const std::string directory_;
  const int lock_;
  steady_clock::time_point without_since_;  // without a sound helper
  milliseconds backoff_ = kMinBackoff;
  std::string why_ = "each that was started has died";
};

int Guard::run() {
  for (without_since_ = steady_clock::now();;) {
    const auto record = read_record(directory_);
    // A helper that ends in peace takes its record with it.
    if (!record || is_called_off(lock_)) return 0;
    if (!is_alive(*record)) {
      if (!bring_back()) return 0;
      continue;
    }
    const auto seen = steady_clock::now();
    wait_for_death(*record);
    if (steady_clock::now() - seen < kSound) continue;
    without_since_ = steady_clock::now();
    backoff_ = kMinBackoff;
  }
}

// True: the disk has a helper. False: there is nothing left to do.
bool Guard::bring_back() {
  for (bool gave_up = false;; backoff_ = std::min(2 * backoff_, kMaxBackoff)) {
    const auto record = read_record(directory_);
    if (!record || is_called_off(lock_)) return false;
    if (is_alive(*record)) return true;
    if (!is_there(*record)) {
      if (clear_stopped()) return false;
    } else if (!gave_up && steady_clock::now() - without_since_ >= milliseconds(record->given.dead_time_ms())) {
      gave_up = give_up();
    } else if (!gave_up) {
      // A newer program mends, and has a guard of its own: the lock goes with this one. Without, this one goes on.
      if (const auto program = newer_program())
        (void)::execl(program->c_str(), "netblk", "status", record->device.c_str(), nullptr);
      Status mended = mend(*record);
      if (mended) log_info("{}: its helper had died; another one looks after it now", record->device);
      if (mended) return true;
      if (mended.error().message != why_) log_warning("{}: no other helper can be started: {}", record->device, mended.error().message);
      why_ = mended.error().message;
    }
    std::this_thread::sleep_for(backoff_);
  }
}

// False: somebody is at it, or has just been. Under the lock, and after another look: what was mended must not be stopped.
bool Guard::give_up() {
  auto attaching = lock_attachments();
  const auto record = read_record(directory_);
  if (!attaching || !record || is_called_off(lock_) || is_alive(*record)) return false;
  log_error("{}: its helper has died, and there was no other in time: {}; its requests fail now", record->device, why_);
  Status stopped = ublk_stop(*record);
  if (!stopped) log_error("{}", stopped.error().message);
  return true;
}

// What was stopped goes when nobody holds it any more.
bool Guard::clear_stopped() {
  auto attaching = lock_attachments();
  const auto record = read_record(directory_);
  if (is_called_off(lock_)) return true;
  if (!attaching || !record || is_alive(*record)) return !record;
  return clear(*record, 0).ok();
}

}  // namespace

void start_guard(const Record& record) {
  if (record.way != "ublk") return;  // another way has a limit, or ends with its helper
  const auto source = parse_source(record.server);
  if (!source || !source.value().survives_helper()) return;
  const io::UniqueFd opened(::open(record.guard_file().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  // Not one of the standard numbers, which the process gives away.
  const io::UniqueFd lock(opened.valid() ? ::fcntl(opened.get(), F_DUPFD_CLOEXEC, 3) : -1);
  if (!lock.valid()) return;
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0 || ::fork() != 0) return;
  // As its helper does. Signalled in vain, it would hold the shutdown up until it is killed.
  outlive_shutdown();
  leave_caller_with(lock.get());
  (void)::prctl(PR_SET_NAME, "netblk-guard");
  // It ends when its disk does; its children are the helpers that it starts, and nobody asks for how they ended.
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) ::signal(number, SIG_IGN);
  ::signal(SIGCHLD, SIG_IGN);
  (void)log_to(record.log_file());
  const std::string pid = std::to_string(::getpid()) + "\n";
  (void)!::ftruncate(lock.get(), 0);
  (void)!::write(lock.get(), pid.data(), pid.size());
  become_io_path();
  lock_memory();
  ::_exit(Guard(record.directory, lock.get()).run());
}

io::UniqueFd call_off_guard(const Record& record) {
  const io::UniqueFd lock(::open(record.guard_file().c_str(), O_RDWR | O_CLOEXEC));
  char text[16] = {};
  const ssize_t length = lock.valid() ? ::pread(lock.get(), text, sizeof text, 0) : 0;
  io::UniqueFd process;
  // A number and a newline.
  if (length > 1)
    if (const auto pid = parse_unsigned({text, static_cast<size_t>(length) - 1}, 2, INT32_MAX))
      process = io::UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, static_cast<pid_t>(*pid), 0)));
  // Its lock is looked at after the number, which may be another's already.
  if (process.valid() && ::flock(lock.get(), LOCK_EX | LOCK_NB) == 0) process.reset();
  (void)::unlink(record.guard_file().c_str());
  return process;
}

void wait_for_guard(const io::UniqueFd& process) {
  constexpr int kMostMs = 5'000;
  pollfd ended{process.get(), POLLIN, 0};
  if (process.valid()) (void)::poll(&ended, 1, kMostMs);
}

}  // namespace netblk::tools
