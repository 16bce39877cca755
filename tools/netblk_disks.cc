// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_disks.h"

#include <fmt/format.h>

#include <cerrno>
#include <cmath>
#include <optional>
#include <vector>

#include "base/limits.h"
#include "base/parse.h"
#include "command_line.h"
#include "attach/nbd_netlink/nbd_netlink.h"
#include "attach/ublk/ublk_control.h"
#include "netblk_attach.h"
#include "netblk_attach_nbd.h"
#include "netblk_attach_ublk.h"
#include "netblk_driver.h"
#include "netblk_names.h"
#include "netblk_state.h"
#include "netblk_status.h"
#include "netblk_uri.h"

namespace netblk::tools {
namespace {

enum class Way { kNetblk, kFuse, kNbd, kUblk };

// "/dev/netblk-1" of "netblk-1", of a link, or of a name in /dev/netblk-by-name.
std::string node_of_words(const std::string& words) {
  if (words.find('/') == std::string::npos && legal_name(words)) {
    const std::string node = node_of_name(words);
    if (!node.empty()) return node;
  }
  return canonical_device(words);
}

int status_of(const Error& error) { return fail(error.code == EINVAL ? kMalformed : kFailed, error.message); }

// A name leads to one disk: the same one, or nobody has it.
Status name_is_free(const std::string& name, const std::string& node) {
  const std::string taken = node_of_name(name);
  if (taken.empty() || taken == node) return Ok{};
  return make_error(EBUSY, "the name {} is that of {}: detach that first", name, taken);
}

// Which way an attachment goes: --via, or what the source and the machine have.
Result<Way> way_of(const AttachArguments& arguments, const NbdSource& source) {
  const bool netblk_uri = source.is_netblk();
  const bool nbd_device = attach::nbd_number(canonical_device(arguments.device)).has_value();
  const bool ublk_device = attach::ublk_number(canonical_device(arguments.device)).has_value();
  if (arguments.via == "netblk" || arguments.via == "fuse") {
    if (!netblk_uri)
      return make_error(EINVAL, "{}: only netblk:// can be attached --via {}; this needs --via nbd or ublk", source.text, arguments.via);
    if (arguments.via == "netblk" && !driver_is_loaded())
      return make_error(ENODEV, "--via netblk: the driver is not loaded (no /sys/bus/netblk); insmod net_block_driver.ko, "
                                "or use --via fuse");
    return arguments.via == "netblk" ? Way::kNetblk : Way::kFuse;
  }
  if (arguments.via == "ublk" || (arguments.via == "auto" && !arguments.device.empty() && ublk_device)) return Way::kUblk;
  if (arguments.via == "nbd" || !netblk_uri || (!arguments.device.empty() && nbd_device)) return Way::kNbd;
  const bool loaded = driver_is_loaded();
  note(loaded ? "via netblk: the driver is loaded" : "via fuse: the driver is not loaded (no /sys/bus/netblk)");
  return loaded ? Way::kNetblk : Way::kFuse;
}

Status name_is_of(const std::string& name, const std::string& server) {
  const std::string taken = node_of_name(name);
  if (taken.empty()) return Ok{};
  for (const StatusRow& row : status_rows())
    if (row.device == taken && row.server != server)
      return make_error(EBUSY, "the name {} is that of {}, which is {}: detach that first", name, taken, row.server);
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

}  // namespace

int run_attach(const AttachArguments& arguments) {
  const auto parsed = parse_nbd_source(arguments.uri);
  if (!parsed) return fail(kMalformed, parsed.error().message);
  const NbdSource& source = parsed.value();
  std::optional<uint64_t> size_bytes;
  if (!arguments.size.empty()) {
    size_bytes = parse_size(arguments.size);
    if (!size_bytes || *size_bytes == 0 || *size_bytes % limits::kSectorBytes != 0)
      return fail(kMalformed, fmt::format("--size {}: expected a positive multiple of 512, in bytes or with K, M, G or T",
                                          arguments.size));
  }
  if (!arguments.name.empty() && !legal_name(arguments.name))
    return fail(kMalformed, fmt::format("--name {}: expected up to 64 letters, digits, dots, dashes and underscores",
                                        arguments.name));
  if (arguments.read_only && (arguments.shared || arguments.takeover))
    return fail(kMalformed, "--shared and --takeover are about writing, and --read-only forbids it");
  if (!source.is_netblk() && (arguments.shared || arguments.takeover))
    return fail(kMalformed, fmt::format("--shared and --takeover mean nothing to {}: only netblk/2 has owners", source.text));
  std::optional<uint64_t> timeout_ms;
  if (arguments.timeout_s != 0) timeout_ms = static_cast<uint64_t>(std::llround(arguments.timeout_s * 1000));
  const auto chosen = way_of(arguments, source);
  if (!chosen) return status_of(chosen.error());
  const Way way = chosen.value();
  const auto number = number_of(arguments.device, way);
  if (!number) return status_of(number.error());
  if (!arguments.name.empty()) {
    const Status named = name_is_of(arguments.name, source.text);
    if (!named) return status_of(named.error());
  }

  AttachOptions options{.size_bytes = size_bytes.value_or(0),
                        .timeout_given = timeout_ms.has_value(),
                        .connections = arguments.connections,
                        .read_only = arguments.read_only,
                        .shared = arguments.shared,
                        .takeover = arguments.takeover};
  if (timeout_ms) options.timeout_ms = *timeout_ms;
  Result<std::string> node = std::string();
  switch (way) {
    case Way::kNetblk:
      node = driver_attach(*source.uri, {.size_bytes = size_bytes,
                                        .timeout_ms = timeout_ms,
                                        .number = number.value(),
                                        .read_only = arguments.read_only,
                                        .shared = arguments.shared,
                                        .takeover = arguments.takeover});
      break;
    case Way::kFuse:
      node = fuse_attach(*source.uri, options);
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
    return status_of(make_error(node.error().code, "{} (a server of netblk/1 needs --size as well)", node.error().message));
  if (!node) return status_of(node.error());
  if (way == Way::kNbd && source.is_nbd() && !arguments.read_only)
    note(fmt::format("{} promises what NBD promises: writes that were not flushed may be lost unnoticed when its server "
                     "goes down; netblk:// tells of it",
                     node.value()));
  if (!arguments.name.empty()) {
    Status named = name_is_free(arguments.name, node.value());
    if (named) named = give_name(arguments.name, node.value());
    if (!named) return fail(kFailed, fmt::format("{} is attached, but {}", node.value(), named.error().message));
  }
  return print(node.value());
}

int run_detach(const std::string& device, bool force) {
  const std::string node = node_of_words(device);
  const auto number = driver_number(node);
  const auto nbd = attach::nbd_number(node);
  const auto ublk = attach::ublk_number(node);
  const auto done = number ? driver_detach(*number, force)
                    : nbd  ? nbd_detach(*nbd, force)
                    : ublk ? ublk_detach(*ublk, force)
                           : fuse_detach(node, force);
  if (!done) return fail(kFailed, done.error().message);
  if (!done.value()) note(fmt::format("{} is not attached", node));
  return 0;
}

int run_reset(const std::string& device) {
  const std::string node = node_of_words(device);
  const auto number = driver_number(node);
  const auto nbd = attach::nbd_number(node);
  const auto ublk = attach::ublk_number(node);
  const Status done = number ? driver_reset(*number) : nbd ? nbd_reset(*nbd) : ublk ? ublk_reset(*ublk) : fuse_reset(node);
  if (done) return 0;
  if (done.error().code != EINVAL) return fail(kFailed, done.error().message);
  note(done.error().message);
  return 0;
}

int run_status(const std::string& device, bool json) {
  nbd_mend();
  ublk_mend();
  std::vector<StatusRow> rows = status_rows();
  if (!device.empty()) {
    const std::string wanted = node_of_words(device);
    std::erase_if(rows, [&](const StatusRow& row) { return row.device != wanted; });
    if (rows.empty()) return fail(kFailed, fmt::format("{} is not attached", device));
  }
  return print(json ? status_json(rows) : status_table(rows));
}

}  // namespace netblk::tools
