// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_ways.h"

#include <fmt/format.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "attach/ublk/ublk_control.h"
#include "netblk_driver.h"

namespace netblk::tools {
namespace {

namespace fs = std::filesystem;

std::string release() {
  utsname system{};
  return ::uname(&system) == 0 ? system.release : "";
}

bool is_there(const std::string& path) { return ::access(path.c_str(), F_OK) == 0; }

// "-" and "_" are the same in a module's name.
std::string plain(std::string name) {
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

enum class Module { kBuiltIn, kFile, kNone };

// Where this kernel has the module, by the lists that depmod and the kernel's build leave.
Module find_module(const std::string& name) {
  const std::string folder = "/lib/modules/" + release();
  const auto has = [&](const char* list) {
    std::ifstream lines(folder + list);
    for (std::string line; std::getline(lines, line);) {
      const std::string file = fs::path(line.substr(0, line.find(':'))).filename().string();
      if (plain(file.substr(0, file.find(".ko"))) == name && file.find(".ko") != std::string::npos) return true;
    }
    return false;
  };
  if (has("/modules.builtin")) return Module::kBuiltIn;
  return has("/modules.dep") ? Module::kFile : Module::kNone;
}

bool can_load_modules() {
  if (!is_there("/proc/modules")) return false;
  std::ifstream disabled("/proc/sys/kernel/modules_disabled");
  char first = '0';
  disabled >> first;
  return first == '0';
}

// Why a module is not there, and what would bring it.
WayFacts without_module(Way way, const std::string& module, const std::string& config) {
  WayFacts facts{.way = way, .why = {}, .enable = {}};
  const std::string kernel = release();
  if (find_module(module) == Module::kFile) {
    facts.why = fmt::format("the kernel's module {} is not loaded", module);
    if (can_load_modules()) {
      facts.enable = "sudo modprobe " + module;
    } else {
      facts.why += ", and this kernel lets no module be loaded";
    }
    return facts;
  }
  facts.why = fmt::format("this kernel ({}) has no {} (CONFIG_{})", kernel, module, config);
  if (!can_load_modules()) facts.why += ", and lets no module be loaded";
  if (module == "ublk_drv" && kernel.starts_with("6.1.") && kernel.ends_with("-amd64") && is_there("/usr/bin/apt-get"))
    // Debian 12's own is built without it; its security archive has one that is not.
    facts.enable = "sudo apt-get install linux-image-6.12-amd64, then reboot";
  else if (can_load_modules() && !is_there("/lib/modules/" + kernel))
    facts.enable = "sudo apt-get install linux-image-" + kernel;
  return facts;
}

WayFacts look_at_driver() {
  WayFacts facts{.way = Way::kNetblk, .usable = driver_is_loaded(), .why = "the driver is loaded", .enable = {}};
  if (facts.usable) return facts;
  facts.why = "the driver is not loaded (no /sys/bus/netblk)";
  const std::string kernel = release();
  if (!can_load_modules()) {
    facts.why += ", and this kernel lets no module be loaded";
  } else if (find_module("net_block_driver") == Module::kFile) {
    facts.enable = "sudo modprobe net_block_driver";
  } else if (is_there("/lib/modules/" + kernel + "/build")) {
    facts.enable = "./build.sh && sudo insmod build/output/net_block_driver.ko";
  } else {
    facts.why += fmt::format(", and the headers of this kernel ({}), to build it, are not there", kernel);
    facts.enable = "sudo apt-get install linux-headers-" + kernel;
  }
  return facts;
}

WayFacts look_at_ublk() {
  if (!is_there("/dev/ublk-control")) return without_module(Way::kUblk, "ublk_drv", "BLK_DEV_UBLK");
  if (::geteuid() != 0) return {.way = Way::kUblk, .usable = true, .why = "/dev/ublk-control is there", .enable = {}};
  const Status found = attach::ublk_found();
  return {.way = Way::kUblk, .usable = found.ok(), .why = found ? "the kernel's ublk is there" : found.error().message, .enable = {}};
}

WayFacts look_at_nbd() {
  if (is_there("/sys/module/nbd") || is_there("/sys/block/nbd0"))
    return {.way = Way::kNbd, .usable = true, .why = "the kernel's nbd is there", .enable = {}};
  return without_module(Way::kNbd, "nbd", "BLK_DEV_NBD");
}

WayFacts look_at_fuse() {
  if (!is_there("/dev/fuse")) {
    WayFacts facts = without_module(Way::kFuse, "fuse", "FUSE_FS");
    facts.why = "/dev/fuse is not there: " + facts.why;
    return facts;
  }
  if (!is_there("/dev/loop-control")) {
    WayFacts facts = without_module(Way::kFuse, "loop", "BLK_DEV_LOOP");
    facts.why = "/dev/loop-control is not there: " + facts.why;
    return facts;
  }
  return {.way = Way::kFuse, .usable = true, .why = "/dev/fuse and /dev/loop-control are there", .enable = {}};
}

// The way knows sources of that kind at all. What it says instead of "usable".
std::string misfit(Way way, const Source& source) {
  if (way == Way::kNetblk && !source.is_netblk())
    return "the driver speaks netblk only, so it takes netblk:// and nothing else";
  return "";
}

}  // namespace

const char* way_text(Way way) {
  switch (way) {
    case Way::kNetblk: return "netblk";
    case Way::kUblk: return "ublk";
    case Way::kNbd: return "nbd";
    case Way::kFuse: return "fuse";
  }
  return "";
}

std::vector<WayFacts> look_at_ways(const std::optional<Source>& source) {
  std::vector<WayFacts> ways = {look_at_driver(), look_at_ublk(), look_at_nbd(), look_at_fuse()};
  if (!source) return ways;
  for (WayFacts& facts : ways)
    if (const std::string why = misfit(facts.way, *source); !why.empty())
      facts = {.way = facts.way, .knows_source = false, .usable = false, .why = why, .enable = {}};
  return ways;
}

Explained explain_ways(const std::optional<Source>& source) {
  return {.kernel = release(), .root = ::geteuid() == 0, .ways = look_at_ways(source)};
}

std::string explained_text(const Explained& explained, const std::optional<Source>& source) {
  std::string text = fmt::format("kernel {}", explained.kernel);
  if (!explained.root) text += "\nnot root: attaching a disk needs it, so write sudo before netblk";
  const auto best = std::find_if(explained.ways.begin(), explained.ways.end(), [](const WayFacts& way) { return way.usable; });
  const std::string what = source ? source->text : "a disk";
  if (best == explained.ways.end()) {
    text += fmt::format("\nnothing here can attach {}", what);
  } else {
    text += fmt::format("\n--via auto attaches {} via {}", what, way_text(best->way));
  }
  for (const WayFacts& way : explained.ways) {
    text += fmt::format("\n{:<8}{:<4}{}", way_text(way.way), way.usable ? "yes" : "no", way.why);
    if (!way.enable.empty()) text += fmt::format("\n{:<12}to have it: {}", "", way.enable);
  }
  return text;
}

std::string explained_json(const Explained& explained, const std::optional<Source>& source) {
  using nlohmann::json;
  json ways = json::array();
  std::string best;
  for (const WayFacts& way : explained.ways) {
    if (way.usable && best.empty()) best = way_text(way.way);
    ways.push_back({{"way", way_text(way.way)}, {"usable", way.usable}, {"why", way.why}, {"enable", way.enable}});
  }
  const json object = {{"kernel", explained.kernel},
                       {"root", explained.root},
                       {"source", source ? source->text : ""},
                       {"auto", best},
                       {"ways", ways}};
  return object.dump(2);
}

}  // namespace netblk::tools
