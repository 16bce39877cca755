// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_names.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <string_view>

#include "netblk_state.h"

namespace netblk::tools {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxName = 64;

__extension__ typedef unsigned __int128 Wide;

// FNV-1a of 128 bits: the machine id shall not be readable in what a server sees, and no more is asked of it.
Id hash(std::string_view text) {
  constexpr Wide kPrime = (static_cast<Wide>(1) << 88) + 0x13b;
  Wide value = (static_cast<Wide>(0x6c62272e07bb0142ULL) << 64) + 0x62b821756295c58dULL;
  for (const char c : text) value = (value ^ static_cast<unsigned char>(c)) * kPrime;
  Id id;
  for (size_t i = 0; i < id.bytes.size(); ++i) id.bytes[i] = static_cast<uint8_t>(value >> (8 * (15 - i)));
  return id;
}

constexpr const char* kRoot = "/run/netblk";
constexpr const char* kNames = "/run/netblk/names";
constexpr std::string_view kNameKey = "NETBLK_NAME=", kSourceKey = "NETBLK_SOURCE=";

std::string link_of(const std::string& name) { return std::string(kByName) + "/" + name; }
std::string disk_of(const std::string& node) { return node.substr(node.rfind('/') + 1); }
std::string file_of(const std::string& node) { return std::string(kNames) + "/" + disk_of(node); }

// One line, without what udev would read otherwise.
std::string on_a_line(const std::string& text) {
  std::string line;
  for (const char c : text) {
    if (c > ' ' && c < 0x7f && c != '"' && c != '\'' && c != '\\' && c != '$') {
      line += c;
    } else {
      line += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return line;
}

// udev looks at its rules again, for the partitions too; where it does not run, nobody does.
void tell_udev(const std::string& node) {
  const fs::path disk = "/sys/class/block/" + disk_of(node);
  std::ofstream(disk / "uevent") << "change";
  std::error_code error;
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(disk, error))
    if (fs::exists(entry.path() / "partition", none)) std::ofstream(entry.path() / "uevent") << "change";
}

void remove_links_to(const std::string& node) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(kByName, error)) {
    std::error_code unreadable;
    // Ours are whole, udev's are relative.
    const fs::path leads = (fs::path(kByName) / fs::read_symlink(entry.path(), unreadable)).lexically_normal();
    if (!unreadable && leads == node) (void)::unlink(entry.path().c_str());
  }
  (void)::rmdir(kByName);  // when it is empty
}

Status make_folder(const char* path) {
  if (::mkdir(path, 0755) == 0 || errno == EEXIST) return Ok{};
  return make_error(errno, "cannot make {}: {}", path, errno_text(errno));
}

}  // namespace

Id client_id_of(const std::string& disk) {
  const std::string machine = read_text("/etc/machine-id");
  if (machine.empty()) return random_id();
  const Id id = hash("netblk\n" + machine + "\n" + disk);
  return id.is_zero() ? random_id() : id;
}

bool legal_name(const std::string& name) {
  const auto legal = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
  };
  return !name.empty() && name.size() <= kMaxName && name.front() != '.' && name.front() != '-' &&
         std::all_of(name.begin(), name.end(), legal);
}

std::vector<Named> named_disks() {
  std::vector<Named> all;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(kNames, error)) {
    const std::string disk = entry.path().filename().string();
    if (disk.starts_with('.')) continue;  // being written
    Named named{.name = {}, .node = "/dev/" + disk, .source = {}};
    std::ifstream lines(entry.path());
    for (std::string line; std::getline(lines, line);) {
      if (line.starts_with(kNameKey)) named.name = line.substr(kNameKey.size());
      if (line.starts_with(kSourceKey)) named.source = line.substr(kSourceKey.size());
    }
    if (legal_name(named.name)) all.push_back(std::move(named));
  }
  return all;
}

std::optional<Named> find_name(const std::string& name) {
  for (Named& named : named_disks())
    if (named.name == name) return std::move(named);
  return std::nullopt;
}

std::string name_of_node(const std::string& node) {
  for (const Named& named : named_disks())
    if (named.node == node) return named.name;
  return "";
}

bool is_source_of(const Named& named, const std::string& source) { return named.source == on_a_line(source); }

Status give_name(const Named& named) {
  for (const Named& other : named_disks())
    if ((other.name == named.name) != (other.node == named.node)) forget_names_of(other.node);
  Status done = make_folder(kRoot);
  if (done) done = make_folder(kNames);
  if (done) done = make_folder(kByName);
  if (!done) return done;
  const std::string file = file_of(named.node);
  // No name of a disk begins with a dot.
  const std::string next_file = fmt::format("{}/.{}", kNames, disk_of(named.node));
  {
    std::ofstream text(next_file, std::ios::trunc);
    text << kNameKey << named.name << '\n' << kSourceKey << on_a_line(named.source) << '\n';
    text.close();
    if (!text) return make_error(EIO, "cannot write {}", next_file);
  }
  if (::rename(next_file.c_str(), file.c_str()) != 0)
    return make_error(errno, "cannot write {}: {}", file, errno_text(errno));
  const std::string next = link_of("." + named.name);
  (void)::unlink(next.c_str());
  if (::symlink(named.node.c_str(), next.c_str()) != 0 || ::rename(next.c_str(), link_of(named.name).c_str()) != 0)
    return make_error(errno, "cannot make {}: {}", link_of(named.name), errno_text(errno));
  tell_udev(named.node);
  return Ok{};
}

void forget_names_of(const std::string& node) {
  const bool had = ::unlink(file_of(node).c_str()) == 0;
  remove_links_to(node);
  (void)::rmdir(kNames);  // when they are empty
  (void)::rmdir(kRoot);
  if (had) tell_udev(node);
}

std::string node_of_words(const std::string& words) {
  std::string name = words;
  if (const std::string folder = std::string(kByName) + "/"; name.starts_with(folder)) name = name.substr(folder.size());
  if (legal_name(name))
    if (const auto named = find_name(name)) return named->node;
  return canonical_device(words);
}

}  // namespace netblk::tools
