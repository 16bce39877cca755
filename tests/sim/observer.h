// SPDX-License-Identifier: GPL-2.0-only
// Observer: reads what passes between clients and server, and knows from it who was let in when. It checks the rules of
// ownership (two clients never both own an export; who was fenced away does not come back) and tells the Model from
// when on nothing of a session may reach the store.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <vector>

#include "base/id.h"
#include "proto/netblk/codec2.h"
#include "sim/model.h"
#include "sim/network.h"
#include "sim/world.h"

namespace netblk::sim {

class Observer {
 public:
  Observer(World& world, Model& model) : world_(world), model_(model) {}

  // writer: of the client process that dialled. duplicate: nobody of that process listens there.
  std::unique_ptr<Tap> make_tap(uint64_t writer, bool duplicate);

  // A hello for a new session has come that ends this process's: another client's, or a late one of its own.
  bool is_fenced(uint64_t writer) const { return fenced_.contains(writer); }

  // The store is another one: nobody owns it.
  void store_replaced() { sessions_.clear(); }

 private:
  class Reader;
  struct Session {
    Id client_id;
    uint64_t writer = 0;
    bool writes = false;
    bool shared = false;
    bool over = false;
    bool leaving = false;  // it has said goodbye, or is being taken over; when the server does it is not known
    std::set<uint16_t> indexes;
  };
  void welcomed(uint64_t writer, bool duplicate, const proto::Hello2& hello, const proto::Welcome2& welcome);
  void hello_read(const proto::Hello2& hello);
  void said_goodbye(const Id& session_id, bool answered);
  void end(Session& session);

  World& world_;
  Model& model_;
  std::map<Id, Session> sessions_;
  std::set<uint64_t> fenced_;  // writers
};

}  // namespace netblk::sim
