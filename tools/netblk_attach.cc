// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_attach.h"

#include <sys/mount.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <string_view>
#include <vector>

#include "attach/fuse/loop_device.h"
#include "attach/nbd_netlink/nbd_netlink.h"
#include "command_line.h"
#include "netblk_attach_nbd.h"
#include "netblk_attach_ublk.h"
#include "netblk_guard.h"
#include "netblk_helper_nbd.h"
#include "netblk_helper_ublk.h"
#include "netblk_names.h"
#include "protocol/nbd_wire.h"

namespace netblk::tools {
namespace {

// A device that is still open after this is so for good: who looked at it in passing has closed it.
constexpr uint64_t kOpenMs = 1000;

// EBUSY when one of the options was given, and the disk was attached otherwise. What was not given may be as it is; and
// who has the export already needs no --takeover.
Status as_given(const Record& record, const AttachOptions& wanted) {
  const AttachOptions& given = record.given;
  // An NBD server may have only one.
  const bool one_alone = record.way == "nbd" && given.connections == 1 && (record.nbd_flags & NBD_FLAG_CAN_MULTI_CONN) == 0;
  const char* other = nullptr;
  if (wanted.for_ever && !given.for_ever) other = "--timeout";
  if (wanted.timeout_given && (!given.timeout_given || wanted.timeout_ms != given.timeout_ms)) other = "--timeout";
  if (wanted.connections_given && wanted.connections != given.connections && !one_alone) other = "--connections";
  if (wanted.shared && !given.shared) other = "--shared";
  if (wanted.takeover && given.shared) other = "--takeover";
  if (wanted.reconnect_given && wanted.trust_reconnect != given.trust_reconnect) other = "--reconnect";
  if (other == nullptr) return Ok{};
  return make_error(EBUSY, "{} is attached already, as {}, with another {}: leave it out, or detach that first", record.server,
                    record.device, other);
}

// Two disks over one export know nothing of each other's caches: what is attached already is the one that is meant. An error
// when it is not as it is asked for.
Result<std::optional<Record>> attached_already(const HelperWay& way, const std::string& server, const AttachOptions& options) {
  for (Record& record : read_records()) {
    if (record.server != server || record.device.empty() || !is_there(record)) continue;
    if (record.way != way.name)
      return make_error(EBUSY, "{} is attached already, via {}, as {}: detach that first", record.server, record.way,
                        record.device);
    if (record.given.read_only != options.read_only)
      return make_error(EBUSY, "{} is attached already, {}, as {}: detach that first", record.server,
                        record.given.read_only ? "read-only" : "for writing", record.device);
    if (options.size_bytes != 0 && options.size_bytes != record.size_bytes)
      return make_error(EINVAL, "{} is attached already, as {}, and has {} bytes, not {}", record.server, record.device,
                        record.size_bytes, options.size_bytes);
    Status same = as_given(record, options);
    if (!same) return std::move(same).error();
    if (!way.node.empty() && way.node != record.device)
      return make_error(EBUSY, "{} is attached already, as {}: detach that first", record.server, record.device);
    return std::optional(std::move(record));
  }
  return std::optional<Record>();
}

std::vector<std::string> devices_named(std::string_view prefix) {
  std::vector<std::string> nodes;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/block", error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(prefix)) nodes.push_back("/dev/" + name);
  }
  return nodes;
}

// A helper that was killed while the kernel looked for partitions: by fuse one of its threads waits for the answer of
// another, and none of them can end before all that waits for the mount has failed. The mount stays: the loop device names it.
void cut_off(const Record& record) {
  if (record.way == "fuse") (void)::umount2(record.mount_directory().c_str(), MNT_FORCE | UMOUNT_NOFOLLOW);
}

// Linux 6.1 to 6.17 look for the partitions of a ublk disk before its start is over, and who is killed then is never let go.
bool may_be_killed(int64_t pid) {
  for (const Record& record : read_records())
    if (record.pid == pid && record.ublk.number >= 0) return false;
  return true;
}

// A helper whose disk nobody was told of. Ends what it waits for when it waits for its own disk, too.
void give_back_named(const Record& record) {
  if (record.way == "fuse" && attach::loop_backing_file(record.device) == record.disk_file()) (void)attach::loop_detach(record.device);
  const auto number = attach::nbd_number(record.device);
  if (record.way != "nbd" || !number || !nbd_is_there(record)) return;
  auto netlink = attach::NbdNetlink::open();
  if (netlink) (void)netlink.value().disconnect(*number);
  forget_partitions(record.device);
}

// A helper makes its device before it can write its name down, and may be killed between the two.
void give_back_unnamed(const Record& record, const std::vector<Record>& all) {
  if (record.way == "fuse") {
    for (const std::string& node : devices_named("loop"))
      if (attach::loop_backing_file(node) == record.disk_file()) (void)attach::loop_detach(node);
    return;
  }
  if (record.way != "nbd") return;
  for (const std::string& node : devices_named("nbd")) {
    Record made = record;
    made.device = node;
    const bool is_anothers = std::any_of(all.begin(), all.end(), [&](const Record& other) { return other.device == node; });
    if (is_anothers || !nbd_is_there(made) || is_in_use(node)) continue;
    auto netlink = attach::NbdNetlink::open();
    if (netlink) (void)netlink.value().disconnect(*attach::nbd_number(node));
    forget_partitions(node);
  }
}

// Takes away what helpers left that ended before their disk was there, or before anybody was told of it: that process.
void sweep_unfinished(int64_t untold_pid = 0) {
  const std::vector<Record> records = read_records();
  for (const Record& record : records) {
    const bool is_untold = untold_pid != 0 && record.pid == untold_pid;
    if (!record.device.empty() && !is_untold) continue;
    if (is_dying(record)) cut_off(record);
    if (is_alive(record)) continue;
    if (record.device.empty()) {
      give_back_unnamed(record, records);
    } else {
      give_back_named(record);
    }
    Status cleared = clear(record);
    if (!cleared) note(cleared.error().message);
  }
}

}  // namespace

Result<std::string> attach_by(const HelperWay& way, const Source& source, const AttachOptions& options) {
  auto attaching = lock_attachments();
  if (!attaching) return std::move(attaching).error();
  auto there = attached_already(way, source.text, options);
  if (!there) return std::move(there).error();
  if (const auto& record = there.value(); record) {
    if (is_alive(*record)) {
      start_guard(*record);
      return record->device;
    }
    Status mended = mend(*record);
    // Its guard may have been quicker.
    if (!mended && !is_alive(*record))
      return make_error(mended.error().code, "{} is attached already, as {}; its helper has died, and another cannot start: {}",
                        record->server, record->device, mended.error().message);
    note(fmt::format("{} is attached already; its helper had died, and another one looks after it now", record->device));
    return record->device;
  }
  sweep_unfinished();
  Status room = way.make_room();
  if (!room) return std::move(room).error();
  int64_t late_pid = 0;
  const auto let_go = [&](int64_t pid) {
    late_pid = pid;
    for (const Record& record : read_records()) {
      if (record.pid != pid) continue;
      cut_off(record);
      if (!record.device.empty()) give_back_named(record);
    }
  };
  auto node = start_helper(
      {.run = way.run, .source = source.text, .given = options, .may_be_killed = may_be_killed, .let_go = let_go});
  if (!node) {
    if (late_pid != 0) sweep_unfinished(late_pid);
    return node;
  }
  if (const auto made = record_of(way.name, node.value())) start_guard(*made);
  return node;
}

bool is_there(const Record& record) {
  if (record.way == "nbd") return nbd_is_there(record);
  if (record.way == "ublk") return ublk_is_there(record);
  return is_alive(record);
}

Status clear_ended(const std::string& way, const std::string& server) {
  for (const Record& record : read_records()) {
    if (record.way != way || record.server != server) continue;
    // Of nbd it does not notice by itself at once.
    if (way == "nbd" && is_alive(record)) (void)ask_helper(record, "look");
    if (!wait_until_gone(record, kHelperEndMs))
      return make_error(EBUSY, "the helper of {} (process {}) does not end: is {} still open?", record.server, record.pid,
                        record.device);
    Status cleared = clear(record);
    if (!cleared) return cleared;
  }
  return Ok{};
}

bool wait_for_end(const Record& record, const std::function<bool()>& is_open) {
  for (uint64_t waited_ms = 0; waited_ms < kHelperEndMs; waited_ms += kOpenMs) {
    if (wait_until_gone(record, kOpenMs)) return true;
    if (is_open()) return false;
  }
  return false;
}

Status clear(const Record& record, uint64_t timeout_ms) {
  if (record.way == "ublk") {
    Status removed = ublk_remove(record, timeout_ms);
    if (!removed) return removed;
  }
  if (!record.device.empty()) forget_names_of(record.device);
  if (!std::filesystem::exists(record.directory)) return Ok{};
  return remove_leftovers(record);
}

Status mend(const Record& record) {
  auto source = parse_source(record.server);
  if (!source) return std::move(source).error();
  if (!source.value().survives_helper())
    return make_error(EIO, "{} was its helper's alone, and gone with it: `netblk detach --force {}`", record.server,
                      record.device);
  const auto run = [&](HelperParent& parent) {
    return record.way == "nbd" ? run_nbd_helper(source.value(), {.number = {}, .disk = record.given}, &record, parent)
                               : run_ublk_helper(source.value(), {.number = {}, .disk = record.given}, &record, parent);
  };
  // The disk stays, whatever becomes of the helper.
  auto node = start_helper({.run = run, .source = record.server, .given = record.given});
  // One that cannot start now may be able to later.
  start_guard(record);
  if (!node) return std::move(node).error();
  return Ok{};
}

void mend_all() {
  if (::geteuid() != 0) return;
  // A disk of fuse goes with its helper. A guard may have gone, too.
  bool wanted = false;
  const auto orphaned = [](const Record& record) {
    return record.way != "fuse" && !record.device.empty() && !is_alive(record);
  };
  for (const Record& record : read_records()) {
    if (orphaned(record)) {
      wanted = true;
    } else if (!record.device.empty()) {
      start_guard(record);
    }
  }
  if (!wanted) return;
  auto attaching = lock_attachments();
  if (!attaching) return;
  for (const Record& record : read_records()) {
    if (!orphaned(record)) continue;
    if (is_there(record)) {
      Status mended = mend(record);
      if (!mended && is_alive(record)) continue;  // its guard was quicker
      note(mended ? fmt::format("{}: its helper had died; another one looks after it now", record.device)
                  : fmt::format("{}: its helper has died, and another cannot start: {}", record.device,
                                mended.error().message));
      continue;
    }
    Status cleared = clear(record);
    const char* how = record.way == "nbd" ? "had been disconnected by others" : "has gone with its helper";
    note(cleared ? fmt::format("{} {}: forgotten", record.device, how) : cleared.error().message);
  }
}

std::optional<Record> record_of(const std::string& way, const std::string& node) {
  for (Record& record : read_records())
    if (record.way == way && record.device == node) return std::move(record);
  return std::nullopt;
}

Status reset_by_helper(const std::string& node) {
  for (const Record& record : read_records()) {
    if (record.device != node || !is_there(record)) continue;
    const std::string answer = ask_helper(record, "reset");
    if (answer == "ok") return Ok{};
    if (answer == "nothing") return make_error(EINVAL, "{} has lost nothing", node);
    return make_error(EIO, "the helper of {} (process {}) does not answer", node, record.pid);
  }
  return make_error(ENODEV, "{} is not attached", node);
}

}  // namespace netblk::tools
