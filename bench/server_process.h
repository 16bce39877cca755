// SPDX-License-Identifier: GPL-2.0-only
// What a server and its descendants have used of the CPU and hold of memory.
#pragma once

#include <dirent.h>

#include <map>
#include <string>
#include <vector>

#include "common.h"

namespace bench {

// What a process and its descendants have used of the CPU, dead threads included; dead children are not.
class ServerProcess {
 public:
  explicit ServerProcess(pid_t pid) : pid_(pid) {
    if (pid_ != 0 && (clock_getcpuclockid(pid_, &clock_) != 0 || clock_ns(clock_) == 0))
      die("no process %d to account for", static_cast<int>(pid_));
  }
  uint64_t cpu_ns() const {
    if (pid_ == 0) return 0;
    uint64_t sum = clock_ns(clock_);
    for (const pid_t child : descendants()) {
      clockid_t clock;
      if (clock_getcpuclockid(child, &clock) == 0) sum += clock_ns(clock);
    }
    return sum;
  }
  uint64_t rss_bytes() const {
    if (pid_ == 0) return 0;
    uint64_t sum = rss_of(pid_);
    for (const pid_t child : descendants()) sum += rss_of(child);
    return sum;
  }

 private:
  static uint64_t rss_of(pid_t pid) {
    FILE* file = std::fopen(("/proc/" + std::to_string(pid) + "/smaps_rollup").c_str(), "r");
    if (file == nullptr) return 0;
    char line[256];
    unsigned long long kib = 0;
    while (std::fgets(line, sizeof line, file) != nullptr)
      if (std::sscanf(line, "Rss: %llu kB", &kib) == 1) break;
    std::fclose(file);
    return kib << 10;
  }
  std::vector<pid_t> descendants() const {
    std::multimap<pid_t, pid_t> children;
    DIR* proc = opendir("/proc");
    if (proc == nullptr) return {};
    while (const dirent* entry = readdir(proc)) {
      const pid_t pid = std::atoi(entry->d_name);
      if (pid <= 0) continue;
      FILE* file = std::fopen((std::string("/proc/") + entry->d_name + "/stat").c_str(), "r");
      if (file == nullptr) continue;
      char line[512];
      const char* name_end = std::fgets(line, sizeof line, file) == nullptr ? nullptr : std::strrchr(line, ')');
      std::fclose(file);
      int parent = 0;
      if (name_end != nullptr && std::sscanf(name_end, ") %*c %d", &parent) == 1) children.emplace(parent, pid);
    }
    closedir(proc);
    std::vector<pid_t> found{pid_};
    for (size_t i = 0; i < found.size(); ++i)
      for (auto [at, end] = children.equal_range(found[i]); at != end; ++at) found.push_back(at->second);
    found.erase(found.begin());
    return found;
  }

  pid_t pid_;
  clockid_t clock_{};
};

}  // namespace bench
