// SPDX-License-Identifier: GPL-2.0-only
// Keeps the connections of a disk of the kernel's nbd: one that has died is made again and put into its place.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "attach/nbd_netlink/nbd_netlink.h"
#include "io/fd.h"
#include "netblk_helper_peer.h"

namespace netblk::tools {

class NbdKeeper {
 public:
  struct Disk {
    uint32_t number = 0;
    std::string backend;
    uint64_t size_bytes = 0;
    uint16_t flags = 0;  // as the server sent them
    unsigned connections = 1;
    bool untimed = false;  // the kernel has no time-out for requests (NbdPeer::request_timeout_s)
    uint64_t dead_time_ms = 0;     // without any, requests fail
    uint64_t connect_timeout_ms = 0;
  };
  struct State {
    std::string text;  // "connected", "connecting", "error"
    std::string last_error;
    uint64_t reconnects = 0;
  };

  // sockets: those that the kernel has and we know; fewer than disk.connections after a helper has died: then the others
  // are looked for by offering new ones until the kernel has no use for one.
  // gone: an eventfd that is raised when the disk is no longer there, or no longer ours.
  NbdKeeper(attach::NbdNetlink netlink, NbdPeer& peer, Disk disk, std::vector<io::UniqueFd> sockets, int gone);
  NbdKeeper(const NbdKeeper&) = delete;
  NbdKeeper& operator=(const NbdKeeper&) = delete;
  ~NbdKeeper();

  // Thread-safe: looks at once. link_died: the kernel has said so.
  void look(bool link_died);
  // The disk has another size now.
  void resized(uint64_t size_bytes) { size_bytes_ = size_bytes; }
  State state() const;

 private:
  enum class Outcome { kSound, kAgain, kGone };

  void run();
  Outcome mend();
  Outcome failed(std::string why, bool refused);
  bool is_dead(size_t index) const;
  bool is_there() const;
  void look_after_requests() const;
  size_t unknown() const { return disk_.connections - sockets_.size(); }

  attach::NbdNetlink netlink_;
  NbdPeer& peer_;
  const Disk disk_;
  const int gone_;
  std::atomic<uint64_t> size_bytes_;

  // Of the thread.
  std::vector<io::UniqueFd> sockets_;
  bool offer_ = false;  // one that is not known may be dead

  mutable std::mutex mutex_;  // a leaf: of what follows
  std::condition_variable wake_;
  bool stopping_ = false;
  bool look_ = false;
  bool link_died_ = false;
  bool refused_ = false;         // the server has something else now
  uint64_t none_since_ms_ = 0;   // without a connection since; 0: there is one
  uint64_t reconnects_ = 0;
  std::string last_error_;

  std::thread thread_;
};

}  // namespace netblk::tools
