// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_process.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <fstream>
#include <optional>
#include <utility>

#include "base/log.h"
#include "base/parse.h"
#include "command_line.h"

namespace netblk::tools {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr timeval kControlTimeout{.tv_sec = 1, .tv_usec = 0};
// Every page of a stack is in memory for good.
constexpr size_t kStackBytes = 512 << 10;

// Whatever a helper waits for has a deadline of its own: those of its server, in turn, the patience with another user of
// its store, and then some, for a machine that is busy.
constexpr uint64_t kStartMs = 60'000;
constexpr unsigned kTimeoutsInTurn = 5;
constexpr int kKilledMs = 30'000;
uint64_t start_patience_ms = 0;

uint64_t patience_for(const AttachOptions& given) {
  if (start_patience_ms != 0) return start_patience_ms;
  const uint64_t dead_time_ms = given.for_ever ? AttachOptions{}.dead_time_ms() : given.dead_time_ms();
  return kStartMs + std::max(dead_time_ms, kTimeoutsInTurn * given.timeout_ms);
}

// What there is to read until the other end is closed. Nothing: it is not, and the time is over.
std::optional<std::string> read_to_end(int fd, uint64_t patience_ms) {
  const auto end = steady_clock::now() + milliseconds(patience_ms);
  std::string text;
  std::array<char, 4096> part{};
  for (;;) {
    const auto left = std::chrono::ceil<milliseconds>(end - steady_clock::now()).count();
    pollfd told{fd, POLLIN, 0};
    const int ready = left <= 0 ? 0 : ::poll(&told, 1, static_cast<int>(std::min<int64_t>(left, INT_MAX)));
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) return std::nullopt;
    const ssize_t got = ::read(fd, part.data(), part.size());
    if (got > 0) text.append(part.data(), static_cast<size_t>(got));
    if (got == 0 || (got < 0 && errno != EINTR)) return text;
  }
}

// What a process is at, in words, for somebody who wants to know why it does not go on: proc(5).
std::string pastime_of(int64_t pid) {
  const std::string stat = read_text(fmt::format("/proc/{}/stat", pid));
  const size_t name_end = stat.rfind(')');
  const char state = name_end == std::string::npos || name_end + 2 >= stat.size() ? '?' : stat[name_end + 2];
  if (state == 'T' || state == 't') return "it was stopped, by a signal or a debugger";
  const std::string place = read_text(fmt::format("/proc/{}/wchan", pid));
  if (place.empty() || place == "0") return "it was not waiting in the kernel";
  return fmt::format("it waited in the kernel ({})", place);
}

// The last line of the log of the helper.
std::string last_words_of(int64_t pid) {
  for (const Record& record : read_records()) {
    if (record.pid != pid) continue;
    const std::string log = read_text(record.log_file());
    return log.substr(log.rfind('\n') + 1);
  }
  return "";
}

bool ends_within(pid_t child, int patience_ms) {
  const io::UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, child, 0)));
  pollfd ended{process.get(), POLLIN, 0};
  if (process.valid()) (void)uninterrupted([&] { return ::poll(&ended, 1, patience_ms); });
  return ::waitpid(child, nullptr, process.valid() ? WNOHANG : 0) == child;
}

// One that tells nothing is in the way of every other attach and detach.
Error end_late_helper(pid_t child, const HelperStart& start, uint64_t patience_ms) {
  const std::string pastime = pastime_of(child);
  const std::string words = last_words_of(child);
  std::string text = fmt::format("the helper of {} (process {}) made no disk within {:.3g} s: {}", start.source, child,
                                 static_cast<double>(patience_ms) / 1000, pastime);
  if (!words.empty()) text += fmt::format(", and its log ends with \"{}\"", words);
  if (!start.may_be_killed(child)) {
    (void)::kill(child, SIGCONT);
    text += "; the kernel waits for its answer, so it is not killed, and ends by itself when that has come or its time is over";
    return Error{ETIME, std::move(text)};
  }
  (void)::kill(child, SIGKILL);
  start.let_go(child);
  text += ends_within(child, kKilledMs)
              ? fmt::format("; it was killed: look whether {} answers; --start-wait waits longer", start.source)
              : fmt::format("; it was killed, and has not ended yet: /proc/{}/stack has what it waits for", child);
  return Error{ETIME, std::move(text)};
}

// Lines: "#words" for the user, then the node, or "!22 words": errno decides the exit status.
Result<std::string> understood(const std::string& text) {
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    if (line.starts_with("/dev/")) return line;
    if (line.starts_with("#")) note(line.substr(1));
    if (!line.starts_with("!")) continue;
    const size_t blank = line.find(' ');
    const auto code = parse_unsigned(line.substr(1, blank - 1), 1, INT_MAX);
    if (code && blank != std::string::npos) return make_error(static_cast<int>(*code), "{}", line.substr(blank + 1));
  }
  return make_error(EIO, "the helper process died before the disk was there");
}

}  // namespace

bool HelperParent::tell(const std::string& line) {
  return ::write(pipe_.get(), line.data(), line.size()) == static_cast<ssize_t>(line.size());
}

bool HelperParent::started(const std::string& node) {
  const bool told = tell(node + "\n");
  pipe_.reset();
  return told;
}

void HelperParent::failed(const Error& error) {
  (void)tell(fmt::format("!{} {}\n", error.code, error.message));
  pipe_.reset();
}

void set_start_patience(uint64_t milliseconds) { start_patience_ms = milliseconds; }

Result<std::string> start_helper(const HelperStart& start) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return make_error(errno, "cannot make a pipe: {}", errno_text(errno));
  io::UniqueFd read_end(ends[0]);
  io::UniqueFd write_end(ends[1]);
  const pid_t child = ::fork();
  if (child < 0) return make_error(errno, "cannot start the helper: {}", errno_text(errno));
  if (child == 0) {
    read_end.reset();
    outlive_shutdown();
    HelperParent parent(std::move(write_end));
    leave_caller(parent);
    ::_exit(start.run(parent));
  }
  write_end.reset();
  const uint64_t patience_ms = patience_for(start.given);
  const auto told = read_to_end(read_end.get(), patience_ms);
  if (!told) return end_late_helper(child, start, patience_ms);
  auto node = understood(*told);
  if (!node) ::waitpid(child, nullptr, 0);
  return node;
}

namespace {

// `$(netblk attach ...)` must return, and no lock of a script may be kept.
void leave(int kept_fd) {
  ::setsid();
  (void)!::chdir("/");
  ::umask(077);
  const auto kept = static_cast<unsigned>(kept_fd);
  if (kept > 3) (void)::close_range(3, kept - 1, 0);
  (void)::close_range(kept + 1, ~0u, 0);
}

}  // namespace

void outlive_shutdown() { program_invocation_name[0] = '@'; }

void leave_caller(const HelperParent& parent) { leave(parent.fd()); }

void leave_caller_with(int kept) {
  leave(kept);
  const io::UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  for (const int standard : {0, 1, 2})
    if (null.valid()) (void)::dup2(null.get(), standard);
}

Status log_to(const std::string& file) {
  const io::UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const io::UniqueFd log(::open(file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!null.valid() || !log.valid()) return make_error(errno, "cannot open {}: {}", file, errno_text(errno));
  if (::dup2(null.get(), 0) < 0 || ::dup2(null.get(), 1) < 0 || ::dup2(log.get(), 2) < 0)
    return make_error(errno, "cannot redirect the helper's output: {}", errno_text(errno));
  return Ok{};
}

void become_io_path() {
  if (::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0) log_warning("PR_SET_IO_FLUSHER is refused: {}", errno_text(errno));
  std::ofstream("/proc/self/oom_score_adj") << "-1000";
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setstacksize(&attributes, kStackBytes);
  ::pthread_setattr_default_np(&attributes);
  ::pthread_attr_destroy(&attributes);
}

void lock_memory() {
  if (::mlockall(MCL_CURRENT | MCL_FUTURE) != 0) log_warning("memory cannot be locked: {}", errno_text(errno));
}

Result<io::UniqueFd> catch_signals() {
  sigset_t caught;
  ::sigemptyset(&caught);
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&caught, number);
  ::pthread_sigmask(SIG_BLOCK, &caught, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  io::UniqueFd signals(::signalfd(-1, &caught, SFD_CLOEXEC));
  if (!signals.valid()) return make_error(errno, "cannot make a descriptor: {}", errno_text(errno));
  return signals;
}

void raise_event(int event) {
  const uint64_t one = 1;
  (void)!::write(event, &one, sizeof one);
}

Result<ControlSocket> ControlSocket::open(const std::string& path) {
  io::UniqueFd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return make_error(ENAMETOOLONG, "{} is too long", path);
  std::memcpy(address.sun_path, path.c_str(), path.size());
  (void)::unlink(path.c_str());  // of a helper that has gone: the caller holds its lock
  if (!socket.valid() || ::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(socket.get(), 16) != 0)
    return make_error(errno, "cannot listen on {}: {}", path, errno_text(errno));
  return ControlSocket(std::move(socket));
}

void ControlSocket::answer(const std::function<std::string(const std::string& word)>& answer_to) const {
  const io::UniqueFd peer(::accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!peer.valid()) return;
  (void)::setsockopt(peer.get(), SOL_SOCKET, SO_RCVTIMEO, &kControlTimeout, sizeof kControlTimeout);
  (void)::setsockopt(peer.get(), SOL_SOCKET, SO_SNDTIMEO, &kControlTimeout, sizeof kControlTimeout);
  std::array<char, 16> word{};
  const ssize_t got = uninterrupted([&] { return ::recv(peer.get(), word.data(), word.size(), MSG_WAITALL); });
  if (got < 0) return;
  const std::string text = answer_to(std::string(word.data(), static_cast<size_t>(got))) + "\n";
  (void)uninterrupted([&] { return ::send(peer.get(), text.data(), text.size(), MSG_NOSIGNAL); });
}

}  // namespace netblk::tools
