// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "attach/fuse/fuse_disk.h"
#include "attach/fuse/loop_device.h"
#include "backend.h"
#include "base/limits.h"
#include "base/log.h"
#include "netblk_helper_disk.h"
#include "netblk_state.h"

namespace netblk::tools {
namespace {

using nlohmann::json;

// Stores of this machine are read and written by the helper.
constexpr unsigned kFileThreads = 4;

class Helper {
 public:
  Helper(const Source& source, const AttachOptions& options) : source_(source), options_(options) {}
  Helper(const Helper&) = delete;
  Helper& operator=(const Helper&) = delete;
  ~Helper();

  Status start();
  void serve();
  const std::string& device() const { return record_.device; }

 private:
  Status check_size(uint32_t block_bytes) const;
  bool release_on_signal();
  std::string answer_to(const std::string& word);

  const Source source_;
  const AttachOptions options_;
  Record record_;
  io::UniqueFd lock_;
  io::UniqueFd signals_;
  io::UniqueFd closed_;  // eventfd: the disk's file lost its last opener
  std::optional<ControlSocket> control_;
  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  std::unique_ptr<HelperDisk> disk_;
  std::unique_ptr<attach::FuseDisk> file_;  // ends before the disk
};

Status Helper::start() {
  auto folder = make_state_folder();
  if (!folder) return std::move(folder).error();
  record_.directory = folder.value().directory;
  lock_ = std::move(folder.value().lock);
  record_.way = "fuse";
  record_.server = source_.text;
  record_.size_bytes = options_.size_bytes;
  record_.read_only = options_.read_only;
  record_.nbd.shared = options_.shared;
  record_.pid = ::getpid();
  Status done = log_to(record_.log_file());
  if (done) done = write_record(record_);
  if (!done) return done;
  become_io_path();
  // A store in memory is as large as it likes, and gives pages back.
  if (source_.survives_helper()) lock_memory();

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
  auto disk = open_helper_disk(*backend_, clock_, source_, options_, "fuse");
  if (!disk) return std::move(disk).error();
  disk_ = std::move(disk).value();
  record_.size_bytes = disk_->device().size_bytes();
  const uint32_t block_bytes = std::max(disk_->traits().block_bytes, limits::kSectorBytes);
  done = check_size(block_bytes);
  if (!done) return done;

  if (::mkdir(record_.mount_directory().c_str(), 0700) != 0)
    return make_error(errno, "cannot make {}: {}", record_.mount_directory(), errno_text(errno));
  auto mounted = attach::FuseDisk::mount(disk_->device(), disk_->loop(), record_.mount_directory(), [fd = closed_.get()] {
    const uint64_t one = 1;
    (void)!::write(fd, &one, sizeof one);
  });
  if (!mounted) return std::move(mounted).error();
  file_ = std::move(mounted).value();
  auto device = attach::loop_attach(
      file_->path(), {.read_only = options_.read_only, .can_trim = disk_->device().geometry().can_trim, .block_bytes = block_bytes});
  if (!device) return std::move(device).error();
  record_.device = device.value();
  done = write_record(record_);
  if (!done) (void)attach::loop_detach(record_.device);
  return done;
}

// A block device is whole blocks, of which none is larger than a page.
Status Helper::check_size(uint32_t block_bytes) const {
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  if (block_bytes > page)
    return make_error(EINVAL, "{} takes requests of {} bytes at least: a loop device needs {}", source_.text, block_bytes, page);
  if (record_.size_bytes < block_bytes)
    return make_error(EINVAL, "{} has {} bytes: a disk has at least one block of {}", source_.text, record_.size_bytes,
                      block_bytes);
  if (record_.size_bytes > limits::kMaxDeviceBytes)
    return make_error(EFBIG, "{} has {} bytes: more than a disk can have", source_.text, record_.size_bytes);
  return Ok{};
}

// The order matters: no opener is left, so the mount goes at once; then the connection says goodbye; the lock is held
// until nothing is left.
Helper::~Helper() {
  file_.reset();
  disk_.reset();
  if (!record_.directory.empty()) (void)remove_leftovers(record_);
}

std::string Helper::answer_to(const std::string& word) {
  if (word == "reset") return disk_->reset_lost(record_.device);
  return disk_->live_state().dump(-1, ' ', false, json::error_handler_t::replace);
}

// Signals end a disk that nobody uses. One in use stays: a shutdown that signals every process first must not cost
// the file system on it.
bool Helper::release_on_signal() {
  signalfd_siginfo info{};
  (void)!::read(signals_.get(), &info, sizeof info);
  const auto file = attach::loop_backing_file(record_.device);
  if (file != file_->path()) return true;
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
      if (attach::loop_backing_file(record_.device) != file_->path()) {
        log_info("{} is detached", record_.device);
        return;
      }
    }
    if ((watched[2].revents & POLLIN) != 0)
      control_->answer([this](const std::string& word) { return answer_to(word); });
  }
}

}  // namespace

int run_helper(const Source& source, const AttachOptions& options, HelperParent& parent) {
  Helper helper(source, options);
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
  log_info("{} is {}", helper.device(), source.text);
  helper.serve();
  return 0;
}

}  // namespace netblk::tools
