// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_scope.h"

#include <fmt/format.h>
#include <time.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "netblk_state.h"

namespace netblk::tools {
namespace {

// Set in the program that was started anew: once is enough.
constexpr const char* kLeft = "NETBLK_LEFT_SESSION";

}  // namespace

void leave_login_session(char** argv) {
  if (::geteuid() != 0 || std::getenv(kLeft) != nullptr || ::access("/run/systemd/private", F_OK) != 0) return;
  if (read_text("/proc/self/cgroup").find("/user.slice/") == std::string::npos) return;
  // Our process's number may have been that of a command whose helper lives on in its scope.
  timespec now{};
  (void)::clock_gettime(CLOCK_BOOTTIME, &now);
  const std::string unit = fmt::format("--unit=netblk-attach-{}-{}{:09}", ::getpid(), now.tv_sec, now.tv_nsec);
  std::error_code error;
  const std::string program = std::filesystem::read_symlink("/proc/self/exe", error).string();
  if (error) return;
  std::vector<const char*> words{"systemd-run", "--quiet", "--scope", "--collect", unit.c_str(), "--slice=system.slice",
                                 "--property=DefaultDependencies=no", "--property=SendSIGKILL=no", "--", program.c_str()};
  for (char** word = argv + 1; *word != nullptr; ++word) words.push_back(*word);
  words.push_back(nullptr);
  (void)::setenv(kLeft, "1", 1);
  // Where there is no systemd-run, it goes on as it is.
  (void)::execvp(words.front(), const_cast<char**>(words.data()));
  (void)::unsetenv(kLeft);
}

}  // namespace netblk::tools
