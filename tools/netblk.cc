// SPDX-License-Identifier: GPL-2.0-only
// netblk: attaches, detaches and shows disks of netblk servers (DESIGN 5).
#include <CLI/CLI.hpp>
#include <cmath>
#include <optional>
#include <string>

#include "base/limits.h"
#include "base/parse.h"
#include "command_line.h"
#include "netblk_attach.h"
#include "netblk_bench.h"
#include "netblk_copy.h"
#include "netblk_driver.h"
#include "netblk_info.h"
#include "netblk_state.h"
#include "netblk_status.h"
#include "netblk_uri.h"
#include "netblk_version.h"
#include "protocol/netblk_wire.h"

namespace netblk::tools {
namespace {

constexpr double kMaxTimeoutSeconds = 3600;
constexpr uint64_t kAskTimeoutMs = 5000;
constexpr double kCopyTimeoutSeconds = 120;
constexpr double kMaxBenchSeconds = 86400;
constexpr unsigned kMaxConnections = NETBLK2_MAX_CONNECTIONS;

struct Arguments {
  std::string uri;
  std::string size;
  std::string via = "auto";
  double timeout_s = 0;  // 0: not given
  bool read_only = false;
  bool force = false;
  bool json = false;
  std::string device;
  CopyArguments copy;
  BenchArguments bench;
};

int attach(const Arguments& arguments) {
  const auto uri = parse_server_uri(arguments.uri);
  if (!uri) return fail(kMalformed, uri.error().message);
  if (!uri.value().export_name.empty())
    return fail(kMalformed, fmt::format("\"{}\": netblk/1 cannot name an export, it serves the server's first; leave "
                                        "\"/{}\" out", arguments.uri, uri.value().export_name));
  std::optional<uint64_t> size_bytes;
  if (!arguments.size.empty()) {
    size_bytes = parse_size(arguments.size);
    if (!size_bytes || *size_bytes == 0 || *size_bytes % limits::kSectorBytes != 0)
      return fail(kMalformed, fmt::format("--size {}: expected a positive multiple of 512, in bytes or with K, M, G or T",
                                          arguments.size));
  }
  std::optional<uint64_t> timeout_ms;
  if (arguments.timeout_s != 0) timeout_ms = static_cast<uint64_t>(std::llround(arguments.timeout_s * 1000));

  const bool loaded = driver_is_loaded();
  const bool by_driver = arguments.via == "netblk" || (arguments.via == "auto" && loaded);
  if (arguments.via == "netblk" && !loaded)
    return fail(kFailed, "--via netblk: the driver is not loaded (no /sys/block/netblk); insmod net_block_driver.ko, "
                         "or use --via fuse");
  if (arguments.via == "auto")
    note(loaded ? "via netblk: the driver is loaded" : "via fuse: the driver is not loaded (no /sys/block/netblk)");

  Result<std::string> node = std::string();
  if (by_driver) {
    node = driver_attach(uri.value(),
                         {.size_bytes = size_bytes, .timeout_ms = timeout_ms, .read_only = arguments.read_only});
  } else {
    if (!size_bytes)
      return fail(kMalformed, "attaching via fuse needs --size: netblk/1 does not tell the size of an export");
    AttachOptions options{.size_bytes = *size_bytes, .read_only = arguments.read_only};
    if (timeout_ms) options.timeout_ms = *timeout_ms;
    node = fuse_attach(uri.value(), options);
  }
  if (!node) return fail(kFailed, node.error().message);
  return print(node.value());
}

int detach_driver(const Arguments& arguments) {
  Status written = Ok{};
  const auto now = read_driver_state();
  if (!arguments.force && now && now.value().state != "disconnected") {
    const auto uses = uses_of(kDriverNode);
    if (!uses.empty())
      return fail(kFailed, fmt::format("{} is {}: unmount it first, or use --force", kDriverNode, uses.front()));
    if (is_in_use(kDriverNode))
      return fail(kFailed, fmt::format("{} is in use by another process or device: close it first, or use --force",
                                       kDriverNode));
    written = write_back(kDriverNode);
  }
  const auto done = driver_detach();
  if (!done) return fail(kFailed, done.error().message);
  if (!written) return fail(kFailed, written.error().message);
  if (!done.value()) note(fmt::format("{} is not attached", kDriverNode));
  return 0;
}

int detach(const Arguments& arguments) {
  if (canonical_device(arguments.device) == kDriverNode) return detach_driver(arguments);
  const auto done = fuse_detach(arguments.device, arguments.force);
  if (!done) return fail(kFailed, done.error().message);
  if (!done.value()) note(fmt::format("{} is not attached", arguments.device));
  return 0;
}

int status(const Arguments& arguments) {
  std::vector<StatusRow> rows = status_rows();
  if (!arguments.device.empty()) {
    const std::string wanted = canonical_device(arguments.device);
    std::erase_if(rows, [&](const StatusRow& row) { return row.device != wanted; });
    if (rows.empty()) return fail(kFailed, fmt::format("{} is not attached", arguments.device));
  }
  return print(arguments.json ? status_json(rows) : status_table(rows));
}

int run(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("netblk: disks of netblk servers", "netblk");
  app.set_version_flag("--version", std::string("netblk ") + NETBLK_VERSION);
  app.require_subcommand(1);
  app.footer("Exit status: 0; 1: it failed, one line says why; 2: the arguments are malformed.");

  CLI::App* const attach_command = app.add_subcommand("attach", "Attach a disk; prints its device node");
  attach_command->add_option("URI", arguments.uri, "netblk://HOST[:10809]; netblk/1 serves the server's first export")
      ->required();
  attach_command->add_option("--size", arguments.size,
                             "Size of the disk: bytes, or K, M, G, T (needed via fuse: netblk/1 does not tell it)");
  attach_command->add_option("--via", arguments.via, "auto: the driver if it is loaded, else fuse with a loop device")
      ->check(CLI::IsMember({"auto", "netblk", "fuse"}))
      ->capture_default_str();
  attach_command
      ->add_option("--timeout", arguments.timeout_s,
                   "Seconds that one reply may take (default 5); after three times as long without any, requests "
                   "fail with EIO")
      ->check(CLI::Range(0.001, kMaxTimeoutSeconds));
  attach_command->add_flag("--read-only", arguments.read_only, "Refuse writes");

  CLI::App* const detach_command = app.add_subcommand("detach", "Detach a disk");
  detach_command->add_option("DEVICE", arguments.device, "As `attach` printed it")->required();
  detach_command->add_flag("--force", arguments.force, "Also while it is in use: its users get I/O errors");

  CLI::App* const status_command = app.add_subcommand("status", "Show what is attached");
  status_command->add_option("DEVICE", arguments.device, "Only this one");
  status_command->add_flag("--json", arguments.json, "For programs: a list of objects");

  CLI::App* const info_command = app.add_subcommand("info", "Tell about an export: size, limits, features, generation");
  info_command->add_option("URI", arguments.uri, "netblk://HOST[:10809][/EXPORT]; without a name the first export")->required();
  info_command->add_flag("--json", arguments.json, "For programs: an object");

  CLI::App* const list_command = app.add_subcommand("list", "List the exports of a server");
  list_command->add_option("URI", arguments.uri, "netblk://HOST[:10809]")->required();
  list_command->add_flag("--json", arguments.json, "For programs: a list of objects");

  CLI::App* const bench_command = app.add_subcommand("bench", "Measure a disk: requests a second, MiB/s, latencies");
  bench_command->add_option("TARGET", arguments.bench.target, "netblk://HOST[:10809][/EXPORT], a block device or a file")
      ->required();
  bench_command->add_option("--rw", arguments.bench.rw, "read, write, randread, randwrite, or randrw (half and half)")
      ->check(CLI::IsMember({"read", "write", "randread", "randwrite", "randrw"}))
      ->capture_default_str();
  bench_command->add_option("--bs", arguments.bench.block_size, "Bytes of one request, or with K or M")->capture_default_str();
  bench_command->add_option("--depth", arguments.bench.depth, "Requests in flight on each connection")
      ->check(CLI::Range(1u, unsigned{NETBLK2_MAX_SLOTS}))
      ->capture_default_str();
  bench_command->add_option("--connections", arguments.bench.connections, "Connections to the server")
      ->check(CLI::Range(1u, kMaxConnections))
      ->capture_default_str();
  bench_command->add_option("--seconds", arguments.bench.seconds, "How long to measure")
      ->check(CLI::Range(0.1, kMaxBenchSeconds))
      ->capture_default_str();
  bench_command->add_flag("--yes", arguments.bench.yes, "Write though the disk holds data, which is destroyed");
  bench_command->add_flag("--json", arguments.bench.json, "For programs: an object");

  CLI::App* const copy_command = app.add_subcommand("copy", "Copy a disk; the status is 0 only when the copy is safe");
  copy_command->add_option("SRC", arguments.copy.source, "A file, a block device, netblk://HOST[:10809][/EXPORT], or - (stdin)")
      ->required();
  copy_command->add_option("DST", arguments.copy.target, "The same; - is stdout. A file that is not there is made")->required();
  copy_command->add_flag("--resume", arguments.copy.resume, "Go on where an unfinished copy of the same disk stopped");
  copy_command->add_flag("--force", arguments.copy.force,
                         "Also to a file that another process uses, to an export that another client writes, to a file "
                         "that must grow");
  copy_command->add_option("--connections", arguments.copy.connections, "Connections to each server")
      ->check(CLI::Range(1u, kMaxConnections))
      ->capture_default_str();
  copy_command
      ->add_option("--timeout", arguments.timeout_s, "Seconds without a server after which the copy fails (default 120)")
      ->check(CLI::Range(0.001, kMaxTimeoutSeconds));

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& shown) {
    return app.exit(shown);
  } catch (const CLI::ParseError& error) {
    return fail(kMalformed, std::string(error.what()) + " (netblk --help)");
  }
  if (attach_command->parsed()) return attach(arguments);
  if (detach_command->parsed()) return detach(arguments);
  if (bench_command->parsed()) return run_bench(arguments.bench);
  if (copy_command->parsed()) {
    const double timeout_s = arguments.timeout_s != 0 ? arguments.timeout_s : kCopyTimeoutSeconds;
    arguments.copy.timeout_ms = static_cast<uint64_t>(std::llround(timeout_s * 1000));
    return run_copy(arguments.copy);
  }
  if (info_command->parsed()) return run_info(arguments.uri, arguments.json, kAskTimeoutMs);
  if (list_command->parsed()) return run_list(arguments.uri, arguments.json, kAskTimeoutMs);
  return status(arguments);
}

}  // namespace
}  // namespace netblk::tools

int main(int argc, char** argv) { return netblk::tools::run(argc, argv); }
