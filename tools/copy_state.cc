// SPDX-License-Identifier: GPL-2.0-only
#include "copy_state.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "netblk_state.h"
#include "netblk_uri.h"

namespace netblk::tools {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int kVersion = 1;

std::string state_folder() {
  const auto variable = [](const char* name) {
    const char* value = std::getenv(name);
    return std::string(value == nullptr ? "" : value);
  };
  if (const std::string state = variable("XDG_STATE_HOME"); state.starts_with('/')) return state + "/netblk";
  if (const std::string home = variable("HOME"); home.starts_with('/')) return home + "/.local/state/netblk";
  return "/var/lib/netblk";
}

// A file's name that says something to a person, and differs where the target does.
std::string file_name(const std::string& target) {
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  std::string words;
  for (const char c : target) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' || c == '-';
    words += plain ? c : '_';
  }
  constexpr size_t kWords = 40;
  if (words.size() > kWords) words = words.substr(words.size() - kWords);
  return fmt::format("copy-{}-{:016x}", words, hash);
}

std::string canonical(const std::string& target) {
  if (looks_like_uri(target)) return target;
  std::error_code error;
  const fs::path real = fs::weakly_canonical(target, error);
  return error ? target : real.string();
}

}  // namespace

Result<CopyStateFile> CopyStateFile::open(const std::string& target) {
  const std::string folder = state_folder();
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return make_error(error.value(), "cannot make {}: {}", folder, error.message());
  const std::string path = folder + "/" + file_name(canonical(target));
  io::UniqueFd lock(::open((path + ".lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!lock.valid()) return make_error(errno, "cannot open {}.lock: {}", path, errno_text(errno));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0)
    return make_error(EBUSY, "another copy to {} is under way", target);
  return CopyStateFile(path, std::move(lock));
}

std::optional<CopyState> CopyStateFile::load() const {
  const json text = json::parse(read_text(path_), nullptr, false);
  if (!text.is_object()) return std::nullopt;
  CopyState state;
  try {
    if (text.at("version").get<int>() != kVersion) return std::nullopt;
    state.source = text.at("source").get<std::string>();
    state.target = text.at("target").get<std::string>();
    state.source_identity = text.at("source_identity").get<std::string>();
    state.source_version = text.at("source_version").get<std::string>();
    state.target_identity = text.at("target_identity").get<std::string>();
    state.fresh = text.at("fresh").get<bool>();
    state.done_bytes = text.at("done_bytes").get<uint64_t>();
  } catch (const json::exception&) {
    return std::nullopt;
  }
  return state;
}

Status CopyStateFile::save(const CopyState& state) {
  const json text = {{"version", kVersion},
                     {"source", state.source},
                     {"target", state.target},
                     {"source_identity", state.source_identity},
                     {"source_version", state.source_version},
                     {"target_identity", state.target_identity},
                     {"fresh", state.fresh},
                     {"done_bytes", state.done_bytes}};
  const std::string next = path_ + ".new";
  std::ofstream file(next, std::ios::trunc);
  file << text.dump(2, ' ', false, json::error_handler_t::replace) << '\n';
  file.close();
  if (!file || ::rename(next.c_str(), path_.c_str()) != 0) return make_error(errno, "cannot write {}: {}", path_, errno_text(errno));
  return Ok{};
}

void CopyStateFile::remove() {
  (void)::unlink(path_.c_str());
  (void)::unlink((path_ + ".lock").c_str());
}

}  // namespace netblk::tools
