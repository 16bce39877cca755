// SPDX-License-Identifier: GPL-2.0-only
// What a session says in a hello, and what it makes of a welcome.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/limits.h"
#include "base/log.h"
#include "client/session2.h"

namespace netblk::client {

std::vector<proto::Feature2> offered_features(const Options2& options) {
  std::vector<proto::Feature2> features;
  const bool pack_must = options.must_have_compression;
  if (options.crc32c || options.must_have_crc32c)
    features.push_back(proto::make_feature(NETBLK2_FEATURE_CRC32C, 0, options.must_have_crc32c));
  if (options.lz4) features.push_back(proto::make_feature(NETBLK2_FEATURE_LZ4, 0, pack_must));
  if (options.zstd) features.push_back(proto::make_feature(NETBLK2_FEATURE_ZSTD, 0, pack_must));
  if (options.heartbeat_ms != 0)
    features.push_back(proto::make_feature(
        NETBLK2_FEATURE_HEARTBEAT,
        std::clamp<uint32_t>(options.heartbeat_ms, NETBLK2_MIN_HEARTBEAT_MS, NETBLK2_MAX_HEARTBEAT_MS)));
  if (options.resize) features.push_back(proto::make_feature(NETBLK2_FEATURE_RESIZE));
  if (options.times) features.push_back(proto::make_feature(NETBLK2_FEATURE_TIMES));
  return features;
}

std::optional<Error> unsound(const proto::Welcome2& welcome, const std::vector<proto::Feature2>& offered) {
  const auto is_power = [](uint32_t value) { return value != 0 && (value & (value - 1)) == 0; };
  if (!is_power(welcome.block_bytes) || welcome.block_bytes < NETBLK_SECTOR_SIZE ||
      welcome.block_bytes > NETBLK2_MIN_MAX_PAYLOAD)
    return make_error(EPROTO, "the server's blocks have {} bytes", welcome.block_bytes);
  if (welcome.size_bytes == 0 || welcome.size_bytes > limits::kMaxDeviceBytes ||
      welcome.size_bytes % welcome.block_bytes != 0)
    return make_error(EPROTO, "the export has {} bytes, in blocks of {}", welcome.size_bytes, welcome.block_bytes);
  if (welcome.preferred_bytes == 0 || welcome.preferred_bytes % welcome.block_bytes != 0)
    return make_error(EPROTO, "the server prefers requests of {} bytes", welcome.preferred_bytes);
  if (welcome.max_payload_bytes < NETBLK2_MIN_MAX_PAYLOAD || welcome.max_payload_bytes > NETBLK2_MAX_PAYLOAD ||
      welcome.max_payload_bytes % welcome.block_bytes != 0)
    return make_error(EPROTO, "the server takes payloads of {} bytes", welcome.max_payload_bytes);
  if (welcome.slots < NETBLK2_MIN_SLOTS || welcome.slots > NETBLK2_MAX_SLOTS)
    return make_error(EPROTO, "the server grants {} slots", welcome.slots);
  if (welcome.max_connections == 0 || welcome.max_connections > NETBLK2_MAX_CONNECTIONS)
    return make_error(EPROTO, "the server grants {} connections", welcome.max_connections);
  for (const proto::Feature2& feature : welcome.features) {
    if (proto::find_feature(offered, feature.number) == nullptr)
      return make_error(EPROTO, "the server agrees to a feature that was not offered: {}", feature.name);
    const bool beats = feature.number == NETBLK2_FEATURE_HEARTBEAT;
    if (beats && (feature.value < NETBLK2_MIN_HEARTBEAT_MS || feature.value > NETBLK2_MAX_HEARTBEAT_MS))
      return make_error(EPROTO, "the server wants a heartbeat every {} ms", feature.value);
  }
  bool packs = false;
  bool must_pack = false;
  for (const proto::Feature2& feature : offered) {
    const bool agreed = proto::find_feature(welcome.features, feature.number) != nullptr;
    if (feature.number == NETBLK2_FEATURE_LZ4 || feature.number == NETBLK2_FEATURE_ZSTD) {
      packs = packs || agreed;
      must_pack = must_pack || feature.mandatory;
    } else if (feature.mandatory && !agreed) {
      return make_error(EOPNOTSUPP, "the server does not have the feature {}", feature.name);
    }
  }
  if (must_pack && !packs) return make_error(EOPNOTSUPP, "the server does not compress");
  return std::nullopt;
}

Terms2 terms_of(const proto::Welcome2& welcome) {
  const auto has = [&](uint16_t number) { return proto::find_feature(welcome.features, number) != nullptr; };
  Terms2 terms;
  terms.framing.crc = has(NETBLK2_FEATURE_CRC32C);
  terms.framing.lz4 = has(NETBLK2_FEATURE_LZ4);
  terms.framing.zstd = has(NETBLK2_FEATURE_ZSTD);
  terms.framing.times = has(NETBLK2_FEATURE_TIMES);
  terms.framing.max_payload_bytes = welcome.max_payload_bytes;
  if (terms.framing.zstd) terms.pack_flag = NETBLK2_ZSTD;
  if (terms.framing.lz4) terms.pack_flag = NETBLK2_LZ4;
  if (const auto* beat = proto::find_feature(welcome.features, NETBLK2_FEATURE_HEARTBEAT))
    terms.heartbeat_ms = beat->value;
  terms.resize = has(NETBLK2_FEATURE_RESIZE);
  return terms;
}

Session2Info info_of(const proto::Welcome2& welcome) {
  const Terms2 terms = terms_of(welcome);
  Session2Info info;
  info.session_id = welcome.session_id;
  info.generation = {welcome.store_uuid, welcome.generation};
  info.size_bytes = welcome.size_bytes;
  info.block_bytes = welcome.block_bytes;
  info.preferred_bytes = welcome.preferred_bytes;
  info.max_payload_bytes = welcome.max_payload_bytes;
  info.slots = welcome.slots;
  info.max_connections = welcome.max_connections;
  info.read_only = (welcome.flags & NETBLK2_WELCOME_READ_ONLY) != 0;
  info.can_trim = (welcome.flags & NETBLK2_WELCOME_TRIM) != 0;
  info.rotational = (welcome.flags & NETBLK2_WELCOME_ROTATIONAL) != 0;
  info.crc32c = terms.framing.crc;
  info.lz4 = terms.framing.lz4;
  info.zstd = terms.framing.zstd;
  info.resize = terms.resize;
  info.times = terms.framing.times;
  info.heartbeat_ms = terms.heartbeat_ms;
  return info;
}

Error refusal(const proto::Welcome2& welcome) {
  const int code = proto::error_of(welcome.status);
  return make_error(code, "the server refuses: {}", welcome.body.empty() ? errno_text(code) : welcome.body);
}

uint32_t Session2::asked_slots() const {
  return std::clamp<uint32_t>(options_.slots, NETBLK2_MIN_SLOTS, NETBLK2_MAX_SLOTS);
}

proto::Hello2 Session2::hello_of(const Link2& link) {
  proto::Hello2 hello;
  if (!options_.read_only) hello.flags = NETBLK2_HELLO_WRITE;
  if (options_.shared) hello.flags |= NETBLK2_HELLO_SHARED;
  // Only the user begins a session, and takes a disk over, by opening it: a client that was itself fenced must do neither.
  if (!known_) hello.flags |= NETBLK2_HELLO_BEGIN;
  if (options_.takeover && !known_) hello.flags |= NETBLK2_HELLO_TAKEOVER;
  hello.connection = static_cast<uint16_t>(link.index);
  hello.slots = asked_slots();
  hello.client_id = options_.client_id;
  hello.session_id = session_id_;
  hello.epoch = ++epoch_;
  if (known_) {
    hello.store_uuid = generation_.uuid;
    hello.generation = generation_.counter;
  }
  hello.features = offered_;
  hello.export_name = options_.export_name;
  return hello;
}

Error Session2::refused(const proto::Welcome2& welcome) {
  Error error = refusal(welcome);
  if (known_ && error.code == ESTALE) {
    // Final: what this client knows of the disk may be old by now, and its user must decide.
    error.message = fmt::format("fenced: the session is over ({})", error.message);
    fatal_ = true;
    give_up(error.message);
  }
  return error;
}

// What of a sound welcome does not fit the session.
std::optional<Error> Session2::breaks_session(const proto::Welcome2& welcome) const {
  const bool begun = (welcome.flags & NETBLK2_WELCOME_NEW) != 0;
  const bool adopted = (welcome.flags & NETBLK2_WELCOME_ADOPTED) != 0;
  if (welcome.session_id != session_id_ || (begun && known_) || (adopted && !known_))
    return make_error(EPROTO, "the welcome is for another session than was asked for");
  if (!known_) return std::nullopt;
  if (welcome.block_bytes != block_bytes_)
    return make_error(EPROTO, "the export's blocks have {} bytes now, and had {}", welcome.block_bytes, block_bytes_);
  if (welcome.max_payload_bytes < max_payload_bytes_ || welcome.slots < slots_.size())
    return make_error(EPROTO, "the server takes less at once than when the session began");
  return std::nullopt;
}

// No reply of the other connections is read after this: what they acknowledge belongs to the generation before.
coro::Task<void> Session2::reset_others(const Link2& but) {
  for (;;) {
    bool any = false;
    for (auto& link : links_) {
      if (link.get() == &but || !link->connected()) continue;
      link->fail(make_error(ECANCELED, "the generation of the store moved"));
      any = true;
    }
    if (!any) break;
    co_await others_ended_.wait();
  }
}

coro::Task<Result<Terms2>> Session2::adopt(Link2& link, const proto::Welcome2& welcome) {
  if (welcome.status != NETBLK2_OK) co_return refused(welcome);
  if (auto error = unsound(welcome, offered_)) co_return *error;
  if (known_ && welcome.store_uuid != generation_.uuid) {
    const std::string why = fmt::format("the export is now another store ({}, was {})", id_text(welcome.store_uuid),
                                        id_text(generation_.uuid));
    if (state() != State::kError) give_up(why);
    co_return make_error(EIO, "{}", why);
  }
  if (auto error = breaks_session(welcome)) co_return *error;

  const bool moved = known_ && welcome.generation != generation_.counter;
  if (moved) {
    co_await reset_others(link);
    if (!may_connect(link) || link.over()) co_return make_error(ECONNRESET, "the connection ended within its welcome");
  }
  {
    const Bulk bulk(*this);
    if (moved) note_generation(welcome);
    if (!known_) {
      slots_.resize(std::min(welcome.slots, asked_slots()), static_cast<uint32_t>(random_()));
      max_payload_bytes_ = welcome.max_payload_bytes;
    }
    generation_ = {welcome.store_uuid, welcome.generation};
    block_bytes_ = welcome.block_bytes;
    max_links_ = welcome.max_connections;
    if ((welcome.flags & NETBLK2_WELCOME_ADOPTED) != 0) inherit(link);
    {
      const std::lock_guard lock(mutex_);
      info_ = info_of(welcome);
      info_.slots = slots_.size();
      info_.max_payload_bytes = max_payload_bytes_;
    }
    set_size(welcome.size_bytes);
    if (std::exchange(link.was_welcomed, true)) reconnects_.fetch_add(1, std::memory_order_relaxed);
    known_ = true;
    link.up = link.was_up = true;
    link.up_since_ms = loop_.now_ms();
    ++up_;
    shown_up_ = up_;
    set_fence(link, false);
    dead_since_ms_ = 0;
    set_state(State::kConnected);
  }
  Terms2 terms = terms_of(welcome);
  terms.framing.max_payload_bytes = max_payload_bytes_;
  if (!outcome_) {
    outcome_.emplace(Ok{});
    opened_.set();
  }
  co_return terms;
}

// Writes that were acknowledged may be gone. Nothing that was acknowledged since the last flush: no harm, and what was
// not acknowledged is replayed. Otherwise the user must not be told of a success that flushes them.
void Session2::note_generation(const proto::Welcome2& welcome) {
  const uint64_t gone = unflushed();
  log_warning("{}: the store's generation moved from {} to {}; {} acknowledged changes were not flushed", options_.name,
              generation_.counter, welcome.generation, gone);
  if (gone == 0) return;
  const std::string why =
      fmt::format("the server lost its memory of up to {} acknowledged changes (generation {}, was {})", gone,
                  welcome.generation, generation_.counter);
  flushed_ = acknowledged_.load();
  {
    const std::lock_guard lock(mutex_);
    lost_reason_ = why;
  }
  lost_.store(true, std::memory_order_release);
  log_error("{}: LOST: {}; flushes end with EIO until the loss is acknowledged", options_.name, why);
  if (options_.on_lost) options_.on_lost(why);
  for (uint32_t number = 0; number < slots_.size(); ++number) {
    Slot2& slot = slots_[number];
    if (slot.use == Slot2::Use::kFree || slot.request == nullptr) continue;
    if (slot.type != NETBLK2_FLUSH && (slot.flags & NETBLK2_FUA) == 0) continue;
    if (slot.numbered) {
      give_up_slot(number, EIO);
      continue;
    }
    block::Request& request = *slot.request;
    slots_.give_back(number);
    end_part(request, EIO);
  }
}

// A restarted server may grant fewer connections: what the others carried went to the process before it, which is gone,
// and is replayed here. The slots and sequences stay: this server's ledger may know them already.
void Session2::inherit(const Link2& link) {
  for (Slot2& slot : slots_.all())
    if (slot.use != Slot2::Use::kFree && slot.link != kNoLink && slot.link >= max_links_ && !slot.on_wire) {
      slot.link = link.index;
      if (slot.numbered) slot.use = Slot2::Use::kWaiting;
    }
  for (auto& other : links_)
    if (other->index >= max_links_ && !other->connected()) set_fence(*other, false);
}

bool Session2::resized(uint64_t size_bytes) {
  if (size_bytes == 0 || size_bytes > limits::kMaxDeviceBytes || size_bytes % block_bytes_ != 0) return false;
  set_size(size_bytes);
  return true;
}

void Session2::set_size(uint64_t size_bytes) {
  const uint64_t before = std::exchange(size_bytes_, size_bytes);
  if (before == size_bytes) return;
  {
    const std::lock_guard lock(mutex_);
    info_.size_bytes = size_bytes;
    if (on_size_) on_size_(size_bytes);
  }
  if (before == 0) return;
  log_info("{}: {} bytes now, {} before", options_.name, size_bytes, before);
  if (options_.on_resize) options_.on_resize(size_bytes);
}

}  // namespace netblk::client
