// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_names.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
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

std::string link_of(const std::string& name) { return std::string(kByName) + "/" + name; }

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
  return !name.empty() && name.size() <= kMaxName && name.front() != '.' && std::all_of(name.begin(), name.end(), legal);
}

std::string node_of_name(const std::string& name) {
  std::error_code error;
  const fs::path node = fs::canonical(link_of(name), error);
  return error ? "" : node.string();
}

std::string name_of_node(const std::string& node) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(kByName, error))
    if (node_of_name(entry.path().filename().string()) == node) return entry.path().filename().string();
  return "";
}

Status give_name(const std::string& name, const std::string& node) {
  if (::mkdir(kByName, 0755) != 0 && errno != EEXIST)
    return make_error(errno, "cannot make {}: {}", kByName, errno_text(errno));
  const std::string next = link_of("." + name);
  (void)::unlink(next.c_str());
  if (::symlink(node.c_str(), next.c_str()) != 0 || ::rename(next.c_str(), link_of(name).c_str()) != 0)
    return make_error(errno, "cannot make {}: {}", link_of(name), errno_text(errno));
  return Ok{};
}

void forget_names_of(const std::string& node) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(kByName, error)) {
    std::error_code unreadable;
    if (fs::read_symlink(entry.path(), unreadable) == node) (void)::unlink(entry.path().c_str());
  }
  (void)::rmdir(kByName);  // when it is empty
}

}  // namespace netblk::tools
