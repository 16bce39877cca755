// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_life.h"

#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "base/log.h"

namespace netblk::tools {

HelperLife::~HelperLife() {
  if (lock_.valid() && !leave_record_) (void)remove_leftovers(record);
}

Status HelperLife::begin(const std::string& way, const Source& source, const AttachOptions& options) {
  auto folder = make_state_folder();
  if (!folder) return std::move(folder).error();
  record.directory = folder.value().directory;
  lock_ = std::move(folder.value().lock);
  record.way = way;
  record.server = source.text;
  record.size_bytes = options.size_bytes;
  record.given = options;
  return become(source);
}

Status HelperLife::take_over(const Source& source, const Record& orphan) {
  auto lock = take_over_folder(orphan);
  if (!lock) return std::move(lock).error();
  lock_ = std::move(lock).value();
  record = orphan;
  return become(source);
}

Status HelperLife::become(const Source& source) {
  record.pid = ::getpid();
  Status done = log_to(record.log_file());
  if (done) done = write_record(record);
  if (!done) return done;
  (void)::prctl(PR_SET_NAME, "netblk-helper");
  become_io_path();
  // A store in memory is as large as it likes, and gives pages back.
  if (source.survives_helper()) lock_memory();
  auto caught = catch_signals();
  if (!caught) return std::move(caught).error();
  signals = std::move(caught).value();
  event = io::UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!event.valid()) return make_error(errno, "cannot make a descriptor: {}", errno_text(errno));
  auto socket = ControlSocket::open(record.control_socket());
  if (!socket) return std::move(socket).error();
  control.emplace(std::move(socket).value());
  return Ok{};
}

void HelperLife::follow_size(uint64_t size_bytes, const std::function<Status(uint64_t size_bytes)>& show) {
  if (size_bytes == record.size_bytes) return;
  const Status shown = show(size_bytes);
  if (shown) {
    log_info("{} has {} bytes now, and had {}", record.device, size_bytes, record.size_bytes);
    record.size_bytes = size_bytes;
    size_note_.clear();
    (void)write_record(record);
    return;
  }
  std::string text = fmt::format("{} has {} bytes now, and {} shows {}: {}", record.server, size_bytes, record.device,
                                 record.size_bytes, shown.error().message);
  if (text != size_note_) log_warning("{}", text);
  size_note_ = std::move(text);
}

bool HelperLife::may_end_on_signal() const {
  signalfd_siginfo info{};
  (void)!::read(signals.get(), &info, sizeof info);
  if (!uses_of(record.device).empty() || is_in_use(record.device)) {
    log_warning("signal {}: {} is in use, so it stays; unmount it, then `netblk detach {}`", info.ssi_signo, record.device,
                record.device);
    return false;
  }
  log_info("signal {}: detaching {}", info.ssi_signo, record.device);
  return true;
}

std::array<pollfd, 4> HelperLife::watched(int another) const {
  return {pollfd{signals.get(), POLLIN, 0}, pollfd{event.get(), POLLIN, 0}, pollfd{control->fd(), POLLIN, 0},
          pollfd{another, POLLIN, 0}};
}

}  // namespace netblk::tools
