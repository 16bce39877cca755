// SPDX-License-Identifier: GPL-2.0-only
#include "server/session_table.h"

#include <algorithm>
#include <utility>

#include "base/log.h"

namespace netblk::server {

// Tells a connection on its own thread that it is fenced. Owns itself.
struct Presence::Order : coro::Posted {
  Order(std::shared_ptr<Presence> to, SessionTable& from)
      : Posted([](coro::Runnable& self) {
          const std::unique_ptr<Order> order(&static_cast<Order&>(static_cast<Posted&>(self)));
          // Only this thread ends the connection, so the link that is there stays until this returns.
          Link* link = nullptr;
          {
            const std::lock_guard lock(order->table.mutex_);
            link = order->presence->link_;
          }
          if (link != nullptr) link->abort("fenced: a newer connection or session takes its place");
        }),
        presence(std::move(to)), table(from) {}
  std::shared_ptr<Presence> presence;
  SessionTable& table;
};

// One coroutine that waits until the table has changed. Woken by post: the change comes from any thread.
class SessionTable::Wait : public coro::Posted {
 public:
  Wait(SessionTable& table, io::Loop& loop)
      : Posted([](coro::Runnable& self) {
          auto& wait = static_cast<Wait&>(static_cast<Posted&>(self));
          {
            const std::lock_guard lock(wait.table_.mutex_);
            wait.posted_ = false;
          }
          wait.changed_.set();
        }),
        table_(table), loop_(loop), alarm_(*this) {
    const std::lock_guard lock(table.mutex_);
    table.waits_.push_back(this);
  }

  // Under the table's mutex.
  void wake() {
    if (!std::exchange(posted_, true)) loop_.post(*this);
  }

  // Until wake(), or the time has come.
  coro::Task<void> change(uint64_t give_up_at_ms) {
    alarm_.arm(give_up_at_ms);
    co_await changed_.wait();
  }

  // Must be the last call: nothing points here any more when it returns.
  coro::Task<void> end() {
    {
      const std::lock_guard lock(table_.mutex_);
      std::erase(table_.waits_, this);
    }
    alarm_.cancel();
    while (alarm_.queued || is_posted()) co_await changed_.wait();
  }

 private:
  struct Alarm : io::Timer {
    explicit Alarm(Wait& of)
        : Timer(of.loop_, [](coro::Runnable& self) { static_cast<Alarm&>(self).wait.changed_.set(); }), wait(of) {}
    Wait& wait;
  };
  bool is_posted() const {
    const std::lock_guard lock(table_.mutex_);
    return posted_;
  }

  SessionTable& table_;
  io::Loop& loop_;
  coro::Event changed_;
  bool posted_ = false;
  Alarm alarm_;
};

SessionTable::SessionTable(block::Device& device, std::string name)
    : device_(device), name_(std::move(name)) {
  auto owners = decode_owners(device.owners());
  if (owners) {
    owners_ = durable_ = std::move(owners).value();
  } else {
    // Nobody is let back in on the strength of a record that cannot be read: every old session is refused.
    log_warning("export '{}': {}; clients that were attached must attach again", name_, owners.error().message);
  }
}

size_t SessionTable::sessions() const {
  const std::lock_guard lock(mutex_);
  return sessions_.size();
}

Owners SessionTable::owners() const {
  const std::lock_guard lock(mutex_);
  return owners_;
}

// ---- decisions, under the mutex

SessionTable::Claim SessionTable::refuse(uint32_t status, std::string text) {
  Claim claim;
  claim.answer.status = status;
  claim.answer.text = std::move(text);
  return claim;
}

bool SessionTable::was_fenced(const Id& session_id) const {
  return std::find(fenced_.begin(), fenced_.end(), session_id) != fenced_.end();
}

SessionTable::PresenceList SessionTable::fading_of(const Id& session_id) const {
  PresenceList list;
  for (const auto& fading : fading_)
    if (fading->session_id_ == session_id) list.push_back(fading);
  return list;
}

// What must have ended before a new session is granted. (A fence that one try did not wait for to the end is waited for by
// the next.)
SessionTable::PresenceList SessionTable::fading_before(const Session& session) const {
  PresenceList list;
  for (const auto& fading : fading_)
    if (fading->client_id_ == session.client_id || (session.writes && fading->writes_)) list.push_back(fading);
  return list;
}

// The client will tell its user that the session is over. By then nothing of it may reach the store any more; and if another
// one has taken its place, the store's record says so. Scenario: a takeover fences the owner, and the server dies before the
// record is durable. After its restart the old owner still owns: had it been told, nobody would.
SessionTable::Claim SessionTable::refuse_stale(const proto::Hello2& hello, std::string text) const {
  Claim claim = refuse(NETBLK2_ESTALE, std::move(text));
  claim.to_end = fading_of(hello.session_id);
  claim.owners_changed = durable_.has(hello.client_id, hello.session_id) && owners_ != durable_;
  return claim;
}

SessionTable::Claim SessionTable::decide(const proto::Hello2& hello, Presence& who) {
  if (hello.client_id.is_zero()) return refuse(NETBLK2_EPROTO, "a hello without a client id");
  if (hello.session_id.is_zero()) return refuse(NETBLK2_EPROTO, "a hello without a session id");
  if (hello.epoch == 0) return refuse(NETBLK2_EPROTO, "a hello with the epoch 0: epochs begin with 1");
  if (hello.connection >= limits::kMaxSessionConnections)
    return refuse(NETBLK2_EPROTO, fmt::format("connection {} of a session: a session has {} at most", hello.connection,
                                              limits::kMaxSessionConnections));
  who.client_id_ = hello.client_id;
  who.index_ = hello.connection;
  // Scenario: the export is another store by now, or its volume was rewound. What the client believes to be on it is not.
  const Id uuid = device_.generation().uuid;
  if (!hello.store_uuid.is_zero() && hello.store_uuid != uuid)
    return refuse_stale(hello, fmt::format("export '{}' has other contents now: it was rewound, or is another store ({}, was {})", name_,
                                           id_text(uuid), id_text(hello.store_uuid)));

  const auto known = sessions_.find(hello.session_id);
  if (known != sessions_.end()) {
    if (known->second->client_id != hello.client_id)
      return refuse(NETBLK2_EPERM, "the session belongs to another client");
    return join(known->second, hello);
  }
  if (was_fenced(hello.session_id))
    return refuse_stale(hello, "the session is over: another one has taken its place");
  // Scenario: a client's first hello is answered, and the answer is lost. The client asks again, with the same session
  // id: what has begun meanwhile is the same session, and nothing of it is fenced by its own second hello.
  if (hello.flags & NETBLK2_HELLO_BEGIN) return begin(hello);
  // Scenario: a client is fenced while its link is down, and the server restarts. It must not come back: the durable
  // record knows who owns.
  const bool writes = (hello.flags & NETBLK2_HELLO_WRITE) != 0 && !device_.geometry().read_only;
  if (writes && !owners_.has(hello.client_id, hello.session_id))
    return refuse_stale(hello, "the session is over: the store knows it no more");
  // Scenario: the server crashed. The ledger is lost; what the client has no answer to, it sends again, and it is applied
  // again. Whether writes were lost too is told by the generation, which the client compares.
  Claim claim = make_session(hello, writes, NETBLK2_WELCOME_ADOPTED);
  claim.answer.session->granted = true;
  return claim;
}

// A further connection, or RESUME: the same place with a higher epoch.
SessionTable::Claim SessionTable::join(const std::shared_ptr<Session>& session, const proto::Hello2& hello) {
  Session::Place& place = session->places[hello.connection];
  // Scenario: a connection attempt was delayed in the network and arrives after the one that replaced it.
  if (hello.epoch <= place.epoch)
    return refuse(NETBLK2_EAGAIN, fmt::format("epoch {} of connection {} is over: {} has come", hello.epoch,
                                              hello.connection, place.epoch));
  place.epoch = hello.epoch;
  if (place.presence != nullptr) fence(*place.presence);
  Claim claim;
  claim.answer.session = session;
  // The owner may still be on its way to the disk for the connection that began the session.
  claim.owners_changed = session->writes && owners_ != durable_;
  if (!session->granted) {
    claim.answer.flags = NETBLK2_WELCOME_NEW;
    claim.to_end = fading_before(*session);
  }
  for (const auto& fading : fading_)
    if (fading->session_id_ == session->id && fading->index_ == hello.connection) claim.to_end.push_back(fading);
  return claim;
}

SessionTable::Claim SessionTable::make_session(const proto::Hello2& hello, bool writes, uint16_t flag) {
  Claim claim;
  claim.owners_changed = owners_ != durable_;
  const uint32_t slots = std::clamp<uint32_t>(hello.slots, NETBLK2_MIN_SLOTS, limits::kSessionSlots);
  claim.answer.session = std::make_shared<Session>(hello.session_id, hello.client_id, writes, slots,
                                                   (flag & NETBLK2_WELCOME_ADOPTED) != 0);
  claim.answer.session->places[hello.connection].epoch = hello.epoch;
  claim.answer.flags = flag;
  sessions_.emplace(hello.session_id, claim.answer.session);
  return claim;
}

SessionTable::Claim SessionTable::begin(const proto::Hello2& hello) {
  const bool writes = (hello.flags & NETBLK2_HELLO_WRITE) != 0 && !device_.geometry().read_only;
  const bool shared = (hello.flags & NETBLK2_HELLO_SHARED) != 0;
  const bool beside_others = shared && owners_.shared;
  const bool takeover = (hello.flags & NETBLK2_HELLO_TAKEOVER) != 0 && !beside_others;
  // Scenario: two machines mount one file system. The second is told who has it.
  const Owner* other = owners_.other_than(hello.client_id);
  if (writes && other != nullptr && !takeover && !beside_others)
    return refuse(NETBLK2_EBUSY,
                  fmt::format("export '{}' is written by client {}{}: detach it there, or take it over", name_,
                              id_text(other->client_id), owners_.shared ? ", which shares it" : ""));
  // Scenario: a client crashed and starts again while a write of its former life is still on its way.
  std::vector<std::shared_ptr<Session>> to_fence;
  for (const auto& [key, session] : sessions_)
    if (session->client_id == hello.client_id || (writes && takeover && session->writes)) to_fence.push_back(session);
  for (const auto& session : to_fence) fence_session(*session);
  if (!owners_.has(hello.client_id, hello.session_id)) {
    for (const Owner& owner : owners_.list)
      if ((writes && takeover) || owner.client_id == hello.client_id) forget(owner.session_id);
    if (writes && takeover) owners_.list.clear();
    // Also by a session that only reads: what it has ended must not come back after a restart either.
    owners_.remove_client(hello.client_id);
    if (owners_.list.empty()) owners_.shared = false;
    if (writes && owners_.list.size() >= limits::kMaxOwners && !make_room_for_owner())
      return refuse(NETBLK2_EBUSY, fmt::format("export '{}' has {} writers, which is the most", name_, limits::kMaxOwners));
    if (writes) {
      owners_.shared = shared;
      owners_.list.push_back({hello.client_id, hello.session_id});
    }
  }
  Claim claim = make_session(hello, writes, NETBLK2_WELCOME_NEW);
  claim.to_end = fading_before(*claim.answer.session);
  return claim;
}

// Among many writers that share, the oldest that has no connection gives its place up.
bool SessionTable::make_room_for_owner() {
  for (const Owner& owner : owners_.list) {
    const auto session = sessions_.find(owner.session_id);
    const bool away = session == sessions_.end() ||
                      std::all_of(session->second->places.begin(), session->second->places.end(),
                                  [](const Session::Place& place) { return place.presence == nullptr; });
    if (!away) continue;
    if (session != sessions_.end()) fence_session(*session->second);
    forget(owner.session_id);
    owners_.list.erase(owners_.list.begin() + (&owner - owners_.list.data()));
    return true;
  }
  return false;
}

void SessionTable::forget(const Id& session_id) {
  if (was_fenced(session_id)) return;
  fenced_.push_back(session_id);
  if (fenced_.size() > limits::kFencedMemory) fenced_.pop_front();
}

// Scenario: the old connection still has writes in its socket, or in the store's queue. From here on it submits nothing
// (it looks at the flag before each submission), and what it submitted is waited for.
void SessionTable::fence(Presence& presence) {
  if (presence.ended_ || std::exchange(presence.fenced_, true)) return;
  const auto session = sessions_.find(presence.session_id_);
  if (session == sessions_.end()) return;
  Session::Place& place = session->second->places[presence.index_];
  std::shared_ptr<Presence> shared = std::exchange(place.presence, nullptr);
  fading_.push_back(shared);
  presence.link_->gone_flag().store(true, std::memory_order_release);
  presence.loop_.post(*new Presence::Order(std::move(shared), *this));
}

void SessionTable::fence_session(Session& session) {
  const auto kept = sessions_.find(session.id);
  if (kept == sessions_.end()) return;
  const std::shared_ptr<Session> alive = kept->second;
  for (Session::Place& place : session.places)
    if (place.presence != nullptr) fence(*place.presence);
  session.over = true;
  forget(session.id);
  sessions_.erase(session.id);
}

// ---- waiting

coro::Task<bool> SessionTable::all_ended(io::Loop& loop, const PresenceList& list) {
  if (list.empty()) co_return true;
  const uint64_t give_up_at_ms = loop.now_ms() + limits::kFenceTimeoutMs;
  Wait wait(*this, loop);
  bool done = false;
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      done = std::all_of(list.begin(), list.end(), [](const auto& presence) { return presence->ended_; });
    }
    if (done || loop.now_ms() >= give_up_at_ms) break;
    co_await wait.change(give_up_at_ms);
  }
  co_await wait.end();
  co_return done;
}

coro::Task<Status> SessionTable::write_owners(io::Loop& loop) {
  Wait wait(*this, loop);
  Owners to_write;
  for (;;) {
    {
      const std::lock_guard lock(mutex_);
      if (!writing_) {
        writing_ = true;
        to_write = owners_;
        break;
      }
    }
    co_await wait.change(loop.now_ms() + limits::kFenceTimeoutMs);
  }
  co_await wait.end();
  Status kept = co_await device_.keep_owners(loop, encode_owners(to_write));
  const std::lock_guard lock(mutex_);
  writing_ = false;
  if (kept) durable_ = std::move(to_write);
  for (Wait* other : waits_) other->wake();
  co_return kept;
}

// What a claim has to wait for before it is answered; an OK, or a refusal for good, gives way to a reason to try again.
coro::Task<void> SessionTable::settle(io::Loop& loop, Claim& claim) {
  Admission& answer = claim.answer;
  const bool ended = co_await all_ended(loop, claim.to_end);
  if (!ended) {
    // Never proceed: what is still on its way could land after the new session's writes.
    answer.status = NETBLK2_EAGAIN;
    answer.text = "requests of the connection or session before this one have not ended yet: try again";
  } else if (claim.owners_changed) {
    const Status kept = co_await write_owners(loop);
    if (!kept) {
      answer.status = NETBLK2_EIO;
      answer.text = fmt::format("the ownership of export '{}' cannot be made durable: {}", name_, kept.error().message);
      log_error("{}", answer.text);
    }
  }
}

// ---- the way in and out

coro::Task<Admission> SessionTable::admit(const proto::Hello2& hello, std::shared_ptr<Presence> who) {
  Claim claim;
  {
    const std::lock_guard lock(mutex_);
    claim = decide(hello, *who);
    if (claim.answer.session != nullptr) {
      Session& joined = *claim.answer.session;
      if (joined.home == nullptr) joined.home = &who->loop_;
      if (joined.home != &who->loop_) joined.ledger.share();
    }
  }
  Admission& answer = claim.answer;
  const std::shared_ptr<Session> session = answer.session;
  io::Loop& loop = who->loop_;

  co_await settle(loop, claim);
  if (session == nullptr) co_return std::move(answer);

  Claim stale;
  {
    const std::lock_guard lock(mutex_);
    Session::Place& place = session->places[hello.connection];
    if (session->over) {
      stale = refuse_stale(hello, "the session is over: another one has come meanwhile");
      answer = stale.answer;
    } else if (place.epoch != hello.epoch) {
      answer.status = NETBLK2_EAGAIN;
      answer.text = "a newer connection has come meanwhile";
    }
    if (answer.status == NETBLK2_OK) {
      session->granted = true;
      who->session_id_ = session->id;
      who->writes_ = session->writes;
      place.presence = std::move(who);
      co_return std::move(answer);
    }
    answer.session = nullptr;
    if (!session->granted && !session->over && !session->writes) sessions_.erase(session->id);
    if (answer.status != NETBLK2_ESTALE) co_return std::move(answer);
  }
  co_await settle(loop, stale);
  co_return std::move(stale.answer);
}

void SessionTable::leave(Presence& who) {
  const std::lock_guard lock(mutex_);
  who.ended_ = true;
  who.link_ = nullptr;
  std::erase_if(fading_, [&](const auto& fading) { return fading.get() == &who; });
  const auto found = sessions_.find(who.session_id_);
  if (found != sessions_.end()) {
    Session& session = *found->second;
    Session::Place& place = session.places[who.index_];
    if (place.presence.get() == &who) place.presence = nullptr;
    const bool empty = std::all_of(session.places.begin(), session.places.end(),
                                   [](const Session::Place& each) { return each.presence == nullptr; });
    // A session that only reads has nothing to remember: it is adopted when it comes back.
    if (empty && !session.writes) sessions_.erase(found);
  }
  for (Wait* wait : waits_) wait->wake();
}

coro::Task<uint32_t> SessionTable::end(Session& session, Presence& who) {
  PresenceList to_end;
  bool owned = false;
  {
    const std::lock_guard lock(mutex_);
    const auto kept = sessions_.find(session.id);
    if (kept == sessions_.end() || kept->second.get() != &session) co_return NETBLK2_ESTALE;
    const std::shared_ptr<Session> alive = kept->second;
    for (Session::Place& place : session.places)
      if (place.presence != nullptr && place.presence.get() != &who) fence(*place.presence);
    for (const auto& fading : fading_)
      if (fading->session_id_ == session.id) to_end.push_back(fading);
    session.over = true;
    forget(session.id);
    sessions_.erase(kept);
    owned = std::erase(owners_.list, Owner{session.client_id, session.id}) != 0;
    if (owners_.list.empty()) owners_.shared = false;
  }
  io::Loop& loop = who.loop_;
  const bool ended = co_await all_ended(loop, to_end);
  if (!ended) co_return NETBLK2_EAGAIN;
  if (!owned) co_return NETBLK2_OK;
  const Status kept = co_await write_owners(loop);
  if (kept) co_return NETBLK2_OK;
  log_error("export '{}': that a session has ended cannot be made durable: {}", name_, kept.error().message);
  co_return NETBLK2_EIO;
}

}  // namespace netblk::server
