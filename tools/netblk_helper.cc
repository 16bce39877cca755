// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "attach/fuse/fuse_disk.h"
#include "attach/fuse/loop_device.h"
#include "backend.h"
#include "base/log.h"
#include "netblk_helper_client.h"
#include "netblk_state.h"

namespace netblk::tools {
namespace {

using nlohmann::json;

// The disk itself is on the network: files are not read here.
constexpr unsigned kFileThreads = 1;

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
  bool release_on_signal();
  std::string answer_to(const std::string& word);

  const ServerUri uri_;
  const AttachOptions options_;
  Record record_;
  io::UniqueFd lock_;
  io::UniqueFd signals_;
  io::UniqueFd closed_;  // eventfd: the disk's file lost its last opener
  std::optional<ControlSocket> control_;
  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  HelperClient client_;
  std::unique_ptr<attach::FuseDisk> disk_;
};

Status Helper::start() {
  auto folder = make_state_folder();
  if (!folder) return std::move(folder).error();
  record_.directory = folder.value().directory;
  lock_ = std::move(folder.value().lock);
  record_.way = "fuse";
  record_.server = uri_.text();
  record_.size_bytes = options_.size_bytes;
  record_.read_only = options_.read_only;
  record_.pid = ::getpid();
  Status done = log_to(record_.log_file());
  if (done) done = write_record(record_);
  if (!done) return done;
  become_io_path();
  lock_memory();

  auto signals = catch_signals();
  if (!signals) return std::move(signals).error();
  signals_ = std::move(signals).value();
  closed_ = io::UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!closed_.valid()) return make_error(errno, "cannot make a descriptor: {}", errno_text(errno));
  auto control = ControlSocket::open(record_.control_socket());
  if (!control) return std::move(control).error();
  control_.emplace(std::move(control).value());

  auto backend = make_backend(kFileThreads);
  if (!backend) return std::move(backend).error();
  backend_ = std::move(backend).value();
  done = client_.open(*backend_, clock_, uri_, options_, "fuse");
  if (!done) return done;
  record_.size_bytes = client_.device().size_bytes();

  if (::mkdir(record_.mount_directory().c_str(), 0700) != 0)
    return make_error(errno, "cannot make {}: {}", record_.mount_directory(), errno_text(errno));
  auto mounted = attach::FuseDisk::mount(client_.device(), client_.loop(), record_.mount_directory(), [fd = closed_.get()] {
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

// The order matters: no opener is left, so the mount goes at once; then the connection says goodbye; the lock is held
// until nothing is left.
Helper::~Helper() {
  disk_.reset();
  client_.close();
  if (!record_.directory.empty()) (void)remove_leftovers(record_);
}

std::string Helper::answer_to(const std::string& word) {
  if (word == "reset") return client_.reset_lost(record_.device);
  return client_.live_state().dump(-1, ' ', false, json::error_handler_t::replace);
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
                                   pollfd{control_->fd(), POLLIN, 0}};
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
    if ((watched[2].revents & POLLIN) != 0)
      control_->answer([this](const std::string& word) { return answer_to(word); });
  }
}

}  // namespace

int run_helper(const ServerUri& uri, const AttachOptions& options, HelperParent& parent) {
  Helper helper(uri, options);
  Status started = helper.start();
  if (!started) {
    parent.failed(started.error());
    return 1;
  }
  if (!parent.started(helper.device())) {
    // Nobody waits for the disk any more.
    (void)attach::loop_detach(helper.device());
    return 1;
  }
  log_info("{} is {}", helper.device(), uri.text());
  helper.serve();
  return 0;
}

}  // namespace netblk::tools
