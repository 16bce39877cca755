// SPDX-License-Identifier: GPL-2.0-only
// Gate: which connections a server lets in, and which it sends away for them.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>

#include "base/limits.h"
#include "io/address.h"

namespace netblk::server {

struct GateLimits {
  uint32_t connections = limits::kMaxConnections;
  uint32_t per_address = limits::kMaxConnections;  // unix sockets' peers have none
};

// Scenario: a thousand connections are opened that say nothing. A limit alone, also one per address, would keep the next
// real client out until their deadline. So at a limit the newcomer takes the place of the one that is half-open for the
// longest: a client that has something to say is through its handshake long before its turn comes. Whoever is open is
// never sent away.
//
// Thread-safe; the mutex is a leaf.
class Gate {
 public:
  struct Answer {
    std::string refusal;           // not empty: it is not let in
    std::optional<uint64_t> shed;  // let in for this one, which is to be closed and is counted no more
  };

  void set_limits(const GateLimits& limits);

  // `has_handshake`: it will be opened() soon, or is of no use. The others (netblk, where a client may be silent for as long
  // as it likes before it says its first byte) are not counted against limits::kMaxHandshakes.
  Answer enter(uint64_t number, const io::Address& peer, bool has_handshake);
  void opened(uint64_t number);
  void leave(uint64_t number);

  // The one that is half-open for the longest, to be closed: descriptors are needed. It is counted no more.
  std::optional<uint64_t> shed();

  uint32_t connections() const;

 private:
  using Ip = std::array<uint8_t, 16>;
  using Age = std::list<uint64_t>;
  struct Entry {
    std::optional<Ip> ip;
    bool has_handshake = false;
    bool half_open = true;
    Age::iterator age;          // in half_open_, while it is
    Age::iterator age_of_kind;  // in handshakes_, while it is half-open and has one
    Age::iterator age_of_ip;
  };
  struct Address {
    uint32_t connections = 0;
    Age half_open;
  };

  void no_longer_half_open(Entry& entry);
  void forget(uint64_t number);

  mutable std::mutex mutex_;
  GateLimits limits_;
  std::unordered_map<uint64_t, Entry> entries_;
  std::map<Ip, Address> addresses_;
  // Oldest first.
  Age half_open_;
  Age handshakes_;
};

}  // namespace netblk::server
