// SPDX-License-Identifier: GPL-2.0-only
// How far a copy came, in a small file: what `--resume` goes on from.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/result.h"
#include "io/fd.h"

namespace netblk::tools {

struct CopyState {
  std::string source;           // as it was named
  std::string target;
  std::string source_identity;  // what was behind the name
  std::string source_version;   // size and time of its last change
  std::string target_identity;
  bool fresh = false;           // the target had nothing but zeroes when the copy began
  uint64_t done_bytes = 0;      // copied and flushed
};

class CopyStateFile {
 public:
  // The file for this target on this machine and for this user; its folder is made. Locked as long as it lives: EBUSY:
  // another copy to this target runs.
  static Result<CopyStateFile> open(const std::string& target);

  const std::string& path() const { return path_; }
  std::optional<CopyState> load() const;
  // Replaces the file as a whole.
  Status save(const CopyState& state);
  void remove();

 private:
  CopyStateFile(std::string path, io::UniqueFd lock) : path_(std::move(path)), lock_(std::move(lock)) {}
  std::string path_;
  io::UniqueFd lock_;
};

}  // namespace netblk::tools
