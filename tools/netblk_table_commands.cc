// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_table_commands.h"

#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/id.h"
#include "command_line.h"
#include "netblk_names.h"
#include "netblk_table.h"
#include "netblk_ways.h"

extern char** environ;

namespace netblk::tools {
namespace {

constexpr auto kRetryPause = std::chrono::seconds(1);
constexpr const char* kDriverModule = "net_block_driver";

// The table, and its problems on stderr. Nothing: it cannot be read, which has been said.
std::optional<Table> table_of(const std::string& file) {
  auto table = read_table(file);
  if (!table) {
    fail(kFailed, table.error().message);
    return std::nullopt;
  }
  for (const std::string& problem : table.value().problems) note(problem);
  return std::move(table).value();
}

// Which of the kernel's modules a way needs, with what the module needs to load quietly: our driver tries to connect
// when it is loaded, and port 1 of this machine refuses at once.
std::vector<std::string> modules_of(Way way) {
  switch (way) {
    case Way::kNetblk: return {kDriverModule, "server_ip=127.0.0.1", "server_port=1"};
    case Way::kUblk: return {"ublk_drv"};
    case Way::kNbd: return {"nbd"};
    case Way::kFuse: return {"-a", "fuse", "loop"};
  }
  return {};
}

bool modprobe(std::vector<std::string> words) {
  words.insert(words.begin(), {"modprobe", "-q"});
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words) argv.push_back(word.data());
  argv.push_back(nullptr);
  pid_t child = 0;
  int status = 0;
  if (::posix_spawnp(&child, "modprobe", nullptr, nullptr, argv.data(), environ) != 0) return false;
  while (::waitpid(child, &status, 0) < 0)
    if (errno != EINTR) return false;
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// An entry asks for its way, so the way's module is loaded; for `auto`, modules of the ways in turn until one is there.
void load_modules(const TableEntry& entry) {
  for (const WayFacts& facts : look_at_ways(entry.source)) {
    const bool asked = entry.attach.via == way_text(facts.way);
    if (!facts.knows_source || (entry.attach.via != "auto" && !asked)) continue;
    if (facts.usable || (modprobe(modules_of(facts.way)) && !asked)) return;
  }
}

// The server may not be there yet, or not be reached yet.
bool may_pass(int code) {
  return code == ECONNREFUSED || code == ETIMEDOUT || code == EHOSTUNREACH || code == ENETUNREACH || code == ECONNRESET ||
         code == EAGAIN;
}

Result<std::string> attach_entry(const TableEntry& entry) {
  using std::chrono::steady_clock;
  if (entry.in_initramfs) {
    const auto named = find_name(entry.name());
    if (named) return named->node;
  }
  load_modules(entry);
  std::optional<steady_clock::time_point> until;
  for (;;) {
    auto node = attach_disk(entry.attach);
    if (node || !may_pass(node.error().code) || entry.wait_s == 0 || (until && steady_clock::now() >= *until)) return node;
    if (!until) {
      note(fmt::format("{}: {}; trying for {:g} s", entry.name(), node.error().message, entry.wait_s));
      until = steady_clock::now() + std::chrono::duration_cast<steady_clock::duration>(std::chrono::duration<double>(entry.wait_s));
    }
    std::this_thread::sleep_for(kRetryPause);
  }
}

}  // namespace

bool names_table_entry(const std::string& source) { return legal_name(source); }

int run_attach_entry(const std::string& name, const std::string& file) {
  const auto table = table_of(file);
  if (!table) return kFailed;
  const TableEntry* const entry = table->find(name);
  if (entry == nullptr)
    return fail(kFailed, fmt::format("{} has no disk '{}', and it is no URI (netblk table shows what there is)", file, name));
  const auto node = attach_entry(*entry);
  if (!node) return fail(kFailed, fmt::format("{}:{}: {}: {}", file, entry->line, name, node.error().message));
  return print(node.value());
}

int run_attach_all(const std::string& file) {
  const auto table = table_of(file);
  if (!table) return kFailed;
  int status = table->problems.empty() ? 0 : kFailed;
  std::string nodes;
  for (const TableEntry& entry : table->entries) {
    if (!entry.automatic) continue;
    const auto node = attach_entry(entry);
    if (node) {
      nodes += (nodes.empty() ? "" : "\n") + node.value();
      continue;
    }
    note(fmt::format("{}:{}: {}: {}", file, entry.line, entry.name(), node.error().message));
    if (!entry.may_fail) status = kFailed;
  }
  if (nodes.empty()) return status;
  const int printed = print(nodes);
  return status != 0 ? status : printed;
}

int run_detach_all(const std::string& file, const DetachArguments& how) {
  const auto table = table_of(file);
  if (!table) return kFailed;
  int status = table->problems.empty() ? 0 : kFailed;
  // The last first: one may be the ground of another.
  for (auto entry = table->entries.rbegin(); entry != table->entries.rend(); ++entry) {
    if (entry->in_initramfs || !find_name(entry->name())) continue;
    DetachArguments one = how;
    one.device = entry->name();
    if (run_detach(one) != 0) status = kFailed;
  }
  return status;
}

int run_table(const TableArguments& arguments) {
  const auto table = table_of(arguments.table);
  if (!table) return kFailed;
  const int status = table->problems.empty() ? 0 : kFailed;
  std::string text;
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  unsigned number = 0;  // of the driver's disk, in the initramfs
  for (const TableEntry& entry : table->entries) {
    if (arguments.initramfs) {
      if (!entry.in_initramfs) continue;
      // parse_table() has tried it; the id is the one that this machine has in its own system
      const auto line = initramfs_line(entry);
      if (!line) return fail(kFailed, line.error().message);
      const std::string node = number == 0 ? "/dev/netblk" : fmt::format("/dev/netblk-{}", number);
      text += fmt::format("{}{},client-id={}", text.empty() ? "" : "\n", line.value(), id_text(client_id_of(node)));
      ++number;
      continue;
    }
    const auto named = find_name(entry.name());
    const std::string device = named ? named->node : "";
    const char* const when = entry.in_initramfs ? "initramfs" : !entry.automatic ? "noauto" : entry.may_fail ? "nofail" : "auto";
    if (arguments.json) {
      list.push_back({{"name", entry.name()}, {"source", entry.source.text}, {"via", entry.attach.via},
                      {"when", when}, {"network", entry.on_network}, {"wait_s", entry.wait_s}, {"line", entry.line},
                      {"device", device}});
    } else {
      text += fmt::format("{}{:<16} {:<9} {:<7} {:<14} {}", text.empty() ? "" : "\n", entry.name(), when, entry.attach.via,
                          device.empty() ? "-" : device, entry.source.text);
    }
  }
  if (arguments.initramfs && text.empty()) return status;
  if (!arguments.initramfs && !arguments.json)
    text = fmt::format("{:<16} {:<9} {:<7} {:<14} {}{}{}", "NAME", "WHEN", "VIA", "DEVICE", "SOURCE", text.empty() ? "" : "\n", text);
  const int printed = print(arguments.json ? list.dump(2) : text);
  return status != 0 ? status : printed;
}

}  // namespace netblk::tools
