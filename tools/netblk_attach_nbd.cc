// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_attach_nbd.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <vector>

#include "attach/nbd_netlink/nbd_netlink.h"
#include "command_line.h"
#include "netblk_helper_nbd.h"
#include "netblk_names.h"

namespace netblk::tools {
namespace {

std::string attribute(uint32_t number, const char* name) { return fmt::format("/sys/block/nbd{}/{}", number, name); }

std::optional<Record> record_of(const std::string& node) {
  for (Record& record : read_records())
    if (record.way == "nbd" && record.device == node) return std::move(record);
  return std::nullopt;
}

// What the record has, as it was asked for when it was attached.
NbdOptions options_of(const Record& record) {
  NbdOptions options{.number = attach::nbd_number(record.device), .disk = {}};
  options.disk.size_bytes = record.nbd.given_size_bytes;
  options.disk.timeout_given = record.nbd.given_timeout_ms != 0;
  if (options.disk.timeout_given) options.disk.timeout_ms = record.nbd.given_timeout_ms;
  options.disk.connections = record.nbd.connections;
  options.disk.read_only = record.read_only;
  options.disk.shared = record.nbd.shared;
  return options;
}

// Another helper for a disk that lost its own.
Status mend(const Record& record) {
  auto source = parse_source(record.server);
  if (!source) return std::move(source).error();
  if (!source.value().survives_helper())
    return make_error(EIO, "{} was its helper's alone, and gone with it: `netblk detach --force {}`", record.server,
                      record.device);
  const NbdOptions options = options_of(record);
  auto node = start_helper(
      [&](HelperParent& parent) { return run_nbd_helper(source.value(), options, &record, parent); });
  if (!node) return std::move(node).error();
  return Ok{};
}

// What is in the page cache goes to the server, by another helper if there is none: the wait would be the dead time.
Status write_back_mended(const Record& record, attach::NbdNetlink& netlink, uint32_t number) {
  return write_back(record.device, [&, tried = false]() mutable {
    if (tried || is_alive(record)) return;
    tried = true;
    // An NBD server is reached without.
    const auto source = parse_source(record.server);
    if (source && source.value().is_nbd()) return;
    const Status mended = mend(record);
    // Another command may have mended it. Otherwise what waits fails.
    if (!mended && !is_alive(record)) (void)netlink.disconnect(number);
  });
}

}  // namespace

bool nbd_is_there(const Record& record) {
  const auto number = attach::nbd_number(record.device);
  return number && read_text(attribute(*number, "backend")) == nbd_backend_of(record.server);
}

Result<std::string> nbd_attach(const Source& source, const NbdOptions& options) {
  if (::geteuid() != 0) return make_error(EPERM, "attaching a disk needs root");
  auto netlink = attach::NbdNetlink::open();
  if (!netlink) return std::move(netlink).error();
  auto attaching = lock_attachments();
  if (!attaching) return std::move(attaching).error();
  auto there = attached_already(source.text, "nbd", options.disk);
  if (!there) return std::move(there).error();
  if (const auto& record = there.value(); record) {
    if (options.number && attach::nbd_node(*options.number) != record->device)
      return make_error(EBUSY, "{} is attached already, as {}: detach that first", record->server, record->device);
    if (is_alive(*record)) return record->device;
    Status mended = mend(*record);
    if (!mended)
      return make_error(mended.error().code, "{} is attached already, as {}; its helper has died, and another cannot start: {}",
                        record->server, record->device, mended.error().message);
    note(fmt::format("{} is attached already; its helper had died, and another one looks after it now", record->device));
    return record->device;
  }
  sweep_unfinished();
  // A helper whose disk somebody else disconnected is about to end, and has the source until then.
  for (const Record& record : read_records()) {
    if (record.way != "nbd" || record.server != source.text || nbd_is_there(record)) continue;
    if (is_alive(record)) (void)ask_helper(record, "look");
    if (!wait_until_gone(record, kHelperEndMs))
      return make_error(EBUSY, "the helper of {} (process {}) does not end", record.server, record.pid);
    if (std::filesystem::exists(record.directory)) (void)remove_leftovers(record);
  }
  return start_helper([&](HelperParent& parent) { return run_nbd_helper(source, options, nullptr, parent); });
}

Result<bool> nbd_detach(uint32_t number, bool force) {
  const std::string node = attach::nbd_node(number);
  const auto record = record_of(node);
  const bool there = record && nbd_is_there(*record);
  const bool connected = !read_text(attribute(number, "pid")).empty();
  if (connected && ::geteuid() != 0) return make_error(EPERM, "detaching a disk needs root");
  if (!there && connected)
    return make_error(EBUSY, "{} is attached, but not by netblk: `nbd-client -d {}`", node, node);
  if (!record) return false;
  if (::geteuid() != 0) return make_error(EPERM, "detaching a disk needs root");

  Status written = Ok{};
  if (there) {
    auto netlink = attach::NbdNetlink::open();
    if (!netlink) return std::move(netlink).error();
    const std::vector<std::string> uses = uses_of(node);
    if (!force && !uses.empty())
      return make_error(EBUSY, "{} is {}: unmount it first, or use --force", node, uses.front());
    if (!force && is_in_use(node))
      return make_error(EBUSY, "{} is in use by another process or device: close it first, or use --force", node);
    if (!force) written = write_back_mended(*record, netlink.value(), number);
    Status done = netlink.value().disconnect(number);
    if (!done) return std::move(done).error();
    forget_partitions(node);
  }
  if (is_alive(*record)) (void)ask_helper(*record, "look");
  if (!wait_until_gone(*record, kHelperEndMs)) {
    if (!force) return make_error(EBUSY, "{} is detached, but its helper (process {}) does not end", node, record->pid);
    (void)::kill(static_cast<pid_t>(record->pid), SIGKILL);
  }
  if (std::filesystem::exists(record->directory)) {
    Status removed = remove_leftovers(*record);
    if (!removed) return std::move(removed).error();
  }
  forget_names_of(node);
  if (!written) return std::move(written).error();
  return true;
}

Status nbd_reset(uint32_t number) {
  const std::string node = attach::nbd_node(number);
  const auto record = record_of(node);
  if (!record || !nbd_is_there(*record)) return make_error(ENODEV, "{} is not attached", node);
  const std::string answer = ask_helper(*record, "reset");
  if (answer == "ok") return Ok{};
  if (answer == "nothing") return make_error(EINVAL, "{} has lost nothing", node);
  return make_error(EIO, "the helper of {} (process {}) does not answer", node, record->pid);
}

void nbd_mend() {
  if (::geteuid() != 0) return;
  const std::vector<Record> records = read_records();
  const bool wanted = std::any_of(records.begin(), records.end(), [](const Record& record) {
    return record.way == "nbd" && !record.device.empty() && !is_alive(record);
  });
  if (!wanted) return;
  auto attaching = lock_attachments();
  if (!attaching) return;
  for (const Record& record : read_records()) {
    if (record.way != "nbd" || record.device.empty() || is_alive(record)) continue;
    if (!nbd_is_there(record)) {
      if (remove_leftovers(record)) note(fmt::format("{} had been disconnected by others: forgotten", record.device));
      forget_names_of(record.device);
      continue;
    }
    Status mended = mend(record);
    note(mended ? fmt::format("{}: its helper had died; another one looks after it now", record.device)
                : fmt::format("{}: its helper has died, and another cannot start: {}", record.device,
                              mended.error().message));
  }
}

}  // namespace netblk::tools
