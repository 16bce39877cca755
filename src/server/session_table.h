// SPDX-License-Identifier: GPL-2.0-only
// SessionTable: the netblk/2 sessions of one export, and the rules that make a reconnect sound (DESIGN 4.2). No rule here
// trusts a clock: a fence is confirmed by the end of what it fences, never by the passing of time.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "block/device.h"
#include "coro/event.h"
#include "coro/task.h"
#include "io/loop.h"
#include "proto/netblk/codec2.h"
#include "server/ledger.h"
#include "server/link.h"
#include "server/owners.h"

namespace netblk::server {

// One connection of a session, as other threads see it. Shared: it outlives its connection while a fence waits for it.
class Presence {
 public:
  explicit Presence(Link& link) : loop_(link.context().loop), link_(&link) {}

 private:
  friend class SessionTable;
  struct Order;  // what the table says to it, on its own thread

  io::Loop& loop_;
  Link* link_;  // its own thread's; null after the end
  // What follows is the table's, under its mutex.
  Id client_id_;
  Id session_id_;
  uint16_t index_ = 0;
  bool writes_ = false;
  bool fenced_ = false;
  bool ended_ = false;
};

// The table's mutex guards everything but the ledger, which guards itself.
struct Session {
  Session(const Id& of_session, const Id& of_client, bool may_write, uint32_t slots, bool adopted)
      : id(of_session), client_id(of_client), writes(may_write), ledger(slots, adopted) {}

  const Id id;
  const Id client_id;
  const bool writes;
  Ledger ledger;
  const io::Loop* home = nullptr;  // of its first connection

  struct Place {
    uint64_t epoch = 0;  // the highest that was ever claimed
    std::shared_ptr<Presence> presence;
  };
  std::array<Place, NETBLK2_MAX_CONNECTIONS> places;
  // A connection was let in once: its client's older sessions have ended, and its ownership is durable.
  bool granted = false;
  bool over = false;
};

struct Admission {
  uint32_t status = NETBLK2_OK;
  std::string text;  // for a person, unless OK
  std::shared_ptr<Session> session;
  uint16_t flags = 0;  // NETBLK2_WELCOME_NEW, _ADOPTED
};

class SessionTable {
 public:
  // `device` outlives the table. name: of the export, for texts.
  SessionTable(block::Device& device, std::string name);
  SessionTable(const SessionTable&) = delete;
  SessionTable& operator=(const SessionTable&) = delete;

  // Lets a connection into a session, a new or an old one, as its hello asks: decides who owns, fences what must end
  // first and waits for that, and makes the ownership durable. Thread-safe; runs on the connection's loop. After OK the
  // connection leave()s when every request that it submitted has ended.
  coro::Task<Admission> admit(const proto::Hello2& hello, std::shared_ptr<Presence> who);

  // Every connection's last call, admitted or not: nothing of it reaches the store any more.
  void leave(Presence& who);

  // GOODBYE with END_SESSION: fences the session's other connections, and nobody owns through it any more when 0 is
  // returned; EAGAIN: a fence was not done in time; EIO: that it has ended could not be made durable.
  coro::Task<uint32_t> end(Session& session, Presence& who);

  // For tests and statistics.
  size_t sessions() const;
  Owners owners() const;

 private:
  friend struct Presence::Order;
  using PresenceList = std::vector<std::shared_ptr<Presence>>;
  class Wait;

  // A decision made under the mutex, and what it has changed already.
  struct Claim {
    Admission answer;
    PresenceList to_end;
    bool owners_changed = false;
  };
  Claim decide(const proto::Hello2& hello, Presence& who);
  Claim join(const std::shared_ptr<Session>& session, const proto::Hello2& hello);
  Claim begin(const proto::Hello2& hello);
  Claim make_session(const proto::Hello2& hello, bool writes, uint16_t flag);
  static Claim refuse(uint32_t status, std::string text);
  Claim refuse_stale(const proto::Hello2& hello, std::string text) const;
  PresenceList fading_of(const Id& session_id) const;
  PresenceList fading_before(const Session& session) const;
  bool was_fenced(const Id& session_id) const;
  void fence(Presence& presence);
  void fence_session(Session& session);
  void forget(const Id& session_id);
  bool make_room_for_owner();
  coro::Task<bool> all_ended(io::Loop& loop, const PresenceList& list);
  coro::Task<Status> write_owners(io::Loop& loop);
  coro::Task<void> settle(io::Loop& loop, Claim& claim);

  block::Device& device_;
  const std::string name_;

  mutable std::mutex mutex_;  // held for moments; what is called under it posts at most
  std::map<Id, std::shared_ptr<Session>> sessions_;
  PresenceList fading_;          // fenced and not ended
  std::deque<Id> fenced_;        // sessions that were fenced away, the latest limits::kFencedMemory of them
  Owners owners_;
  Owners durable_;               // as the store has them
  bool writing_ = false;         // one write of the record at a time
  std::vector<Wait*> waits_;     // for an end, or for the record
};

}  // namespace netblk::server
