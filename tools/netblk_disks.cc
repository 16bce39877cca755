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
#include "netblk_attach.h"
#include "netblk_driver.h"
#include "netblk_names.h"
#include "netblk_state.h"
#include "netblk_status.h"
#include "netblk_uri.h"

namespace netblk::tools {
namespace {

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

}  // namespace

int run_attach(const AttachArguments& arguments) {
  const auto uri = parse_server_uri(arguments.uri);
  if (!uri) return fail(kMalformed, uri.error().message);
  if (uri.value().is_nbd()) return fail(kMalformed, fmt::format("\"{}\": attach takes netblk:// only", arguments.uri));
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
  std::optional<uint32_t> number;
  if (!arguments.device.empty()) {
    number = driver_number(canonical_device(arguments.device));
    if (!number)
      return fail(kMalformed, fmt::format("--device {}: the driver's disks are netblk, netblk-1, ... netblk-1023",
                                          arguments.device));
  }
  std::optional<uint64_t> timeout_ms;
  if (arguments.timeout_s != 0) timeout_ms = static_cast<uint64_t>(std::llround(arguments.timeout_s * 1000));

  const bool loaded = driver_is_loaded();
  const bool by_driver = arguments.via == "netblk" || (arguments.via == "auto" && loaded);
  if (arguments.via == "netblk" && !loaded)
    return fail(kFailed, "--via netblk: the driver is not loaded (no /sys/bus/netblk); insmod net_block_driver.ko, "
                         "or use --via fuse");
  if (!by_driver && number) return fail(kMalformed, "--device: only the driver's disks can be chosen (--via netblk)");
  if (arguments.via == "auto")
    note(loaded ? "via netblk: the driver is loaded" : "via fuse: the driver is not loaded (no /sys/bus/netblk)");
  if (!arguments.name.empty()) {
    const std::string taken = node_of_name(arguments.name);
    for (const StatusRow& row : status_rows())
      if (row.device == taken && row.server != uri.value().text())
        return status_of(make_error(EBUSY, "the name {} is that of {}, which is {}: detach that first", arguments.name,
                                    taken, row.server));
  }

  Result<std::string> node = std::string();
  if (by_driver) {
    node = driver_attach(uri.value(), {.size_bytes = size_bytes,
                                       .timeout_ms = timeout_ms,
                                       .number = number,
                                       .read_only = arguments.read_only,
                                       .shared = arguments.shared,
                                       .takeover = arguments.takeover});
  } else {
    AttachOptions options{.size_bytes = size_bytes.value_or(0),
                          .timeout_given = timeout_ms.has_value(),
                          .read_only = arguments.read_only,
                          .shared = arguments.shared,
                          .takeover = arguments.takeover};
    if (timeout_ms) options.timeout_ms = *timeout_ms;
    node = fuse_attach(uri.value(), options);
  }
  if (!node && !size_bytes && (node.error().code == ECONNREFUSED || node.error().code == ETIMEDOUT))
    return status_of(make_error(node.error().code, "{} (a server of netblk/1 needs --size as well)", node.error().message));
  if (!node) return status_of(node.error());
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
  const auto done = number ? driver_detach(*number, force) : fuse_detach(node, force);
  if (!done) return fail(kFailed, done.error().message);
  if (!done.value()) note(fmt::format("{} is not attached", node));
  return 0;
}

int run_reset(const std::string& device) {
  const std::string node = node_of_words(device);
  const auto number = driver_number(node);
  const Status done = number ? driver_reset(*number) : fuse_reset(node);
  if (done) return 0;
  if (done.error().code != EINVAL) return fail(kFailed, done.error().message);
  note(done.error().message);
  return 0;
}

int run_status(const std::string& device, bool json) {
  std::vector<StatusRow> rows = status_rows();
  if (!device.empty()) {
    const std::string wanted = node_of_words(device);
    std::erase_if(rows, [&](const StatusRow& row) { return row.device != wanted; });
    if (rows.empty()) return fail(kFailed, fmt::format("{} is not attached", device));
  }
  return print(json ? status_json(rows) : status_table(rows));
}

}  // namespace netblk::tools
