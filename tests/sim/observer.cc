// SPDX-License-Identifier: GPL-2.0-only
#include "sim/observer.h"

#include <algorithm>
#include <utility>

#include "base/endian.h"

namespace netblk::sim {

// One connection, both ways. Bytes come in pieces of any size; the sides' own bytes are well-formed, or the other side
// closes: what cannot be read ends the reading.
class Observer::Reader final : public Tap {
 public:
  Reader(Observer& observer, uint64_t writer, bool duplicate)
      : observer_(observer), writer_(writer), duplicate_(duplicate) {}

  void sent(int end, std::span<const std::byte> bytes) override {
    Way& way = ways_[end];
    if (way.broken) return;
    if (const size_t skipped = std::min<size_t>(way.skip, bytes.size()); skipped > 0) {
      way.skip -= skipped;
      bytes = bytes.subspan(skipped);
    }
    way.bytes.insert(way.bytes.end(), bytes.begin(), bytes.end());
    size_t used = 0;
    while (!way.broken) {
      const std::span<const std::byte> rest = std::span(way.bytes).subspan(used);
      const size_t taken = way.greeted ? message(end, rest) : greeting(end, rest);
      if (taken == 0) break;
      used += taken;
      const size_t skipped = std::min<size_t>(way.skip, way.bytes.size() - used);
      way.skip -= skipped;
      used += skipped;
    }
    way.bytes.erase(way.bytes.begin(), way.bytes.begin() + static_cast<std::ptrdiff_t>(used));
  }

  void read(int end, size_t bytes) override {
    if (end != 0 || hello_bytes_ == 0 || hello_read_) return;
    read_ += bytes;
    if (read_ < hello_bytes_) return;
    hello_read_ = true;
    observer_.hello_read(hello_);
  }

 private:
  struct Way {
    std::vector<std::byte> bytes;
    size_t skip = 0;
    bool greeted = false;
    bool broken = false;
  };

  size_t greeting(int end, std::span<const std::byte> bytes) {
    if (bytes.size() < proto::kGreetingPrefix) return 0;
    const Result<size_t> length = end == 0 ? proto::hello_length(bytes) : proto::welcome_length(bytes);
    if (!length) {
      ways_[end].broken = true;
      return 0;
    }
    if (bytes.size() < length.value()) return 0;
    ways_[end].greeted = true;
    if (end == 0) {
      auto hello = proto::decode_hello(bytes.first(length.value()));
      if (hello) {
        hello_ = std::move(hello).value();
        hello_bytes_ = length.value();
      } else {
        ways_[0].broken = true;
      }
    } else {
      const auto welcome = proto::decode_welcome(bytes.first(length.value()));
      if (!welcome) observer_.world_.fail("protocol", "the server's welcome: {}", welcome.error().message);
      session_id_ = welcome.value().session_id;
      observer_.welcomed(writer_, duplicate_, hello_, welcome.value());
    }
    return length.value();
  }

  size_t message(int end, std::span<const std::byte> bytes) {
    const size_t header = end == 0 ? NETBLK2_REQUEST_SIZE : NETBLK2_REPLY_SIZE;
    if (bytes.size() < header) return 0;
    const auto type = static_cast<uint8_t>(bytes[0]);
    const auto flags = static_cast<uint8_t>(bytes[1]);
    const bool carries = end == 0 || type != NETBLK2_TIMES;
    ways_[end].skip = carries ? load_be<uint32_t>(bytes.data() + (end == 0 ? 28 : 20)) : 0;
    World& world = observer_.world_;
    const uint64_t slot = uint64_t{type} << 32 | load_be<uint16_t>(bytes.data() + 2);
    const uint64_t sequence = load_be<uint32_t>(bytes.data() + 4);
    if (end == 0) {
      world.note("request", uint64_t{hello_.connection} << 32 | writer_, slot, sequence);
    } else {
      world.note("reply", uint64_t{hello_.connection} << 32 | writer_, slot, sequence);
    }
    if (type == NETBLK2_HEARTBEAT) world.count(Count::kHeartbeats);
    if ((flags & (NETBLK2_LZ4 | NETBLK2_ZSTD)) != 0) world.count(Count::kCompressed);
    if (end == 0) {
      if (type == NETBLK2_NOP) world.count(Count::kNops);
      if (type == NETBLK2_READ && !ways_[1].greeted) world.count(Count::kRideAlongs);
      if (type == NETBLK2_GOODBYE && (flags & NETBLK2_END_SESSION) != 0) {
        world.count(Count::kGoodbyes);
        ends_session_ = true;
        observer_.said_goodbye(session_id_, false);
      }
    } else if (type == NETBLK2_GOODBYE && ends_session_ && load_be<uint32_t>(bytes.data() + 16) == NETBLK2_OK) {
      observer_.said_goodbye(session_id_, true);
    }
    return header;
  }

  Observer& observer_;
  const uint64_t writer_;
  const bool duplicate_;
  Way ways_[2];
  proto::Hello2 hello_;
  size_t hello_bytes_ = 0;
  size_t read_ = 0;
  bool hello_read_ = false;
  Id session_id_;
  bool ends_session_ = false;
};

std::unique_ptr<Tap> Observer::make_tap(uint64_t writer, bool duplicate) {
  return std::make_unique<Reader>(*this, writer, duplicate);
}

void Observer::end(Session& session) {
  if (std::exchange(session.over, true)) return;
  const bool goes_on = std::any_of(sessions_.begin(), sessions_.end(), [&](const auto& entry) {
    return !entry.second.over && entry.second.writer == session.writer;
  });
  if (session.writes && !goes_on) model_.superseded(session.writer);
}

// From here on the server may have fenced what this hello stands against, whether or not it is answered.
void Observer::hello_read(const proto::Hello2& hello) {
  if ((hello.flags & (NETBLK2_HELLO_INFO | NETBLK2_HELLO_LIST)) != 0) return;
  // A first hello that comes again may begin its session a second time, when the server has forgotten that it is over: also
  // against a newer process of the same client.
  const auto known = sessions_.find(hello.session_id);
  if (known != sessions_.end() && (!known->second.over || (hello.flags & NETBLK2_HELLO_BEGIN) == 0)) return;
  const bool writes = (hello.flags & NETBLK2_HELLO_WRITE) != 0;
  const bool takeover = writes && (hello.flags & NETBLK2_HELLO_TAKEOVER) != 0;
  // A client that begins to read only gives up what it owned, and puts no owner in its place.
  const bool resigns = !writes && (hello.flags & NETBLK2_HELLO_BEGIN) != 0;
  for (auto& [id, session] : sessions_) {
    if (session.over || (session.client_id != hello.client_id && !takeover)) continue;
    fenced_.insert(session.writer);
    if (takeover || resigns) session.leaving = true;  // even if nobody hears the welcome
  }
}

void Observer::said_goodbye(const Id& session_id, bool answered) {
  const auto found = sessions_.find(session_id);
  if (found == sessions_.end()) return;
  found->second.leaving = true;
  if (answered) end(found->second);
}

void Observer::welcomed(uint64_t writer, bool duplicate, const proto::Hello2& hello, const proto::Welcome2& welcome) {
  const bool asks = (hello.flags & (NETBLK2_HELLO_INFO | NETBLK2_HELLO_LIST)) == 0;
  if (welcome.status != NETBLK2_OK) {
    world_.count(welcome.status == NETBLK2_EBUSY    ? Count::kRefusedBusy
                 : welcome.status == NETBLK2_ESTALE ? Count::kRefusedStale
                 : welcome.status == NETBLK2_EAGAIN ? Count::kRefusedAgain
                                                    : Count::kRefusedOther);
    world_.note("refused", writer, welcome.status, hello.connection);
    return;
  }
  if (!asks) return;
  const bool is_new = (welcome.flags & NETBLK2_WELCOME_NEW) != 0;
  const bool adopted = (welcome.flags & NETBLK2_WELCOME_ADOPTED) != 0;
  const bool shared = (hello.flags & NETBLK2_HELLO_SHARED) != 0;
  const bool takeover = (hello.flags & NETBLK2_HELLO_TAKEOVER) != 0;
  const bool writes = (hello.flags & NETBLK2_HELLO_WRITE) != 0 && (welcome.flags & NETBLK2_WELCOME_READ_ONLY) == 0;
  world_.note("welcome", writer, uint64_t{hello.connection} << 32 | welcome.flags, hello.epoch);

  if (!hello.session_id.is_zero() && welcome.session_id != hello.session_id)
    world_.fail("protocol", "the welcome is for another session than the hello");
  auto known = sessions_.find(welcome.session_id);
  if (known != sessions_.end() && known->second.over && (hello.flags & NETBLK2_HELLO_BEGIN) != 0) {
    // Who says BEGIN has not been let in yet, as far as it knows: it has nothing to come back to.
    model_.begins_again(known->second.writer);
    sessions_.erase(known);
    known = sessions_.end();
  }
  if (writes && known != sessions_.end() && known->second.over)
    world_.fail("who was fenced away does not come back", "writer {} of client {} is let in again{}", writer,
                id_text(hello.client_id), duplicate ? " by a hello that was delayed" : "");
  if (is_new || adopted) model_.new_ledger(writer);
  if (adopted) world_.count(Count::kAdoptions);
  if (known != sessions_.end()) {
    if (!adopted)
      world_.count(known->second.indexes.insert(hello.connection).second ? Count::kAddedConnections : Count::kResumes);
    if (hello.generation != welcome.generation && hello.generation != 0) world_.count(Count::kGenerationChanges);
    return;
  }
  // Begun by this hello, or by one whose welcome was lost.
  world_.count(Count::kNewSessions);
  if (takeover) world_.count(Count::kTakeovers);

  Session fresh;
  fresh.client_id = hello.client_id;
  fresh.writer = writer;
  fresh.writes = writes;
  fresh.shared = shared;
  fresh.indexes.insert(hello.connection);
  std::vector<Session*> ended;
  for (auto& [id, session] : sessions_) {
    if (session.over || id == welcome.session_id) continue;
    const bool same_client = session.client_id == hello.client_id;
    if (same_client) {
      ended.push_back(&session);
      continue;
    }
    if (!writes || !session.writes) continue;
    if (takeover) {
      ended.push_back(&session);
    } else if (!session.leaving && !(shared && session.shared)) {
      world_.fail("two clients never both own an export", "writer {} is let in beside writer {}", writer, session.writer);
    }
  }
  // First the new one is there, so that a process that begins a second session is not taken for one that was replaced.
  sessions_[welcome.session_id] = fresh;
  for (Session* session : ended) {
    if (session->writer == writer) world_.count(Count::kSelfFenced);
    end(*session);
  }
}

}  // namespace netblk::sim
