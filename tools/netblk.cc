// SPDX-License-Identifier: GPL-2.0-only
// netblk: attaches, detaches and shows disks of netblk servers (DESIGN 5).
#include <CLI/CLI.hpp>
#include <cmath>
#include <optional>
#include <string>

#include "command_line.h"
#include "netblk_bench.h"
#include "netblk_copy.h"
#include "netblk_disks.h"
#include "netblk_helper_process.h"
#include "netblk_info.h"
#include "netblk_replay.h"
#include "netblk_scope.h"
#include "netblk_state.h"
#include "netblk_table.h"
#include "netblk_table_commands.h"
#include "netblk_top.h"
#include "netblk_version.h"
#include "netblk_volume.h"
#include "protocol/netblk_wire.h"

namespace netblk::tools {
namespace {

constexpr uint64_t kAskTimeoutMs = 5000;
constexpr double kCopyTimeoutSeconds = 120;
constexpr double kMinIntervalSeconds = 0.1;
constexpr double kMaxIntervalSeconds = 3600;
constexpr double kMaxBenchSeconds = 86400;
constexpr unsigned kMaxConnections = NETBLK2_MAX_CONNECTIONS;
constexpr const char* kWaitText = "Seconds to wait for another attach or detach that is under way (default 60)";
constexpr const char* kNbdUris = "nbd://HOST[:10809][/EXPORT], nbd+unix:///EXPORT?socket=PATH";

struct Arguments {
  AttachArguments attach;
  std::string uri;
  double timeout_s = 0;  // 0: not given
  std::optional<double> wait_s;
  std::optional<double> start_wait_s;
  DetachArguments detach;
  TopArguments top;
  bool json = false;
  std::string device;
  CopyArguments copy;
  BenchArguments bench;
  ReplayArguments replay;
  TableArguments table{.table = kTablePath};
  bool all = false;
  VolumeArguments volume;
};

// By the table, where that is what is meant.
int run_attach_words(const Arguments& arguments, bool has_own_options) {
  const AttachArguments& attach = arguments.attach;
  if (attach.explain || (!arguments.all && !names_table_entry(attach.source))) return run_attach(attach);
  if (arguments.all && !attach.source.empty()) return fail(kMalformed, "--all is every disk of the table: leave the SOURCE out");
  if (has_own_options) return fail(kMalformed, "a disk of the table is attached as the table says: the only option is --table");
  return arguments.all ? run_attach_all(arguments.table.table) : run_attach_entry(attach.source, arguments.table.table);
}

int run_detach_words(const Arguments& arguments) {
  const DetachArguments& detach = arguments.detach;
  if (arguments.all == !detach.device.empty())
    return fail(kMalformed, arguments.all ? "--all is every disk of the table: leave the DEVICE out"
                                          : "detach what? A DEVICE is missing (netblk detach --help)");
  return arguments.all ? run_detach_all(arguments.table.table, detach) : run_detach(detach);
}

int run(int argc, char** argv) {
  Arguments arguments;
  CLI::App app("netblk: disks of netblk servers", "netblk");
  app.set_version_flag("--version", std::string("netblk ") + NETBLK_VERSION);
  app.require_subcommand(1);
  app.footer("Exit status: 0; 1: it failed, one line says why; 2: the arguments are malformed.");

  CLI::App* const attach_command =
      app.add_subcommand("attach", "Attach a disk; prints its device node, once more when it is attached already");
  attach_command->add_option("SOURCE", arguments.attach.source,
                             "netblk://HOST[:10809][/EXPORT], nbd://HOST[:10809][/EXPORT], nbd+unix:///[EXPORT]?socket=PATH, or a "
                             "STORE of this machine (file:PATH); without a name the server's first. Or a NAME of netblktab(5)");
  attach_command->add_option("--size", arguments.attach.size,
                             "Size of the disk: bytes, or K, M, G, T (netblk/1 does not tell it; netblk/2 does)");
  attach_command
      ->add_option("--via", arguments.attach.via,
                   "netblk: the driver (netblk:// only); ublk, nbd: the kernel's; fuse: with a loop device; auto: the first of these "
                   "that is there and knows the source")
      ->check(CLI::IsMember({"auto", "netblk", "ublk", "nbd", "fuse"}))
      ->capture_default_str();
  attach_command->add_flag("--explain", arguments.attach.explain,
                           "Attach nothing: tell for each way whether this machine has it, for the SOURCE if one is given, and which "
                           "command would enable it");
  attach_command->add_flag("--json", arguments.attach.json, "With --explain, for programs: an object");
  attach_command->add_option("--device", arguments.attach.device, "The disk that it shall be: netblk-1 of the driver, nbd3 of the kernel's nbd, ublkb3 of its ublk");
  attach_command->add_option("--name", arguments.attach.name, "A name that stays the same: /dev/netblk-by-name/NAME");
  attach_command
      ->add_option("--timeout", arguments.attach.timeout_s,
                   "Seconds that one reply may take (default 5); after three times as long without any, requests "
                   "fail with EIO (netblk/2, NBD: after 120 s, unless this is given). 0: they wait for ever")
      ->check(CLI::Range(0.0, 0.0, "0") | CLI::Range(kMinTimeoutSeconds, kMaxTimeoutSeconds));
  attach_command
      ->add_option("--connections", arguments.attach.connections, "Connections to the server, 1 to 16 (default 1; netblk/1 has one)")
      ->check(CLI::Range(1u, kMaxConnections));
  attach_command->add_flag("--read-only", arguments.attach.read_only, "Refuse writes");
  attach_command->add_flag("--shared", arguments.attach.shared, "Write beside others that say --shared as well");
  attach_command->add_flag("--takeover", arguments.attach.takeover, "Take the disk from whoever writes it now");
  attach_command
      ->add_option("--reconnect", arguments.attach.reconnect,
                   "nbd://, when a connection was made anew with writes that were not flushed: lost (the default): flushes fail "
                   "until `netblk reset`; trust: the server has them")
      ->check(CLI::IsMember({"lost", "trust"}));

  attach_command->add_flag("--all", arguments.all, "Every disk of the table that is not noauto");
  attach_command->add_option("--table", arguments.table.table, "The table, netblktab(5)")->capture_default_str();
  attach_command->add_option("--lock-wait", arguments.wait_s, kWaitText)->check(CLI::Range(0.0, kMaxTimeoutSeconds));
  attach_command
      ->add_option("--start-wait", arguments.start_wait_s,
                   "Seconds that a helper may take to make the disk before it is killed (default 180; more with a long --timeout)")
      ->check(CLI::Range(kMinTimeoutSeconds, kMaxTimeoutSeconds));

  CLI::App* const detach_command = app.add_subcommand("detach", "Detach a disk");
  detach_command->add_option("DEVICE", arguments.detach.device, "As `attach` printed it, or its name");
  detach_command->add_flag("--all", arguments.all, "Every disk of the table");
  detach_command->add_option("--table", arguments.table.table, "The table, netblktab(5)")->capture_default_str();
  CLI::Option* const forced =
      detach_command->add_flag("--force", arguments.detach.force, "Also while it is in use: its users get I/O errors");
  detach_command->add_flag("--lazy", arguments.detach.lazy, "What is in use goes when its last user closes it; the name is free at once")
      ->excludes(forced);
  detach_command->add_option("--wait", arguments.detach.wait_s, "Seconds that a disk in use may take to become free (default 0)")
      ->check(CLI::Range(0.0, kMaxTimeoutSeconds));
  detach_command->add_option("--lock-wait", arguments.wait_s, kWaitText)->check(CLI::Range(0.0, kMaxTimeoutSeconds));

  CLI::App* const reset_command = app.add_subcommand("reset", "Take note that a disk lost writes: flushes work again");
  reset_command->add_option("DEVICE", arguments.device, "As `attach` printed it, or its name")->required();

  CLI::App* const status_command = app.add_subcommand("status", "Show what is attached");
  status_command->add_option("DEVICE", arguments.device, "Only this one");
  status_command->add_flag("--json", arguments.json, "For programs: a list of objects");

  CLI::App* const table_command = app.add_subcommand("table", "Show and check the table of disks, netblktab(5)");
  table_command->add_option("--table", arguments.table.table, "The table")->capture_default_str();
  table_command->add_flag("--initramfs", arguments.table.initramfs, "What the initramfs attaches, as its scripts read it");
  table_command->add_flag("--json", arguments.table.json, "For programs: a list of objects");

  CLI::App* const top_command = app.add_subcommand("top", "Show what the attached disks do, again and again");
  top_command->add_option("DEVICE", arguments.top.devices, "Only these, by their nodes or names");
  top_command->add_option("--interval", arguments.top.interval_s, "Seconds between two looks")
      ->check(CLI::Range(kMinIntervalSeconds, kMaxIntervalSeconds))
      ->capture_default_str();
  top_command->add_flag("--once", arguments.top.once, "One interval, and no more");
  top_command->add_flag("--json", arguments.top.json, "For programs: a list of objects for each interval");

  CLI::App* const info_command = app.add_subcommand("info", "Tell about an export: size, limits, features, generation");
  info_command
      ->add_option("URI", arguments.uri, std::string("netblk://HOST[:10809][/EXPORT], ") + kNbdUris + "; without a name the first export")
      ->required();
  info_command->add_flag("--json", arguments.json, "For programs: an object");

  CLI::App* const list_command = app.add_subcommand("list", "List the exports of a server");
  list_command
      ->add_option("URI", arguments.uri, "netblk://HOST[:10809], nbd://HOST[:10809] or nbd+unix:///?socket=PATH")
      ->required();
  list_command->add_flag("--json", arguments.json, "For programs: a list of objects");

  CLI::App* const bench_command = app.add_subcommand("bench", "Measure a disk: requests a second, MiB/s, latencies");
  bench_command
      ->add_option("TARGET", arguments.bench.target,
                   std::string("netblk://HOST[:10809][/EXPORT], ") + kNbdUris + ", a block device or a file")
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

  CLI::App* const replay_command = app.add_subcommand("replay", "Ask a disk for what a trace has (netblk_server --trace)");
  replay_command->add_option("TRACE", arguments.replay.trace, "A file with a trace, or - (stdin)")->required();
  replay_command->add_option("TARGET", arguments.replay.target, "netblk://HOST[:10809][/EXPORT], a block device or a file")
      ->required();
  CLI::Option* const speed = replay_command->add_option("--speed", arguments.replay.speed, "So many times faster than it was")
                                 ->check(CLI::Range(0.001, 1e6))
                                 ->capture_default_str();
  replay_command->add_flag("--as-fast-as-possible", arguments.replay.as_fast_as_possible, "Without regard to the trace's times")
      ->excludes(speed);
  replay_command->add_option("--disk", arguments.replay.disk, "Only the requests of this disk of the trace");
  replay_command->add_option("--connections", arguments.replay.connections, "Connections to the server")
      ->check(CLI::Range(1u, kMaxConnections))
      ->capture_default_str();
  replay_command->add_flag("--yes", arguments.replay.yes, "Write though the disk holds data, which is destroyed");
  replay_command->add_flag("--json", arguments.replay.json, "For programs: an object");

  CLI::App* const copy_command = app.add_subcommand("copy", "Copy a disk; the status is 0 only when the copy is safe");
  copy_command
      ->add_option("SRC", arguments.copy.source,
                   std::string("A file, a block device, netblk://HOST[:10809][/EXPORT], ") + kNbdUris + ", or - (stdin)")
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
      ->check(CLI::Range(kMinTimeoutSeconds, kMaxTimeoutSeconds));

  copy_command
      ->add_option("--reconnect", arguments.copy.reconnect,
                   "NBD, when a connection was made anew with writes that were not flushed: lost: the copy fails, for they may "
                   "be gone; trust: they are there")
      ->check(CLI::IsMember({"lost", "trust"}))
      ->capture_default_str();

  CLI::App* const volume_command = add_volume_commands(app, arguments.volume);

  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& shown) {
    return app.exit(shown);
  } catch (const CLI::ParseError& error) {
    return fail(kMalformed, std::string(error.what()) + " (netblk --help)");
  }
  if (arguments.wait_s) set_lock_patience(static_cast<uint64_t>(std::llround(*arguments.wait_s * 1000)));
  if (arguments.start_wait_s) set_start_patience(static_cast<uint64_t>(std::llround(*arguments.start_wait_s * 1000)));
  if (attach_command->parsed()) {
    if (!arguments.attach.explain) leave_login_session(argv);
    bool has_own_options = false;
    for (const CLI::Option* const option : attach_command->parse_order())
      if (option->get_name().starts_with("--") && option->get_name() != "--table" && option->get_name() != "--all" &&
          option->get_name() != "--lock-wait" && option->get_name() != "--start-wait")
        has_own_options = true;
    return run_attach_words(arguments, has_own_options);
  }
  if (detach_command->parsed()) return run_detach_words(arguments);
  if (table_command->parsed()) return run_table(arguments.table);
  if (top_command->parsed()) return run_top(arguments.top);
  if (reset_command->parsed()) return run_reset(arguments.device);
  if (bench_command->parsed()) return run_bench(arguments.bench);
  if (volume_command->parsed()) return run_volume(*volume_command, arguments.volume);
  if (replay_command->parsed()) return run_replay(arguments.replay);
  if (copy_command->parsed()) {
    const double timeout_s = arguments.timeout_s != 0 ? arguments.timeout_s : kCopyTimeoutSeconds;
    arguments.copy.timeout_ms = static_cast<uint64_t>(std::llround(timeout_s * 1000));
    return run_copy(arguments.copy);
  }
  if (info_command->parsed()) return run_info(arguments.uri, arguments.json, kAskTimeoutMs);
  if (list_command->parsed()) return run_list(arguments.uri, arguments.json, kAskTimeoutMs);
  return run_status(arguments.device, arguments.json);
}

}  // namespace
}  // namespace netblk::tools

int main(int argc, char** argv) { return netblk::tools::run(argc, argv); }
