// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_attach_fuse.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <vector>

#include "attach/fuse/loop_device.h"
#include "command_line.h"
#include "netblk_attach.h"
#include "netblk_helper_fuse.h"

namespace netblk::tools {
namespace {

// Somebody may have detached the loop device by hand, and somebody else have taken it since.
bool has_loop_device(const Record& record) {
  const auto file = attach::loop_backing_file(record.device);
  return file && (*file == record.disk_file() || *file == "/disk");
}

// The disk of a helper that has died answers EIO for ever: it goes, so that another takes its place. One that somebody
// still has mounted stays until he unmounts it.
Status sweep_dead(const std::string& server) {
  for (const Record& record : read_records()) {
    if (record.way != "fuse" || record.server != server || record.device.empty() || is_alive(record)) continue;
    const bool ours = has_loop_device(record);
    const std::vector<std::string> uses = ours ? uses_of(record.device) : std::vector<std::string>{};
    if (!uses.empty() || (ours && is_in_use(record.device))) {
      note(fmt::format("{} was {}, and its helper has died: it is {}, and answers EIO until that is over", record.device,
                       server, uses.empty() ? "in use" : uses.front()));
      continue;
    }
    if (ours) (void)attach::loop_detach(record.device);
    (void)clear(record);
  }
  return Ok{};
}

}  // namespace

Result<std::string> fuse_attach(const Source& source, const AttachOptions& options) {
  if (::geteuid() != 0) return make_error(EPERM, "attaching a disk needs root");
  const HelperWay way{.name = "fuse",
                      .node = {},
                      .make_room = [&] { return sweep_dead(source.text); },
                      .run = [&](HelperParent& parent) { return run_fuse_helper(source, options, parent); }};
  return attach_by(way, source, options);
}

Result<bool> fuse_detach(const std::string& device, bool force) {
  const std::string wanted = canonical_device(device);
  const auto found = record_of("fuse", wanted);
  if (!found) return false;
  const Record& record = *found;
  if (::geteuid() != 0) return make_error(EPERM, "detaching a disk needs root");

  const bool alive = is_alive(record);
  Status written = Ok{};
  if (has_loop_device(record)) {
    Status unused = force ? Status(Ok{}) : check_unused(wanted);
    if (!unused) return std::move(unused).error();
    if (alive && !force) {
      written = write_back(wanted);
      unused = check_still_unused(wanted, written);
      if (!unused) return std::move(unused).error();
    }
    if (!written && !is_alive(record))
      written = make_error(EIO, "{} is detached, but its helper died before all that was written to it had reached the server: "
                                "data may be lost", wanted);
    Status detached = attach::loop_detach(wanted);
    if (!detached) return std::move(detached).error();
  }
  // Without its last opener the helper ends by itself; in use and forced, it must be ended.
  if (force && alive) (void)::kill(static_cast<pid_t>(record.pid), SIGKILL);
  // The kernel has it go at the last close.
  const std::string waits = fmt::format("/sys/block/{}/loop/autoclear", wanted.substr(wanted.rfind('/') + 1));
  const auto is_open = [&] { return read_text(waits) == "1"; };
  if (!wait_for_end(record, is_open))
    return make_error(EBUSY, "{} is still open somewhere: its helper (process {}) ends at the last close", wanted,
                      record.pid);
  Status cleared = clear(record);
  if (!cleared) return std::move(cleared).error();
  if (!written) return std::move(written).error();
  return true;
}

}  // namespace netblk::tools
