// SPDX-License-Identifier: GPL-2.0-only
// Unix sockets: listening at a path, and connecting to one. The loop makes streams of them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "base/result.h"
#include "io/fd.h"

namespace netblk::transport {

// A socket's file, while it is ours: its end removes it, but not what somebody else has put there meanwhile.
class UnixFile {
 public:
  UnixFile() = default;
  UnixFile(std::string path, dev_t device, ino_t inode) : path_(std::move(path)), device_(device), inode_(inode) {}
  UnixFile(UnixFile&& other) noexcept { *this = std::move(other); }
  UnixFile& operator=(UnixFile&& other) noexcept;
  ~UnixFile() { remove(); }

 private:
  void remove();
  std::string path_;  // empty: nothing
  dev_t device_ = 0;
  ino_t inode_ = 0;
};

struct UnixListening {
  UnixFile file;  // goes after the socket
  io::UniqueFd fd;
};

// Whether unix_listen() has a chance, without changing anything.
Status unix_can_listen(const std::string& path);

// mode: of the socket's file, whatever the umask; who may write to it may connect. A file of a dead server is replaced;
// one of a living server, and what is no socket, is an error that says so.
Result<UnixListening> unix_listen(const std::string& path, mode_t mode);

// A blocking socket. A server that is busy is waited for.
Result<io::UniqueFd> unix_connect(const std::string& path, uint64_t timeout_ms);

}  // namespace netblk::transport
