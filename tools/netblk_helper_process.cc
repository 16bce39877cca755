// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_process.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <climits>
#include <cstring>
#include <fstream>

#include "base/log.h"
#include "base/parse.h"
#include "command_line.h"

namespace netblk::tools {
namespace {

constexpr timeval kControlTimeout{.tv_sec = 1, .tv_usec = 0};
// Every page of a stack is in memory for good.
constexpr size_t kStackBytes = 512 << 10;

std::string read_to_end(int fd) {
  std::string text;
  std::array<char, 4096> part{};
  for (;;) {
    const ssize_t got = ::read(fd, part.data(), part.size());
    if (got > 0) text.append(part.data(), static_cast<size_t>(got));
    if (got == 0 || (got < 0 && errno != EINTR)) return text;
  }
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

Result<std::string> start_helper(const std::function<int(HelperParent&)>& run) {
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
    ::_exit(run(parent));
  }
  write_end.reset();
  auto node = understood(read_to_end(read_end.get()));
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
