// SPDX-License-Identifier: GPL-2.0-only
// The driver's generic netlink family (protocol/netblk_genl.h): devices made, removed and looked at, and sockets handed
// to the kernel after their handshake. All of it needs CAP_NET_ADMIN. Errors carry the kernel's own words.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/id.h"
#include "base/result.h"

namespace netblk::attach {

struct KoDevice {
  uint32_t number = 0;
  std::string name;   // "netblk-1"
  std::string state;  // as its attribute has it
  std::string why;    // why its last connection ended
  int error = 0;      // the same as an errno; 0: none ended yet
  uint32_t protocol = 0;
  uint64_t size_bytes = 0;
  uint64_t reconnects = 0;
  bool handed_over = false;  // its connections came from user space, and so must the next ones
  bool lost = false;
};

struct KoConnection {
  int fd = -1;  // an established TCP socket; the kernel keeps it, the caller may close its descriptor
  uint64_t epoch = 0;
};

// What the handshake of netblk/2 agreed on.
struct KoSession {
  std::vector<KoConnection> connections;
  Id session_id, client_id, store_uuid;
  uint64_t generation = 0;
  uint64_t size_bytes = 0;
  uint32_t block_bytes = 0, preferred_bytes = 0, max_payload_bytes = 0;
  uint32_t slots = 0;
  uint32_t welcome_flags = 0;
  uint32_t features = 0;  // bit n is feature n
  uint32_t heartbeat_ms = 0;
};

class NetblkKo {
 public:
  // ENOENT: the driver is not loaded.
  static Result<NetblkKo> open();
  NetblkKo(NetblkKo&&) noexcept;
  NetblkKo& operator=(NetblkKo&&) noexcept;
  ~NetblkKo();

  // options: as written to /sys/bus/netblk/add. The device is connected to nothing.
  Result<KoDevice> add(const std::string& options);
  // EBUSY: it is open.
  Status remove(uint32_t number);
  Status disconnect(uint32_t number);
  Result<KoDevice> status(uint32_t number);
  Result<std::vector<KoDevice>> devices();

  Result<KoDevice> hand_over(uint32_t number, const KoSession& session);
  // A connection of netblk/1, which tells no size: the device keeps its own unless one is given.
  Result<KoDevice> hand_over1(uint32_t number, int fd, std::optional<uint64_t> size_bytes);

  // From here on, changes of state are told. The descriptor is readable when there are some.
  Status listen();
  int event_fd() const;
  // What there is, perhaps nothing; it does not wait. ENOBUFS: some were missed, look at devices().
  Result<std::vector<KoDevice>> events();

 private:
  struct Sockets;
  explicit NetblkKo(std::unique_ptr<Sockets> sockets);

  std::unique_ptr<Sockets> sockets_;
};

}  // namespace netblk::attach
