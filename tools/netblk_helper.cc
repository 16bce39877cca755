// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper.h"

#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "attach/fuse/fuse_disk.h"
#include "attach/fuse/loop_device.h"
#include "backend.h"
#include "base/log.h"
#include "client/open_auto.h"
#include "netblk_names.h"
#include "netblk_state.h"
#include "transport/tcp.h"
#include "transport/tcp_dialer.h"

namespace netblk::tools {
namespace {

using nlohmann::json;

// The disk itself is on the network: files are not read here.
constexpr unsigned kFileThreads = 1;
constexpr timeval kControlTimeout{.tv_sec = 1, .tv_usec = 0};

// Nothing of the caller's stays open: `$(netblk attach ...)` must return, and no lock of a script may be kept.
void close_inherited(int keep) {
  const auto kept = static_cast<unsigned>(keep);
  if (kept > 3) (void)::close_range(3, kept - 1, 0);
  (void)::close_range(kept + 1, ~0u, 0);
}

Status redirect(const std::string& log_file) {
  const io::UniqueFd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
  const io::UniqueFd log(::open(log_file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!null.valid() || !log.valid()) return make_error(errno, "cannot open {}: {}", log_file, errno_text(errno));
  if (::dup2(null.get(), 0) < 0 || ::dup2(null.get(), 1) < 0 || ::dup2(log.get(), 2) < 0)
    return make_error(errno, "cannot redirect the helper's output: {}", errno_text(errno));
  return Ok{};
}

// A process that a disk depends on: memory reclaim must not wait for itself, and must not pick it as a victim.
void become_io_path() {
  if (::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0) log_warning("PR_SET_IO_FLUSHER is refused: {}", errno_text(errno));
  std::ofstream("/proc/self/oom_score_adj") << "-1000";
}

class Helper {
 public:
  Helper(const ServerUri& uri, const AttachOptions& options) : uri_(uri), options_(options) {}
  Helper(const Helper&) = delete;
  Helper& operator=(const Helper&) = delete;
  ~Helper();

  Status start();
  void serve();
  const std::string& device() const { return record_.device; }

 private:
  Status open_client();
  io::Loop& client_loop() { return client_.netblk2 ? client_.netblk2->loop() : client_.netblk1->loop(); }
  Status open_control();
  void answer_control();
  bool release_on_signal();
  json live_state();
  std::string answer_to(const std::string& word);

  const ServerUri uri_;
  const AttachOptions options_;
  Record record_;
  io::UniqueFd lock_;
  io::UniqueFd signals_;
  io::UniqueFd closed_;  // eventfd: the disk's file lost its last opener
  io::UniqueFd control_;
  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  client::OpenedAuto client_;
  std::unique_ptr<attach::FuseDisk> disk_;
};

Status Helper::start() {
  auto folder = make_state_folder();
  if (!folder) return std::move(folder).error();
  record_.directory = folder.value().directory;
  lock_ = std::move(folder.value().lock);
  record_.server = uri_.text();
  record_.size_bytes = options_.size_bytes;
  record_.read_only = options_.read_only;
  record_.pid = ::getpid();
  Status done = redirect(record_.log_file());
  if (done) done = write_record(record_);
  if (!done) return done;
  become_io_path();

  sigset_t caught;
  ::sigemptyset(&caught);
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&caught, number);
  ::pthread_sigmask(SIG_BLOCK, &caught, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  signals_ = io::UniqueFd(::signalfd(-1, &caught, SFD_CLOEXEC));
  closed_ = io::UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!signals_.valid() || !closed_.valid()) return make_error(errno, "cannot make a descriptor: {}", errno_text(errno));
  done = open_control();
  if (!done) return done;

  auto backend = make_backend(kFileThreads);
  if (!backend) return std::move(backend).error();
  backend_ = std::move(backend).value();
  done = open_client();
  if (!done) return done;
  record_.size_bytes = client_.device().size_bytes();

  if (::mkdir(record_.mount_directory().c_str(), 0700) != 0)
    return make_error(errno, "cannot make {}: {}", record_.mount_directory(), errno_text(errno));
  auto mounted = attach::FuseDisk::mount(client_.device(), client_loop(), record_.mount_directory(), [fd = closed_.get()] {
    const uint64_t one = 1;
    (void)!::write(fd, &one, sizeof one);
  });
  if (!mounted) return std::move(mounted).error();
  disk_ = std::move(mounted).value();
  auto device = attach::loop_attach(
      disk_->path(), {.read_only = options_.read_only, .can_trim = client_.device().geometry().can_trim});
  if (!device) return std::move(device).error();
  record_.device = device.value();
  done = write_record(record_);
  if (!done) (void)attach::loop_detach(record_.device);
  return done;
}

// Every deadline is the user's --timeout, or three times that.
Status Helper::open_client() {
  const uint64_t timeout_ms = options_.timeout_ms;
  client::Options2 netblk2;
  netblk2.name = uri_.text();
  netblk2.export_name = uri_.export_name;
  netblk2.client_id = client_id_of("fuse " + uri_.text());
  netblk2.read_only = options_.read_only;
  netblk2.shared = options_.shared;
  netblk2.takeover = options_.takeover;
  netblk2.connect_timeout_ms = timeout_ms;
  if (options_.timeout_given) {
    netblk2.dead_time_ms = 3 * timeout_ms;
    netblk2.request_timeout_ms = 4 * timeout_ms;
  }
  const client::Options netblk1{.name = uri_.text(),
                                .size_bytes = options_.size_bytes,
                                .read_only = options_.read_only,
                                .timeout_ms = timeout_ms};
  auto opened = client::open_auto(
      *backend_, clock_, std::make_unique<transport::TcpDialer>(uri_.host, uri_.port), netblk2,
      [uri = uri_](uint64_t within_ms) { return transport::tcp_connect(uri.host, uri.port, within_ms); }, netblk1);
  if (!opened) return std::move(opened).error();
  client_ = std::move(opened).value();
  if (client_.netblk1 && !uri_.export_name.empty())
    return make_error(EINVAL, "{} speaks netblk/1, which cannot name an export; leave \"/{}\" out", uri_.address(),
                      uri_.export_name);
  if (client_.netblk1 && (options_.shared || options_.takeover))
    return make_error(EINVAL, "{} speaks netblk/1, which has no owners: --shared and --takeover mean nothing there",
                      uri_.address());
  const uint64_t size_bytes = client_.device().size_bytes();
  if (options_.size_bytes != 0 && options_.size_bytes != size_bytes)
    return make_error(EINVAL, "{} has {} bytes, not {}: leave --size out", uri_.text(), size_bytes, options_.size_bytes);
  if (!options_.read_only && client_.device().geometry().read_only)
    return make_error(EROFS, "{} is read-only: attach it with --read-only", uri_.text());
  return Ok{};
}

// The order matters: no opener is left, so the mount goes at once; then the connection says goodbye; the lock is held
// until nothing is left.
Helper::~Helper() {
  disk_.reset();
  client_ = {};
  if (!record_.directory.empty()) (void)remove_leftovers(record_);
}

Status Helper::open_control() {
  control_ = io::UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const std::string path = record_.control_socket();
  if (path.size() >= sizeof address.sun_path) return make_error(ENAMETOOLONG, "{} is too long", path);
  std::memcpy(address.sun_path, path.c_str(), path.size());
  if (!control_.valid() ||
      ::bind(control_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 ||
      ::listen(control_.get(), 16) != 0)
    return make_error(errno, "cannot listen on {}: {}", path, errno_text(errno));
  return Ok{};
}

json Helper::live_state() {
  const block::Counters counters = client_.device().counters();
  json live = {{"size_bytes", client_.device().size_bytes()},
               {"read_bytes", counters.read_bytes},
               {"write_bytes", counters.write_bytes},
               {"errors", counters.errors}};
  if (client_.netblk1) {
    live["protocol"] = "1";
    live["state"] = client::state_text(client_.netblk1->state());
    live["reconnects"] = client_.netblk1->reconnects();
    live["last_error"] = client_.netblk1->last_error();
    return live;
  }
  const client::Status2 status = client_.netblk2->status();
  live["protocol"] = "2";
  live["state"] = client::state_text(status.state);
  live["reconnects"] = status.reconnects;
  live["last_error"] = status.last_error;
  live["generation"] = client_.netblk2->generation().counter;
  live["lost"] = status.lost;
  live["lost_why"] = status.lost_reason;
  return live;
}

std::string Helper::answer_to(const std::string& word) {
  if (word != "reset") return live_state().dump(-1, ' ', false, json::error_handler_t::replace);
  if (!client_.netblk2 || !client_.netblk2->lost()) return "nothing";
  log_warning("{}: the owner has taken note of the loss", record_.device);
  client_.netblk2->reset_lost();
  return "ok";
}

// A word, or nothing at all before the end: the state.
void Helper::answer_control() {
  const io::UniqueFd peer(::accept4(control_.get(), nullptr, nullptr, SOCK_CLOEXEC));
  if (!peer.valid()) return;
  (void)::setsockopt(peer.get(), SOL_SOCKET, SO_RCVTIMEO, &kControlTimeout, sizeof kControlTimeout);
  (void)::setsockopt(peer.get(), SOL_SOCKET, SO_SNDTIMEO, &kControlTimeout, sizeof kControlTimeout);
  std::array<char, 16> word{};
  const ssize_t got = ::recv(peer.get(), word.data(), word.size(), MSG_WAITALL);
  if (got < 0) return;
  const std::string text = answer_to(std::string(word.data(), static_cast<size_t>(got))) + "\n";
  (void)!::send(peer.get(), text.data(), text.size(), MSG_NOSIGNAL);
}

// Signals end a disk that nobody uses. One in use stays: a shutdown that signals every process first must not cost
// the file system on it.
bool Helper::release_on_signal() {
  signalfd_siginfo info{};
  (void)!::read(signals_.get(), &info, sizeof info);
  const auto file = attach::loop_backing_file(record_.device);
  if (file != disk_->path()) return true;
  if (!uses_of(record_.device).empty() || is_in_use(record_.device)) {
    log_warning("signal {}: {} is in use, so it stays; unmount it, then `netblk detach {}`", info.ssi_signo,
                record_.device, record_.device);
    return false;
  }
  log_info("signal {}: detaching {}", info.ssi_signo, record_.device);
  (void)attach::loop_detach(record_.device);
  return false;  // the last close follows
}

void Helper::serve() {
  std::array<pollfd, 3> watched = {pollfd{signals_.get(), POLLIN, 0}, pollfd{closed_.get(), POLLIN, 0},
                                   pollfd{control_.get(), POLLIN, 0}};
  for (;;) {
    if (::poll(watched.data(), watched.size(), -1) < 0) continue;
    if ((watched[0].revents & POLLIN) != 0 && release_on_signal()) return;
    if ((watched[1].revents & POLLIN) != 0) {
      uint64_t closes = 0;
      (void)!::read(closed_.get(), &closes, sizeof closes);
      if (attach::loop_backing_file(record_.device) != disk_->path()) {
        log_info("{} is detached", record_.device);
        return;
      }
    }
    if ((watched[2].revents & POLLIN) != 0) answer_control();
  }
}

}  // namespace

int run_helper(const ServerUri& uri, const AttachOptions& options, io::UniqueFd parent) {
  ::setsid();
  (void)!::chdir("/");
  ::umask(077);
  close_inherited(parent.get());
  const auto tell = [&](const std::string& text) {
    const bool told = ::write(parent.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
    parent.reset();
    return told;
  };
  Helper helper(uri, options);
  Status started = helper.start();
  if (!started) {
    (void)tell(fmt::format("!{} {}\n", started.error().code, started.error().message));
    return 1;
  }
  if (!tell(helper.device() + "\n")) {
    // Nobody waits for the disk any more.
    (void)attach::loop_detach(helper.device());
    return 1;
  }
  log_info("{} is {}", helper.device(), uri.text());
  helper.serve();
  return 0;
}

}  // namespace netblk::tools
