// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_attach.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>

#include "attach/fuse/loop_device.h"
#include "command_line.h"
#include "netblk_attach_nbd.h"
#include "netblk_attach_ublk.h"
#include "netblk_helper.h"
#include "netblk_names.h"
#include "netblk_state.h"

namespace netblk::tools {
namespace {

// A killed process keeps its lock until it has been taken apart.
constexpr uint64_t kDyingMs = 1000;


// The disk of a helper that has died answers EIO for ever: it goes, so that another takes its place. One that somebody
// still has mounted stays until he unmounts it.
void sweep_dead(const std::string& server) {
  for (const Record& record : read_records()) {
    if (record.way != "fuse" || record.server != server || record.device.empty() || is_alive(record)) continue;
    const auto file = attach::loop_backing_file(record.device);
    const bool ours = file && (*file == record.disk_file() || *file == "/disk");
    const std::vector<std::string> uses = ours ? uses_of(record.device) : std::vector<std::string>{};
    if (!uses.empty() || (ours && is_in_use(record.device))) {
      note(fmt::format("{} was {}, and its helper has died: it is {}, and answers EIO until that is over", record.device,
                       server, uses.empty() ? "in use" : uses.front()));
      continue;
    }
    if (ours) (void)attach::loop_detach(record.device);
    (void)remove_leftovers(record);
    forget_names_of(record.device);
  }
}

}  // namespace

// Two disks over one export know nothing of each other's caches: what is attached already is the one that is meant.
Result<std::optional<Record>> attached_already(const std::string& server, const std::string& way,
                                               const AttachOptions& options) {
  for (Record& record : read_records()) {
    const bool there = !record.device.empty() && (record.way == "nbd"    ? nbd_is_there(record)
                                                 : record.way == "ublk" ? ublk_is_there(record)
                                                                        : is_alive(record));
    if (record.server != server || !there) continue;
    if (record.way != way)
      return make_error(EBUSY, "{} is attached already, via {}, as {}: detach that first", record.server, record.way,
                        record.device);
    if (record.read_only != options.read_only)
      return make_error(EBUSY, "{} is attached already, {}, as {}: detach that first", record.server,
                        record.read_only ? "read-only" : "for writing", record.device);
    if (options.size_bytes != 0 && options.size_bytes != record.size_bytes)
      return make_error(EINVAL, "{} is attached already, as {}, and has {} bytes, not {}", record.server, record.device,
                        record.size_bytes, options.size_bytes);
    return std::optional(std::move(record));
  }
  return std::optional<Record>();
}

void sweep_unfinished() {
  for (const Record& record : read_records())
    if (record.device.empty() && !is_alive(record)) {
      if (record.way == "ublk") {
        ublk_sweep(record);
      } else {
        (void)remove_leftovers(record);
      }
    }
}

Result<std::string> fuse_attach(const Source& source, const AttachOptions& options) {
  if (::geteuid() != 0) return make_error(EPERM, "attaching a disk needs root");
  auto attaching = lock_attachments();
  if (!attaching) return std::move(attaching).error();
  auto there = attached_already(source.text, "fuse", options);
  if (!there) return std::move(there).error();
  if (there.value()) return there.value()->device;
  sweep_unfinished();
  sweep_dead(source.text);
  return start_helper([&](HelperParent& parent) { return run_helper(source, options, parent); });
}

Result<bool> fuse_detach(const std::string& device, bool force) {
  const std::string wanted = canonical_device(device);
  const std::vector<Record> records = read_records();
  const auto found = std::find_if(records.begin(), records.end(),
                                  [&](const Record& record) { return record.device == wanted; });
  if (found == records.end()) return false;
  const Record& record = *found;
  if (::geteuid() != 0) return make_error(EPERM, "detaching a disk needs root");

  const bool alive = is_alive(record);
  // Somebody may have detached the loop device by hand, and somebody else have taken it since.
  const auto file = attach::loop_backing_file(wanted);
  const bool ours = file && (*file == record.disk_file() || *file == "/disk");
  Status written = Ok{};
  if (ours) {
    const std::vector<std::string> uses = uses_of(wanted);
    if (!force && !uses.empty())
      return make_error(EBUSY, "{} is {}: unmount it first, or use --force", wanted, uses.front());
    if (!force && is_in_use(wanted))
      return make_error(EBUSY, "{} is in use by another process or device: close it first, or use --force", wanted);
    if (alive && !force) written = write_back(wanted);
    // A helper that was just killed: its loss is known to who killed it, and to every user of the disk by EIO.
    if (!written && wait_until_gone(record, kDyingMs)) written = Ok{};
    Status detached = attach::loop_detach(wanted);
    if (!detached) return std::move(detached).error();
  }
  // Without its last opener the helper ends by itself; in use and forced, it must be ended.
  if (force && alive) (void)::kill(static_cast<pid_t>(record.pid), SIGKILL);
  if (!wait_until_gone(record, kHelperEndMs))
    return make_error(EBUSY, "{} is still open somewhere: its helper (process {}) ends at the last close", wanted,
                      record.pid);
  if (std::filesystem::exists(record.directory)) {
    Status removed = remove_leftovers(record);
    if (!removed) return std::move(removed).error();
  }
  forget_names_of(wanted);
  if (!written) return std::move(written).error();
  return true;
}

Status fuse_reset(const std::string& device) {
  const std::string wanted = canonical_device(device);
  for (const Record& record : read_records()) {
    if (record.device != wanted) continue;
    const std::string answer = ask_helper(record, "reset");
    if (answer == "ok") return Ok{};
    if (answer == "nothing") return make_error(EINVAL, "{} has lost nothing", wanted);
    return make_error(EIO, "the helper of {} (process {}) does not answer", wanted, record.pid);
  }
  return make_error(ENODEV, "{} is not attached", wanted);
}

}  // namespace netblk::tools
