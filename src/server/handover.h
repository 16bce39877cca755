// SPDX-License-Identifier: GPL-2.0-only
// Handover: exports that give their stores back for a moment, because what is below becomes other contents (a volume that is
// rewound). Their clients are disconnected and none is let in until the stores are open again: whoever comes back does so
// through a handshake, and is told which contents these are.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"

namespace netblk::server {

// Thread-safe by its order: each function is called at most once, and the next of them only after the one before.
struct Handover {
  // On the server's thread, when its turn has come, and as long as keep() gives something: the names of exports. One that is not
  // there is passed over.
  std::function<std::vector<std::string>()> names = {};
  bool disconnect = false;  // also where there are connections
  std::string why;          // for the log of those that end
  // On the server's thread, while the stores are still open: what stays until all is over, and ends on that thread.
  std::function<std::shared_ptr<void>()> keep = {};
  // On any thread. Ok: nobody has the stores open, until take_back(). Otherwise there is none, and all exports are as they were,
  // but that with `disconnect` their connections may have ended. EBUSY: there are connections; ETIMEDOUT: some did not end in time;
  // ECANCELED: the server stops.
  std::function<void(Status)> on_given = {};
  // Made by the server; thread-safe.
  std::function<void()> take_back = {};
  // On the server's thread: the stores are open again; one line for each that could not be, and is not served any more.
  std::function<void(std::vector<std::string>)> on_taken_back = {};
};

}  // namespace netblk::server
