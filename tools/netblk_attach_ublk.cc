// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_attach_ublk.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <thread>

#include "attach/ublk/ublk_control.h"
#include "netblk_attach.h"
#include "netblk_guard.h"
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

// What is in the page cache goes to the source, by another helper when this one dies: without one the wait has no end.
Status write_back_mended(UblkControl& control, const Record& record) {
  Status stopped = Ok{};
  const auto look = [&] {
    if (!stopped || is_alive(record)) return;
    const Status mended = mend(record);
    // Another command may have mended it. Otherwise what waits fails.
    if (mended || is_alive(record)) return;
    call_off_guard(record);
    (void)control.stop(number_of(record));
    stopped = make_error(EIO, "{} is detached, but its helper had died, and another cannot start: what waited for it is lost: {}",
                         record.device, mended.error().message);
  };
  // First: without a helper nothing that is written can arrive.
  look();
  if (!stopped) return stopped;
  return write_back(record.device, look);
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

// Stops the disk of a helper that has gone; with a time, removes it, too.
Status end_disk(const Record& record, std::optional<uint64_t> timeout_ms) {
  auto control = UblkControl::open();
  // Without the module there is no disk of it.
  if (!control) return is_in_kernel(record.ublk.number) ? Status(std::move(control).error()) : Status(Ok{});
  if (!kernel_has(control.value(), record)) return Ok{};
  Status done = control.value().stop(number_of(record));
  if (done && timeout_ms) done = remove_ublk_disk(control.value(), number_of(record), *timeout_ms);
  return done;
}

}  // namespace

bool ublk_is_there(const Record& record) {
  auto control = UblkControl::open();
  if (!control) return false;
  const auto info = kernel_has(control.value(), record);
  return info && info->state != UblkState::kDead && (info->recovers || is_alive(record));
}

Status ublk_stop(const Record& record) { return end_disk(record, std::nullopt); }

Status ublk_remove(const Record& record, uint64_t timeout_ms) { return end_disk(record, timeout_ms); }

Result<std::string> ublk_attach(const Source& source, const UblkOptions& options) {
  if (::geteuid() != 0) return make_error(EPERM, "attaching a disk needs root");
  Status found = attach::ublk_found();
  if (!found) return std::move(found).error();
  const HelperWay way{.name = "ublk",
                      .node = options.number ? attach::ublk_node(*options.number) : "",
                      .make_room = [&] { return clear_ended("ublk", source.text); },
                      .run = [&](HelperParent& parent) { return run_ublk_helper(source, options, nullptr, parent); }};
  return attach_by(way, source, options.disk);
}

Result<bool> ublk_detach(uint32_t number, bool force) {
  const std::string node = attach::ublk_node(number);
  const auto record = record_of("ublk", node);
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
  io::UniqueFd guard;
  if (info->state != UblkState::kDead) {
    Status unused = force ? Status(Ok{}) : check_unused(node);
    if (!unused) return std::move(unused).error();
    if (!force) {
      written = write_back_mended(control.value(), *record);
      unused = check_still_unused(node, written);
      if (!unused) return std::move(unused).error();
    }
    // Not before: a detach that ends here, or is ended, leaves a disk that is guarded.
    guard = call_off_guard(*record);
    Status stopped = stop(control.value(), *record, force);
    if (!stopped) {
      start_guard(*record);
      return std::move(stopped).error();
    }
  }
  const auto is_open = [&] {
    const auto held = control.value().is_held(number);
    return held && held.value();
  };
  if (!wait_for_end(*record, is_open)) {
    if (!force || !is_open())
      return make_error(EBUSY, "{} is still open somewhere: its helper (process {}) ends at the last close", node, record->pid);
    // It answers nothing any more.
    forget_names_of(node);
    return true;
  }
  Status cleared = clear(*record);
  if (!cleared) return std::move(cleared).error();
  wait_for_guard(guard);
  if (!written) return std::move(written).error();
  return true;
}

}  // namespace netblk::tools
