// SPDX-License-Identifier: GPL-2.0-only
// netblk-generator(8): run by systemd at boot and at daemon-reload, to make units of /etc/netblktab.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "command_line.h"
#include "io/fd.h"
#include "netblk_units.h"

namespace netblk::tools {
namespace {

namespace fs = std::filesystem;

std::string from_environment(const char* name, const char* otherwise) {
  const char* const value = std::getenv(name);
  return value != nullptr && *value != '\0' ? value : otherwise;
}

// On stderr, and into the kernel's log: the journal does not run yet when a boot begins.
void warn(const std::string& words, bool by_systemd) {
  note(words);
  if (!by_systemd) return;
  const io::UniqueFd log(::open("/dev/kmsg", O_WRONLY | O_CLOEXEC | O_NOCTTY));
  const std::string line = "<4>netblk-generator: " + printable(words) + "\n";
  if (log.valid()) (void)!::write(log.get(), line.data(), line.size());
}

Status write_unit(const fs::path& folder, const UnitFile& unit) {
  const fs::path path = folder / unit.path;
  std::error_code error;
  fs::create_directories(path.parent_path(), error);
  if (error) return make_error(error.value(), "cannot make {}: {}", path.parent_path().string(), error.message());
  if (unit.is_link) {
    fs::create_symlink(unit.text, path, error);
    if (error && error != std::errc::file_exists) return make_error(error.value(), "cannot make {}: {}", path.string(), error.message());
    return Ok{};
  }
  std::ofstream file(path, std::ios::trunc);
  file << unit.text;
  file.close();
  if (!file) return make_error(EIO, "cannot write {}", path.string());
  return Ok{};
}

int run(int argc, char** argv) {
  if (argc != 2 && argc != 4)
    return fail(kMalformed, "usage: netblk-generator FOLDER [EARLY-FOLDER LATE-FOLDER] (systemd.generator(7))");
  const bool by_systemd = argc == 4 && std::string(argv[1]).starts_with("/run/systemd/");
  const std::string table_file = from_environment("NETBLK_TABLE", kTablePath);
  const std::string fstab_file = from_environment("NETBLK_FSTAB", "/etc/fstab");
  auto table = read_table(table_file);
  if (!table) {
    if (table.error().code == ENOENT) return 0;
    warn(table.error().message, by_systemd);
    return kFailed;
  }
  std::ifstream fstab(fstab_file, std::ios::binary);
  const Units units = make_units(table.value(), table_file, {std::istreambuf_iterator<char>(fstab), {}}, fstab_file);
  for (const std::string& problem : table.value().problems) warn(problem, by_systemd);
  for (const std::string& warning : units.warnings) warn(warning, by_systemd);
  for (const UnitFile& unit : units.files) {
    const Status written = write_unit(argv[1], unit);
    if (written) continue;
    warn(written.error().message, by_systemd);
    return kFailed;
  }
  return table.value().problems.empty() ? 0 : kFailed;
}

}  // namespace
}  // namespace netblk::tools

int main(int argc, char** argv) { return netblk::tools::run(argc, argv); }
