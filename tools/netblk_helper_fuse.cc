// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_fuse.h"

#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <nlohmann/json.hpp>

#include "attach/fuse/fuse_disk.h"
#include "attach/fuse/loop_device.h"
#include "backend.h"
#include "base/limits.h"
#include "base/log.h"
#include "netblk_helper_disk.h"
#include "netblk_helper_life.h"
#include "netblk_state.h"

namespace netblk::tools {
namespace {

using nlohmann::json;

// Stores of this machine are read and written by the helper.
constexpr unsigned kFileThreads = 4;
// Between two looks at the size, which may change by itself.
constexpr uint64_t kLookPeriodMs = 1000;

class Helper {
 public:
  Helper(const Source& source, const AttachOptions& options) : source_(source), options_(options) {}

  Status start();
  void serve();
  const std::string& device() const { return record_.device; }

 private:
  Status check_size(uint32_t block_bytes) const;
  void look_at_size();
  Status show_size();
  bool release_on_signal();
  std::string answer_to(const std::string& word);

  const Source source_;
  const AttachOptions options_;
  HelperLife life_;  // the event: the disk's file lost its last opener
  Record& record_ = life_.record;
  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  std::unique_ptr<HelperDisk> disk_;
  std::unique_ptr<attach::FuseDisk> file_;  // ends before the disk
};

Status Helper::start() {
  Status done = life_.begin("fuse", source_, options_);
  if (!done) return done;
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
  auto mounted = attach::FuseDisk::mount(disk_->device(), disk_->loop(), record_.mount_directory(),
                                         [fd = life_.event.get()] { raise_event(fd); });
  if (!mounted) return std::move(mounted).error();
  file_ = std::move(mounted).value();
  auto device = attach::loop_attach(file_->path(), {.read_only = options_.read_only, .block_bytes = block_bytes});
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

Status Helper::show_size() {
  if (disk_->device().size_bytes() < std::max(disk_->traits().block_bytes, limits::kSectorBytes))
    return make_error(EINVAL, "that is less than a block");
  Status shown = file_->show_size();
  if (shown) shown = attach::loop_resize(record_.device);
  return shown;
}

void Helper::look_at_size() {
  disk_->refresh();
  life_.follow_size(disk_->device().size_bytes(), [this](uint64_t) { return show_size(); });
}

std::string Helper::answer_to(const std::string& word) {
  if (word == "reset") return disk_->reset_lost(record_.device);
  json live = disk_->live_state();
  live["size_bytes"] = record_.size_bytes;
  if (live.value("last_error", "").empty()) live["last_error"] = life_.size_note();
  return live.dump(-1, ' ', false, json::error_handler_t::replace);
}

// Whether the helper is to end at once.
bool Helper::release_on_signal() {
  if (attach::loop_backing_file(record_.device) != file_->path()) return true;
  if (life_.may_end_on_signal()) (void)attach::loop_detach(record_.device);  // the last close follows
  return false;
}

void Helper::serve() {
  auto watched = life_.watched();
  uint64_t look_at_ms = clock_.now_ms() + kLookPeriodMs;
  for (;;) {
    // By the clock, not when nothing else happens: who asks for the state all the time has to be told of changes, too.
    const uint64_t now_ms = clock_.now_ms();
    if (now_ms >= look_at_ms) {
      look_at_size();
      look_at_ms = clock_.now_ms() + kLookPeriodMs;
      continue;
    }
    if (::poll(watched.data(), watched.size(), static_cast<int>(look_at_ms - now_ms)) <= 0) continue;
    if ((watched[0].revents & POLLIN) != 0 && release_on_signal()) return;
    if ((watched[1].revents & POLLIN) != 0) {
      uint64_t closes = 0;
      (void)!::read(life_.event.get(), &closes, sizeof closes);
      if (attach::loop_backing_file(record_.device) != file_->path()) {
        log_info("{} is detached", record_.device);
        return;
      }
    }
    if ((watched[2].revents & POLLIN) != 0)
      life_.control->answer([this](const std::string& word) { return answer_to(word); });
  }
}

}  // namespace

int run_fuse_helper(const Source& source, const AttachOptions& options, HelperParent& parent) {
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
