// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_disks.h"

#include <fmt/format.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cmath>
#include <optional>
#include <thread>
#include <vector>

#include "attach/nbd_netlink/nbd_netlink.h"
#include "attach/ublk/ublk_control.h"
#include "base/limits.h"
#include "base/parse.h"
#include "command_line.h"
#include "io/fd.h"
#include "netblk_attach.h"
#include "netblk_attach_fuse.h"
#include "netblk_attach_nbd.h"
#include "netblk_attach_ublk.h"
#include "netblk_driver.h"
#include "netblk_leave.h"
#include "netblk_names.h"
#include "netblk_state.h"
#include "netblk_status.h"
#include "netblk_ways.h"

namespace netblk::tools {
namespace {

using std::chrono::steady_clock;

constexpr auto kBusyPause = std::chrono::milliseconds(100);

int status_of(const Error& error) { return fail(error.code == EINVAL ? kMalformed : kFailed, error.message); }

// What is attached as the node; empty: nothing.
std::string source_of(const std::string& node) {
  for (const DriverState& disk : driver_disks())
    if (disk.node == node) return disk.server;
  for (const Record& record : read_records())
    if (record.device == node) return record.server;
  return "";
}

// Whether the disk is there, in whichever state.
bool is_attached(const std::string& node) {
  for (const DriverState& disk : driver_disks())
    if (disk.node == node) return disk.state != "disconnected";
  for (const Record& record : read_records())
    if (record.device == node) return true;
  return false;
}

// One name, one source; a disk of that name that has gone does not count.
Status name_is_free(const std::string& name, const std::string& source) {
  const auto named = find_name(name);
  if (!named || is_source_of(*named, source) || !is_attached(named->node)) return Ok{};
  return make_error(EBUSY, "the name {} is that of {}, which is {}: detach that first", name, named->node, named->source);
}

// The name for the node, which somebody else may have got in the meantime.
Status take_name(const std::string& name, const std::string& node, const std::string& source) {
  auto attaching = lock_attachments();
  if (!attaching) return std::move(attaching).error();
  Status is_free = name_is_free(name, source);
  if (!is_free) return is_free;
  if (const std::string other = name_of_node(node); !other.empty() && other != name)
    return make_error(EBUSY, "its name is {}: detach it first", other);
  return give_name({.name = name, .node = node, .source = source});
}

// The way of what is attached already, so that a second `attach` finds it.
std::optional<Way> way_of_attached(const std::string& source) {
  for (const Record& record : read_records())
    if (record.server == source && !record.device.empty())
      for (const Way way : {Way::kUblk, Way::kNbd, Way::kFuse})
        if (record.way == way_text(way)) return way;
  return std::nullopt;
}

// Which way an attachment goes: --via, or the best that the source and the machine have.
Result<Way> way_of(const AttachArguments& arguments, const Source& source) {
  const std::vector<WayFacts> ways = look_at_ways(source);
  if (arguments.via != "auto") {
    for (const WayFacts& facts : ways) {
      if (arguments.via != way_text(facts.way)) continue;
      // What a way lacks it says itself, at the moment that it needs it; but for the driver, which cannot.
      if (facts.way != Way::kNetblk || facts.usable) return facts.way;
      const int code = source.is_netblk() ? ENODEV : EINVAL;
      return make_error(code, "--via netblk: {}{}; `netblk attach --explain {}` tells what else there is", facts.why,
                        facts.enable.empty() ? "" : ": " + facts.enable, source.text);
    }
  }
  if (!arguments.device.empty()) {
    const std::string node = canonical_device(arguments.device);
    if (attach::nbd_number(node)) return Way::kNbd;
    if (attach::ublk_number(node)) return Way::kUblk;
    if (driver_number(node) && ways.front().usable) return Way::kNetblk;
  }
  if (const auto way = way_of_attached(source.text)) return *way;
  std::string passed;
  for (const WayFacts& facts : ways) {
    if (facts.usable) {
      note(fmt::format("via {}: {}", way_text(facts.way), passed.empty() ? facts.why : passed));
      return facts.way;
    }
    if (facts.knows_source) passed += (passed.empty() ? "" : "; ") + facts.why;
  }
  return make_error(ENODEV, "nothing here can attach {}: {} (`netblk attach --explain`)", source.text, passed);
}

// The process of a disk's helper, which ends a moment after its disk: whoever detaches finds both gone (a service whose
// process remains is a failure to systemd).
class HelperEnd {
 public:
  explicit HelperEnd(const std::string& node) {
    for (const Record& record : read_records())
      if (record.device == node && record.pid > 0 && is_alive(record))
        process_ = io::UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, record.pid, 0)));
  }
  void wait() const {
    pollfd ended{.fd = process_.get(), .events = POLLIN, .revents = 0};
    if (process_.valid()) (void)::poll(&ended, 1, kEndMs);
  }

 private:
  static constexpr int kEndMs = 5000;
  io::UniqueFd process_;
};

Result<bool> detach_by_way(const std::string& node, bool force) {
  if (const auto number = driver_number(node)) return driver_detach(*number, force);
  if (const auto number = attach::nbd_number(node)) return nbd_detach(*number, force);
  if (const auto number = attach::ublk_number(node)) return ublk_detach(*number, force);
  return fuse_detach(node, force);
}

Result<bool> detach_node(const std::string& node, bool force) {
  const HelperEnd helper(node);
  auto done = detach_by_way(node, force);
  if (done && !force) helper.wait();
  return done;
}

// What is attached again does not leave any more.
Status keep_what_is_attached(const std::string& source) {
  auto attaching = lock_attachments();
  if (!attaching) return std::move(attaching).error();
  for (const DriverState& disk : driver_disks())
    if (disk.attached() && disk.server == source) stay(disk.node);
  for (const Record& record : read_records())
    if (record.server == source && !record.device.empty()) stay(record.device);
  return Ok{};
}

// The number of --device, which is one of the way's own.
Result<std::optional<uint32_t>> number_of(const std::string& device, Way way) {
  if (device.empty()) return std::optional<uint32_t>();
  const std::string node = canonical_device(device);
  if (way == Way::kFuse) return make_error(EINVAL, "--device: a loop device cannot be chosen (--via netblk, nbd or ublk)");
  const auto number = way == Way::kNetblk ? driver_number(node)
                      : way == Way::kUblk ? attach::ublk_number(node)
                                          : attach::nbd_number(node);
  if (number) return number;
  if (way == Way::kUblk) return make_error(EINVAL, "--device {}: the disks of the kernel's ublk are ublkb0, ublkb1, ...", device);
  if (way == Way::kNbd) return make_error(EINVAL, "--device {}: the disks of the kernel's nbd are nbd0, nbd1, ...", device);
  return make_error(EINVAL, "--device {}: the driver's disks are netblk, netblk-1, ... netblk-1023", device);
}

int run_explain(const AttachArguments& arguments) {
  std::optional<Source> source;
  if (!arguments.source.empty()) {
    auto parsed = parse_source(arguments.source);
    if (!parsed) return fail(kMalformed, parsed.error().message);
    source = std::move(parsed).value();
  }
  const Explained explained = explain_ways(source);
  return print(arguments.json ? explained_json(explained, source) : explained_text(explained, source));
}

}  // namespace

Result<std::string> attach_disk(const AttachArguments& arguments) {
  auto parsed = parse_source(arguments.source);
  if (!parsed) return std::move(parsed).error();
  const Source& source = parsed.value();
  std::optional<uint64_t> size_bytes;
  if (!arguments.size.empty()) {
    size_bytes = parse_size(arguments.size);
    if (!size_bytes || *size_bytes == 0 || *size_bytes % limits::kSectorBytes != 0)
      return make_error(EINVAL, "--size {}: expected a positive multiple of 512, in bytes or with K, M, G or T",
                                          arguments.size);
  }
  if (!arguments.name.empty() && !legal_name(arguments.name))
    return make_error(EINVAL, "--name {}: expected up to 64 letters, digits, dots, dashes and underscores, beginning with "
                              "no dot and no dash", arguments.name);
  if (arguments.read_only && (arguments.shared || arguments.takeover))
    return make_error(EINVAL, "--shared and --takeover are about writing, and --read-only forbids it");
  if (!source.is_netblk() && (arguments.shared || arguments.takeover))
    return make_error(EINVAL, "--shared and --takeover mean nothing to {}: only netblk/2 has owners", source.text);
  std::optional<uint64_t> timeout_ms;
  const bool for_ever = arguments.timeout_s == 0.0;
  if (arguments.timeout_s && !for_ever) timeout_ms = static_cast<uint64_t>(std::llround(*arguments.timeout_s * 1000));
  if (!source.is_nbd() && !arguments.reconnect.empty())
    return make_error(EINVAL, "--reconnect is about NBD, which cannot tell of a loss; {} can", source.text);
  auto chosen = way_of(arguments, source);
  if (!chosen) return std::move(chosen).error();
  const Way way = chosen.value();
  if (way == Way::kNbd && arguments.reconnect == "lost")
    return make_error(EINVAL, "--reconnect lost: the kernel's nbd cannot tell of a loss; --via fuse can");
  auto number = number_of(arguments.device, way);
  if (!number) return std::move(number).error();
  if (!arguments.name.empty()) {
    Status named = name_is_free(arguments.name, source.text);
    if (!named) return std::move(named).error();
  }

  AttachOptions options{.size_bytes = size_bytes.value_or(0),
                        .timeout_given = timeout_ms.has_value(),
                        .for_ever = for_ever,
                        .connections = arguments.connections.value_or(1),
                        .connections_given = arguments.connections.has_value(),
                        .read_only = arguments.read_only,
                        .shared = arguments.shared,
                        .takeover = arguments.takeover,
                        .trust_reconnect = arguments.reconnect == "trust",
                        .reconnect_given = !arguments.reconnect.empty()};
  if (timeout_ms) options.timeout_ms = *timeout_ms;
  if (::geteuid() == 0) {
    const Status kept = keep_what_is_attached(source.text);
    if (!kept) return kept.error();
  }
  Result<std::string> node = std::string();
  switch (way) {
    case Way::kNetblk:
      node = driver_attach(*source.uri, {.size_bytes = size_bytes,
                                        .timeout_ms = timeout_ms,
                                        .for_ever = for_ever,
                                        .number = number.value(),
                                        .connections = arguments.connections,
                                        .read_only = arguments.read_only,
                                        .shared = arguments.shared,
                                        .takeover = arguments.takeover});
      break;
    case Way::kFuse:
      node = fuse_attach(source, options);
      break;
    case Way::kNbd:
      node = nbd_attach(source, {.number = number.value(), .disk = options});
      break;
    case Way::kUblk:
      node = ublk_attach(source, {.number = number.value(), .disk = options});
      break;
  }
  if (!node && source.is_netblk() && !size_bytes &&
      (node.error().code == ECONNREFUSED || node.error().code == ETIMEDOUT))
    return make_error(node.error().code, "{} (a server of netblk/1 needs --size as well)", node.error().message);
  // EINVAL is of the arguments, which have been looked at: this is what the disk, its server or the machine says.
  if (!node) return make_error(node.error().code == EINVAL ? EIO : node.error().code, "{}", node.error().message);
  stay(node.value());
  for (const FailedLeave& failed : failed_leaves())
    if (failed.source == source.text) forget_failed_leave(failed.node);
  if (way == Way::kNbd && source.is_nbd() && !arguments.read_only)
    note(fmt::format("{} promises what NBD promises: writes that were not flushed may be lost unnoticed when its server "
                     "goes down; netblk:// tells of it",
                     node.value()));
  if (!arguments.name.empty()) {
    Status named = take_name(arguments.name, node.value(), source.text);
    if (!named) return make_error(named.error().code, "{} is attached, but {}", node.value(), named.error().message);
  }
  return node;
}

int run_attach(const AttachArguments& arguments) {
  if (arguments.explain) return run_explain(arguments);
  if (arguments.json) return fail(kMalformed, "--json goes with --explain");
  if (arguments.source.empty()) return fail(kMalformed, "attach what? A SOURCE is missing (netblk attach --help)");
  const auto node = attach_disk(arguments);
  return node ? print(node.value()) : status_of(node.error());
}

int run_detach(const DetachArguments& arguments) {
  const std::string node = node_of_words(arguments.device);
  auto done = detach_node(node, arguments.force);
  const auto until = steady_clock::now() + std::chrono::duration_cast<steady_clock::duration>(std::chrono::duration<double>(arguments.wait_s));
  while (!done && done.error().code == EBUSY && steady_clock::now() < until) {
    std::this_thread::sleep_for(kBusyPause);
    done = detach_node(node, arguments.force);
  }
  if (done) {
    stay(node);
    forget_failed_leave(node);
  }
  const bool lazily = !done && done.error().code == EBUSY && arguments.lazy && is_attached(node);
  if (lazily) {
    const std::string source = source_of(node);
    const Status left = leave_lazily(node, source, [node, source] {
      // Others may have detached it, and the node be another's by now.
      return source_of(node) == source ? detach_node(node, false) : Result<bool>(false);
    });
    if (!left) return fail(kFailed, left.error().message);
    note(fmt::format("{} goes when nobody uses it any more", node));
  } else if (!done) {
    return fail(kFailed, done.error().message);
  }
  // A name may have outlived its disk; the node may be another's by now, with a name of its own.
  auto attaching = lock_attachments();
  if (!attaching)
    return fail(kFailed, fmt::format("{}; {} {}, but keeps its name", attaching.error().message, node,
                                     lazily ? "goes when nobody uses it any more" : "is detached"));
  if (lazily || !is_attached(node)) forget_names_of(node);
  if (!lazily && !done.value()) note(fmt::format("{} is not attached", node));
  return 0;
}

int run_reset(const std::string& device) {
  const std::string node = node_of_words(device);
  if (forget_failed_leave(node) && !is_attached(node)) return 0;
  const auto number = driver_number(node);
  const Status done = number ? driver_reset(*number) : reset_by_helper(node);
  if (done) return 0;
  if (done.error().code != EINVAL) return fail(kFailed, done.error().message);
  note(done.error().message);
  return 0;
}

int run_status(const std::string& device, bool json) {
  mend_all();
  std::vector<StatusRow> rows = status_rows();
  add_failed_leaves(rows);
  if (!device.empty()) {
    const std::string wanted = node_of_words(device);
    std::erase_if(rows, [&](const StatusRow& row) { return row.device != wanted; });
    if (rows.empty()) return fail(kFailed, fmt::format("{} is not attached", device));
  }
  add_rates(rows);
  return print(json ? status_json(rows) : status_table(rows, !device.empty()));
}

}  // namespace netblk::tools
