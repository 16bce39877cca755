// SPDX-License-Identifier: GPL-2.0-only
// The kernel's nbd, by its generic netlink family: disks set up from sockets on which the NBD handshake is done, their
// dead sockets replaced, and told about. It needs CAP_SYS_ADMIN.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "attach/genl/genl.h"
#include "base/result.h"

namespace netblk::attach {

struct NbdSetup {
  std::optional<uint32_t> number;  // of /dev/nbdN; otherwise the kernel picks one
  uint64_t size_bytes = 0;
  uint64_t block_bytes = 512;  // a power of two from 512 to a page
  // Of one request: then its connection counts as dead, and it is sent on another.
  uint64_t timeout_s = 0;
  // While no connection lives: then requests fail with EIO.
  uint64_t dead_conn_timeout_s = 0;
  uint64_t server_flags = 0;  // NBD_FLAG_*, as the server sent them
  std::string backend;        // shown as /sys/block/nbdN/backend; who replaces sockets has to know it
};

class NbdNetlink {
 public:
  explicit NbdNetlink(Genl family) : family_(std::move(family)) {}
  // ENOENT: the module is not loaded. The message names it, and the command; or says that this kernel has none.
  static Result<NbdNetlink> open();

  // The kernel keeps references of its own to the sockets, and no tie to this process. The number of the disk.
  // EBUSY: that number is in use.
  Result<uint32_t> connect(const NbdSetup& setup, std::span<const int> sockets);

  // Takes the place of one dead socket. False: none is dead, and the kernel has no use for it.
  // EINVAL: the disk is no longer connected, or is another's (backend).
  // untimed: of a disk without a time-out for requests.
  Result<bool> replace_dead(uint32_t number, const std::string& backend, int socket, bool untimed);

  // The disk is as large from now on, for who has it open as well. EINVAL as above.
  Status resize(uint32_t number, const std::string& backend, uint64_t size_bytes);

  // Whether the disk is connected and of this backend.
  Result<bool> is_ours(uint32_t number, const std::string& backend);

  // Requests that wait fail with EIO. What is not connected stays so.
  Status disconnect(uint32_t number);

 private:
  Genl family_;
};

// The kernel says when a connection of a disk has died.
class NbdEvents {
 public:
  explicit NbdEvents(GenlEvents events) : events_(std::move(events)) {}
  static Result<NbdEvents> open();

  int fd() const { return events_.fd(); }
  // Whether a connection of this disk may have died since the last call.
  bool link_died(uint32_t number) const;

 private:
  GenlEvents events_;
};

// The number of "/dev/nbd3", which may be there or not.
std::optional<uint32_t> nbd_number(const std::string& node);
std::string nbd_node(uint32_t number);

}  // namespace netblk::attach
