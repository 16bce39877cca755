// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_attach_ublk.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <thread>
#include <vector>

#include "attach/ublk/ublk_control.h"
#include "command_line.h"
#include "netblk_helper_ublk.h"
#include "netblk_names.h"

namespace netblk::tools {
namespace {

using attach::UblkControl;
using attach::UblkInfo;
using attach::UblkState;

// By force, what is in flight has this long to end well.
constexpr auto kForcePatience = std::chrono::seconds(5);

uint32_t number_of(const Record& record) { return static_cast<uint32_t>(record.ublk.number); }

std::optional<Record> record_of(const std::string& node) {
  for (Record& record : read_records())
    if (record.way == "ublk" && record.device == node) return std::move(record);
  return std::nullopt;
}

// What the kernel has of the record; nothing: it has no such disk, or another's.
std::optional<UblkInfo> kernel_has(UblkControl& control, const Record& record) {
  if (record.ublk.number < 0) return std::nullopt;
  const auto info = control.info(number_of(record));
  if (!info || info.value().mark != record.ublk.mark) return std::nullopt;
  return info.value();
}

// Whether the kernel has a disk of that number, whoever's it is: also where it cannot be asked.
bool is_in_kernel(int64_t number) {
  return number >= 0 && std::filesystem::exists(fmt::format("/sys/class/ublk-char/ublkc{}", number));
}

std::optional<UblkInfo> kernel_has(const Record& record) {
  auto control = UblkControl::open();
  return control ? kernel_has(control.value(), record) : std::nullopt;
}

// What the record has, as it was asked for when it was attached.
UblkOptions options_of(const Record& record) {
  UblkOptions options{.number = number_of(record), .disk = {}};
  options.disk.timeout_given = record.nbd.given_timeout_ms != 0;
  if (options.disk.timeout_given) options.disk.timeout_ms = record.nbd.given_timeout_ms;
  options.disk.size_bytes = record.nbd.given_size_bytes;
  options.disk.connections = record.nbd.connections;
  options.disk.read_only = record.read_only;
  options.disk.shared = record.nbd.shared;
  options.disk.trust_reconnect = record.ublk.trust_reconnect;
  return options;
}

// Another helper for a disk that lost its own.
Status mend(const Record& record) {
  auto source = parse_source(record.server);
  if (!source) return std::move(source).error();
  const UblkOptions options = options_of(record);
  auto node = start_helper(
      [&](HelperParent& parent) { return run_ublk_helper(source.value(), options, &record, parent); });
  if (!node) return std::move(node).error();
  return Ok{};
}

// Of a helper that has gone: its disk, then its record. Without the module there is no disk of it.
Status clear(const Record& record) {
  auto control = UblkControl::open();
  if (!control && is_in_kernel(record.ublk.number)) return std::move(control).error();
  if (control && kernel_has(control.value(), record)) {
    Status done = control.value().stop(number_of(record));
    if (done) done = remove_ublk_disk(control.value(), number_of(record), kHelperEndMs);
    if (!done) return done;
  }
  forget_names_of(record.device);
  if (!std::filesystem::exists(record.directory)) return Ok{};
  return remove_leftovers(record);
}

// What is in the page cache goes to the source, by another helper when this one dies: without one the wait has no end.
Status write_back_mended(UblkControl& control, const Record& record) {
  return write_back(record.device, [&, stopped = false]() mutable {
    if (stopped || is_alive(record)) return;
    const Status mended = mend(record);
    // Another command may have mended it. Otherwise what waits fails.
    if (mended || is_alive(record)) return;
    (void)control.stop(number_of(record));
    stopped = true;
  });
}

// Stops the disk. A helper that cannot end its requests in time is ended itself.
Status stop(UblkControl& control, const Record& record, bool force) {
  if (!force || !is_alive(record)) return control.stop(number_of(record));
  std::mutex mutex;
  std::condition_variable wake;
  bool stopped = false;
  std::thread impatient([&] {
    std::unique_lock lock(mutex);
    if (!wake.wait_for(lock, kForcePatience, [&] { return stopped; })) (void)::kill(static_cast<pid_t>(record.pid), SIGKILL);
  });
  Status done = control.stop(number_of(record));
  {
    const std::lock_guard lock(mutex);
    stopped = true;
  }
  wake.notify_all();
  impatient.join();
  return done;
}

}  // namespace

bool ublk_is_there(const Record& record) {
  const auto info = kernel_has(record);
  return info && info->state != UblkState::kDead;
}

void ublk_sweep(const Record& record) {
  const Status cleared = clear(record);
  if (!cleared) note(cleared.error().message);
}

Result<std::string> ublk_attach(const Source& source, const UblkOptions& options) {
  if (::geteuid() != 0) return make_error(EPERM, "attaching a disk needs root");
  Status found = attach::ublk_found();
  if (!found) return std::move(found).error();
  auto attaching = lock_attachments();
  if (!attaching) return std::move(attaching).error();
  auto there = attached_already(source.text, "ublk", options.disk);
  if (!there) return std::move(there).error();
  if (const auto& record = there.value(); record) {
    if (options.number && attach::ublk_node(*options.number) != record->device)
      return make_error(EBUSY, "{} is attached already, as {}: detach that first", record->server, record->device);
    if (is_alive(*record)) return record->device;
    Status mended = mend(*record);
    if (!mended)
      return make_error(mended.error().code, "{} is attached already, as {}; its helper has died, and another cannot start: {}",
                        record->server, record->device, mended.error().message);
    note(fmt::format("{} is attached already; its helper had died, and another one serves it now", record->device));
    return record->device;
  }
  sweep_unfinished();
  // A helper whose disk was stopped by others is about to end, and has the source until then.
  for (const Record& record : read_records()) {
    if (record.way != "ublk" || record.server != source.text) continue;
    if (!wait_until_gone(record, kHelperEndMs))
      return make_error(EBUSY, "the helper of {} (process {}) does not end: is {} still open?", record.server, record.pid,
                        record.device);
    if (!std::filesystem::exists(record.directory)) continue;
    Status cleared = clear(record);
    if (!cleared) return std::move(cleared).error();
  }
  return start_helper([&](HelperParent& parent) { return run_ublk_helper(source, options, nullptr, parent); });
}

Result<bool> ublk_detach(uint32_t number, bool force) {
  const std::string node = attach::ublk_node(number);
  const auto record = record_of(node);
  const bool there = is_in_kernel(number);
  if (!record && !there) return false;
  if (::geteuid() != 0) return make_error(EPERM, "detaching a disk needs root");
  auto control = UblkControl::open();
  if (!control && there) return std::move(control).error();
  const auto info = control && record ? kernel_has(control.value(), *record) : std::nullopt;
  if (there && !info) return make_error(EBUSY, "{} is attached, but not by netblk: `ublk del -n {}`", node, number);
  if (!info) {
    Status removed = remove_leftovers(*record);
    if (!removed) return std::move(removed).error();
    return true;
  }

  Status written = Ok{};
  if (info->state != UblkState::kDead) {
    const std::vector<std::string> uses = uses_of(node);
    if (!force && !uses.empty())
      return make_error(EBUSY, "{} is {}: unmount it first, or use --force", node, uses.front());
    if (!force && is_in_use(node))
      return make_error(EBUSY, "{} is in use by another process or device: close it first, or use --force", node);
    // Without a helper nothing that is written can arrive, nor fail.
    if (!force && is_alive(*record)) written = write_back_mended(control.value(), *record);
    Status stopped = stop(control.value(), *record, force);
    if (!stopped) return std::move(stopped).error();
  }
  if (!wait_until_gone(*record, kHelperEndMs))
    return make_error(EBUSY, "{} is still open somewhere: its helper (process {}) ends at the last close", node, record->pid);
  Status cleared = clear(*record);
  if (!cleared) return std::move(cleared).error();
  if (!written) return std::move(written).error();
  return true;
}

Status ublk_reset(uint32_t number) {
  const std::string node = attach::ublk_node(number);
  const auto record = record_of(node);
  if (!record || !ublk_is_there(*record)) return make_error(ENODEV, "{} is not attached", node);
  const std::string answer = ask_helper(*record, "reset");
  if (answer == "ok") return Ok{};
  if (answer == "nothing") return make_error(EINVAL, "{} has lost nothing", node);
  return make_error(EIO, "the helper of {} (process {}) does not answer", node, record->pid);
}

void ublk_mend() {
  if (::geteuid() != 0) return;
  const auto orphaned = [](const Record& record) {
    return record.way == "ublk" && !record.device.empty() && !is_alive(record);
  };
  const std::vector<Record> records = read_records();
  if (std::none_of(records.begin(), records.end(), orphaned)) return;
  auto attaching = lock_attachments();
  if (!attaching) return;
  for (const Record& record : read_records()) {
    if (!orphaned(record)) continue;
    const auto info = kernel_has(record);
    if (info && info->state != UblkState::kDead && info->recovers) {
      Status mended = mend(record);
      note(mended ? fmt::format("{}: its helper had died; another one serves it now", record.device)
                  : fmt::format("{}: its helper has died, and another cannot start: {}", record.device,
                                mended.error().message));
      continue;
    }
    ublk_sweep(record);
    if (!std::filesystem::exists(record.directory)) note(fmt::format("{} has gone with its helper: forgotten", record.device));
  }
}

}  // namespace netblk::tools
