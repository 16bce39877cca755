// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_attach_nbd.h"

#include <signal.h>
#include <unistd.h>

#include <cerrno>

#include "attach/nbd_netlink/nbd_netlink.h"
#include "netblk_attach.h"
#include "netblk_helper_nbd.h"

namespace netblk::tools {
namespace {

// The kernel has ended what was in flight: there is nothing that the helper could wait for and somebody would miss.
constexpr uint64_t kForcedEndMs = 1000;

std::string attribute(uint32_t number, const char* name) { return fmt::format("/sys/block/nbd{}/{}", number, name); }

// What is in the page cache goes to the server, by another helper if there is none: the wait would be the dead time.
Status write_back_mended(const Record& record, attach::NbdNetlink& netlink, uint32_t number) {
  bool tried = false;
  const auto look = [&] {
    if (tried || is_alive(record)) return;
    tried = true;
    // An NBD server is reached without.
    const auto source = parse_source(record.server);
    if (source && source.value().is_nbd()) return;
    const Status mended = mend(record);
    // Another command may have mended it. Otherwise what waits fails.
    if (!mended && !is_alive(record)) (void)netlink.disconnect(number);
  };
  // First: what goes to a helper that is about to end waits until the kernel looks after it.
  look();
  return write_back(record.device, look);
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
  const HelperWay way{.name = "nbd",
                      .node = options.number ? attach::nbd_node(*options.number) : "",
                      .make_room = [&] { return clear_ended("nbd", source.text); },
                      .run = [&](HelperParent& parent) { return run_nbd_helper(source, options, nullptr, parent); }};
  return attach_by(way, source, options.disk);
}

Result<bool> nbd_detach(uint32_t number, bool force) {
  const std::string node = attach::nbd_node(number);
  const auto record = record_of("nbd", node);
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
    Status unused = force ? Status(Ok{}) : check_unused(node);
    if (!unused) return std::move(unused).error();
    if (!force) {
      written = write_back_mended(*record, netlink.value(), number);
      unused = check_still_unused(node, written);
      if (!unused) return std::move(unused).error();
    }
    Status done = netlink.value().disconnect(number);
    if (!done) return std::move(done).error();
    forget_partitions(node);
  }
  if (is_alive(*record)) (void)ask_helper(*record, "look");
  if (!wait_until_gone(*record, force ? kForcedEndMs : kHelperEndMs)) {
    if (!force) return make_error(EBUSY, "{} is detached, but its helper (process {}) does not end", node, record->pid);
    (void)::kill(static_cast<pid_t>(record->pid), SIGKILL);
  }
  Status cleared = clear(*record);
  if (!cleared) return std::move(cleared).error();
  if (!written) return std::move(written).error();
  return true;
}

}  // namespace netblk::tools
