// SPDX-License-Identifier: GPL-2.0-only
#include "client/nbd_session.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.h"

namespace netblk::client {

using block::Command;
using block::Request;
using proto::NbdExport;

NbdSession::NbdSession(io::Loop& loop, io::Dialer& dialer, const NbdOptions& options, Random random)
    : loop_(loop),
      dialer_(dialer),
      options_(options),
      random_(std::move(random)),
      slots_(options.slots),
      unassigned_(slots_.all()),
      sweep_(*this) {
  NETBLK_CHECK(options.connections >= 1 && options.connections <= kMaxNbdConnections, "a session of no connection");
  for (unsigned i = 0; i < options.connections; ++i) links_.push_back(std::make_unique<NbdLink>(*this, i));
}

NbdSession::~NbdSession() { NETBLK_CHECK(requests_ == 0, "a session is destroyed with requests in it"); }

// ---- opening and closing

coro::Task<Status> NbdSession::open() {
  for (auto& link : links_) scope_.spawn(keep(*link));
  while (!outcome_) co_await opened_.wait();
  if (!outcome_->ok()) co_await stop();
  co_return *outcome_;
}

coro::Task<void> NbdSession::close() {
  if (closing_) co_return;
  draining_ = true;
  close_at_ms_ = loop_.now_ms() + options_.close_timeout_ms;
  arm_sweep();
  while (requests_ > 0 && loop_.now_ms() < close_at_ms_) co_await closing_wake_.wait();
  if (requests_ == 0) {
    close_at_ms_ = loop_.now_ms() + options_.close_timeout_ms;
    arm_sweep();
    for (auto& link : links_)
      if (link->up) link->say_goodbye();
    // The server closes upon it.
    while (up_ > 0 && loop_.now_ms() < close_at_ms_) co_await closing_wake_.wait();
  }
  co_await stop();
}

coro::Task<void> NbdSession::stop() {
  closing_ = true;
  for (auto& link : links_) link->fail(make_error(ECANCELED, "the client closes"));
  wake_links();
  co_await scope_.join();
  end_all(EIO);
  sweep_.cancel();
  while (sweep_.queued) co_await io::SleepUntil(loop_, loop_.now_ms());
  for (auto& link : links_) co_await link->settle_alarm();
}

// ---- links

coro::Task<void> NbdSession::keep(NbdLink& link) {
  for (;;) {
    const bool go = co_await its_turn(link);
    if (!go) break;
    auto connected = co_await connect(link);
    Status adopted = Ok{};
    if (connected) adopted = adopt(link, connected.value());
    if (!connected) {
      link.fail(connected.error());
    } else if (!adopted) {
      link.fail(adopted.error());
    } else {
      wake_links();
      co_await link.serve(connected.value());
    }
    const Error why = !connected ? connected.error() : link.error();
    if (link.connected()) {
      link.end();
      ended(link, why);
    }
    failed(link, why);
    wake_links();
  }
}

// False: the session closes.
coro::Task<bool> NbdSession::its_turn(NbdLink& link) {
  while (!closing_) {
    const uint64_t now = loop_.now_ms();
    if (may_connect(link) && now >= link.retry_at_ms) break;
    if (now < link.retry_at_ms) link.alarm_at(link.retry_at_ms);
    co_await link.wake.wait();
  }
  co_return !closing_;
}

bool NbdSession::may_connect(const NbdLink& link) const {
  // A closing client without requests needs no connection.
  if (closing_ || fatal_ || giving_up_ || (draining_ && requests_ == 0)) return false;
  if (known_ && state() == State::kError && !options_.retry_after_error) return false;
  return link.index == 0 || (known_ && has(NBD_FLAG_CAN_MULTI_CONN));
}

coro::Task<Result<NbdExport>> NbdSession::connect(NbdLink& link) {
  auto dialed = co_await dialer_.dial(loop_, loop_.now_ms() + options_.connect_timeout_ms);
  if (!may_connect(link)) co_return make_error(ECANCELED, "the session ended meanwhile");
  if (!dialed) co_return std::move(dialed).error();
  proto::NbdWish wish{.export_name = options_.export_name,
                      .structured = options_.structured,
                      .extended = options_.extended,
                      .allocation = options_.allocation};
  auto found = co_await link.greet(std::move(dialed).value(), std::move(wish));
  if (found && !may_connect(link)) co_return make_error(ECANCELED, "the session ended meanwhile");
  co_return found;
}

// What is promised to the users must stay true; NBD tells no more of an export's identity than this.
std::optional<Error> NbdSession::is_another(const NbdExport& found) const {
  constexpr unsigned kPromised = NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
                                 NBD_FLAG_SEND_CACHE | NBD_FLAG_SEND_FAST_ZERO;
  if (found.size_bytes < known_->size_bytes)
    return make_error(ESTALE, "it has {} bytes now, and had {}", found.size_bytes, known_->size_bytes);
  if (found.read_only() && !known_->read_only() && !options_.read_only) return make_error(ESTALE, "it is read-only now");
  if ((known_->flags & ~found.flags & kPromised) != 0)
    return make_error(ESTALE, "it had the flags {:#06x}, and has {:#06x} now", known_->flags, found.flags);
  if (known_->has(NBD_FLAG_CAN_MULTI_CONN) && !found.has(NBD_FLAG_CAN_MULTI_CONN) && options_.connections > 1)
    return make_error(ESTALE, "it cannot be used over several connections any more");
  if (found.min_block_bytes > known_->min_block_bytes || found.max_payload_bytes < known_->max_payload_bytes)
    return make_error(ESTALE, "its block sizes have changed");
  if ((known_->extended && !found.extended) || (known_->structured && !found.structured) ||
      (known_->allocation_id && !found.allocation_id))
    return make_error(ESTALE, "its server speaks less of NBD than before");
  return std::nullopt;
}

Status NbdSession::adopt(NbdLink& link, const NbdExport& found) {
  if (!known_) {
    known_ = found;
    {
      const std::lock_guard lock(mutex_);
      info_.found = found;
      if (found.has(NBD_FLAG_CAN_MULTI_CONN)) info_.connections = options_.connections;
    }
    outcome_.emplace(Ok{});
    opened_.set();
  } else if (auto error = is_another(found)) {
    error->message = "the export is not what it was: " + error->message + "; all I/O fails until it is opened anew";
    fatal_ = true;
    link.fail(*error);
    give_up(error->message);
    return *error;
  } else if (found.size_bytes > known_->size_bytes) {
    log_info("{}: the export has grown from {} to {} bytes", options_.name, known_->size_bytes, found.size_bytes);
    known_->size_bytes = found.size_bytes;
    {
      const std::lock_guard lock(mutex_);
      info_.found.size_bytes = found.size_bytes;
      if (on_size_) on_size_(found.size_bytes);
    }
    if (options_.on_resize) options_.on_resize(found.size_bytes);
  }
  if (std::exchange(link.ever_up, true)) {
    ++reconnects_;
    // Before any reply of the new connection is delivered.
    if (unflushed() > 0 && !options_.trust_reconnect) set_lost();
  }
  link.up = link.was_up = true;
  link.up_since_ms = loop_.now_ms();
  ++up_;
  shown_up_ = up_;
  dead_since_ms_ = 0;
  set_state(State::kConnected);
  pump();
  return Ok{};
}

void NbdSession::set_lost() {
  if (lost()) return;
  const std::string why = fmt::format("the connection was made anew with {} acknowledged changes that were not flushed: NBD "
                                      "does not tell whether the server still has them", unflushed());
  {
    const std::lock_guard lock(mutex_);
    lost_reason_ = why;
  }
  // What was acknowledged is gone or not; either way the loss that is reported covers it.
  flushed_ = acknowledged_.load();
  lost_.store(true, std::memory_order_release);
  log_error("{}: {}; every flush fails until the loss is acknowledged", options_.name, why);
  if (options_.on_lost) options_.on_lost(why);
}

// The operations of the connection have ended: memory is the users' again.
void NbdSession::ended(NbdLink& link, const Error& why) {
  if (link.was_up) {
    --up_;
    shown_up_ = up_;
    if (loop_.now_ms() - link.up_since_ms >= kSoundMs) link.backoff_ms = 0;
  }
  if (preferred_ == &link) preferred_ = nullptr;
  if (up_ == 0 && !closing_ && state() == State::kConnected) set_state(State::kConnecting);
  bulk_ = true;
  for (uint32_t number = 0; number < slots_.size(); ++number) {
    NbdSlot& slot = slots_[number];
    if (!link.carries(slot)) continue;
    slot.use = NbdSlot::Use::kWaiting;
    if (why.code == EPROTO) ++slot.faults;
    if (slot.expired)
      end_slot(number, ETIMEDOUT);
    else if (slot.faults >= kMaxFaults)
      end_slot(number, EIO);
  }
  requeue();
  if (giving_up_) finish_giving_up();
  if (requests_ > 0 && dead_since_ms_ == 0 && up_ == 0) dead_since_ms_ = loop_.now_ms();
  closing_wake_.set();
}

void NbdSession::failed(NbdLink& link, const Error& error) {
  link.was_up = false;
  if (closing_ || error.code == ECANCELED || (draining_ && requests_ == 0)) return;
  if (!known_) {
    fatal_ = true;
    outcome_.emplace(error);
    opened_.set();
    return;
  }
  // What made an end of it stays the reason, however the other connections end.
  if (fatal_) return;
  const std::string text = fmt::format("connection {}: {}", link.index, error.message);
  bool repeated = false;
  {
    const std::lock_guard lock(mutex_);
    repeated = last_error_ == text;
  }
  if (!repeated) log_warning("{}: {}", options_.name, text);
  set_last_error(text);
  back_off(link);
}

void NbdSession::back_off(NbdLink& link) {
  const uint64_t now = loop_.now_ms();
  if (link.backoff_ms == 0) {
    link.backoff_ms = std::max<uint64_t>(options_.min_backoff_ms, 1);
    link.retry_at_ms = now + random_() % link.backoff_ms;
    return;
  }
  link.retry_at_ms = now + link.backoff_ms / 2 + random_() % (link.backoff_ms / 2 + 1);
  link.backoff_ms = std::min(link.backoff_ms * 2, std::max(options_.max_backoff_ms, options_.min_backoff_ms));
}

void NbdSession::wake_links() {
  for (auto& link : links_) link->wake.set();
}

// ---- requests

bool NbdSession::refuses(const Request& request) const {
  return lost() && (request.command == Command::kFlush || (request.fua && request.modifies()));
}

void NbdSession::submit(Request& request) {
  const Parts parts{request};
  parts.begun() = 0;
  parts.in_flight() = 0;
  parts.queued() = 0;
  parts.since_ns() = loop_.now_ns();
  request.error = 0;
  ++requests_;
  if (draining_ || giving_up_ || fatal_ || state() == State::kError) return finish(request, EIO);
  if (refuses(request)) return finish(request, EIO);
  if (request.is_abandoned()) return finish(request, ECANCELED);
  push_waiting(request);
  if (!sweep_.armed()) {
    arm_sweep();
    if (dead_since_ms_ == 0 && up_ == 0) dead_since_ms_ = parts.since_ms();
  }
  pump();
}

void NbdSession::push_waiting(Request& request) {
  Parts{request}.queued() = 1;
  request.held.next = nullptr;
  if (waiting_ == nullptr)
    waiting_ = &request;
  else
    last_waiting_->held.next = &request;
  last_waiting_ = &request;
}

void NbdSession::pop_waiting() {
  Request& request = *waiting_;
  waiting_ = request.held.next;
  Parts{request}.queued() = 0;
}

void NbdSession::pump() {
  // A link that is over counts as up until its operations have ended.
  if (bulk_ || pick() == nullptr) return;
  while (!unassigned_.empty()) assign(unassigned_.pop());
  slice_waiting();
}

// A server without FUA: a FLUSH after the change is the same.
bool NbdSession::needs_flush(const Request& request) const {
  return request.fua && request.modifies() && !has(NBD_FLAG_SEND_FUA) && has(NBD_FLAG_SEND_FLUSH);
}

// A request takes slots, one for each part that the server takes at once; then it leaves the queue.
void NbdSession::slice_waiting() {
  while (waiting_ != nullptr && !slots_.full()) {
    Request& request = *waiting_;
    const Parts parts{request};
    if (parts.begun() == 0 && (refuses(request) || request.is_abandoned())) {
      pop_waiting();
      finish(request, refuses(request) ? EIO : ECANCELED);
      continue;
    }
    const uint32_t number = slots_.take();
    NbdSlot& slot = slots_[number];
    slot.use = NbdSlot::Use::kWaiting;
    slot.request = &request;
    slice(request, slot);
    ++parts.in_flight();
    if (parts.begun() >= parts.whole()) pop_waiting();
    assign(number);
  }
}

void NbdSession::slice(Request& request, NbdSlot& slot) {
  const Parts parts{request};
  proto::NbdInFlight& wire = slot.wire;
  const uint64_t block = known_->min_block_bytes;
  uint64_t most = known_->extended ? INT64_MAX : UINT32_MAX / block * block;
  const bool fua = request.fua && has(NBD_FLAG_SEND_FUA);
  wire.flags = 0;
  wire.data = nullptr;
  switch (request.command) {
    case Command::kRead:
      wire.type = NBD_CMD_READ;
      most = known_->max_payload_bytes;
      break;
    case Command::kWrite:
      wire.type = NBD_CMD_WRITE;
      most = known_->max_payload_bytes;
      break;
    case Command::kFlush: wire.type = NBD_CMD_FLUSH; break;
    case Command::kTrim: wire.type = NBD_CMD_TRIM; break;
    case Command::kWriteZeroes:
      wire.type = NBD_CMD_WRITE_ZEROES;
      if (request.keep_allocated) wire.flags |= NBD_CMD_FLAG_NO_HOLE;
      if (request.fast_zero) wire.flags |= NBD_CMD_FLAG_FAST_ZERO;
      break;
    case Command::kCache:
      wire.type = NBD_CMD_CACHE;
      most = known_->max_payload_bytes;
      break;
    case Command::kBlockStatus:
      wire.type = NBD_CMD_BLOCK_STATUS;
      if (request.max_extents == 1) wire.flags |= NBD_CMD_FLAG_REQ_ONE;
      break;
  }
  // The last part of a change with FUA that is a FLUSH.
  if (request.command != Command::kFlush && parts.begun() == request.length) wire.type = NBD_CMD_FLUSH;
  if (wire.type == NBD_CMD_FLUSH) {
    wire.flags = 0;
    wire.offset = wire.length = 0;
    ++parts.begun();
    return;
  }
  if (fua && request.modifies()) wire.flags |= NBD_CMD_FLAG_FUA;
  wire.offset = request.offset + parts.begun();
  wire.length = std::min(request.length - parts.begun(), most);
  if (request.data != nullptr) wire.data = request.data + parts.begun();
  // An answer about the status may be cut short: there is one part.
  parts.begun() += request.command == Command::kBlockStatus ? request.length : wire.length;
}

NbdLink* NbdSession::pick() {
  if (up_ == 0) return nullptr;
  NbdLink* least = nullptr;
  for (const auto& link : links_)
    if (link->up && !link->over() && (least == nullptr || link->load < least->load)) least = link.get();
  if (least == nullptr) return nullptr;
  if (preferred_ == nullptr || !preferred_->up || preferred_->over() || preferred_->load > least->load + kSpreadLoad)
    preferred_ = least;
  return preferred_;
}

void NbdSession::assign(uint32_t number) {
  NbdLink* const link = pick();
  slots_[number].link = link == nullptr ? kNoLink : link->index;
  if (link == nullptr) return unassigned_.push(number);
  link->load += slots_[number].load();
  link->push(number);
}

// Every queue of slots from what the slots say themselves: what no link carries any more goes to any that is up. There is
// no fence that a replay would have to wait for.
void NbdSession::requeue() {
  bulk_ = false;
  unassigned_.clear();
  for (auto& link : links_) {
    link->queue.clear();
    link->load = 0;
  }
  for (uint32_t number = 0; number < slots_.size(); ++number) {
    NbdSlot& slot = slots_[number];
    if (slot.use == NbdSlot::Use::kSent) links_[slot.link]->load += slot.load();
  }
  for (uint32_t number = 0; number < slots_.size(); ++number)
    if (slots_[number].use == NbdSlot::Use::kWaiting) assign(number);
  pump();
}

void NbdSession::sending(NbdSlot& slot, uint32_t number, unsigned link) {
  if (slot.sent_before) replayed_.fetch_add(1, std::memory_order_relaxed);
  slot.sent_before = true;
  slot.use = NbdSlot::Use::kSent;
  slot.link = link;
  slot.wire.cookie = NbdSlots::cookie_of(number, ++slot.turn);
  slot.wire.begin();
  slot.sent_ns = links_[link]->batch_ns();
  if (slot.wire.type == NBD_CMD_BLOCK_STATUS) slot.request->extents->clear();
  // What was acknowledged up to here is what this flush, when it succeeds, has made durable.
  if (slot.wire.type == NBD_CMD_FLUSH) slot.flush_mark = acknowledged_.load(std::memory_order_relaxed);
}

bool NbdSession::withdrawn(uint32_t number) {
  NbdSlot& slot = slots_[number];
  if (slot.sent_before || !slot.request->is_abandoned()) return false;
  links_[slot.link]->load -= slot.load();
  end_slot(number, ECANCELED);
  return true;
}

void NbdSession::answered(uint32_t number, int error) {
  NbdSlot& slot = slots_[number];
  links_[slot.link]->load -= slot.load();
  times_.answered(slot.request->command, slot.sent_ns - Parts{*slot.request}.since_ns(),
                  links_[slot.link]->heard_ns() - slot.sent_ns);
  if (error == 0) {
    const bool changes = slot.wire.type == NBD_CMD_WRITE || slot.wire.type == NBD_CMD_TRIM || slot.wire.type == NBD_CMD_WRITE_ZEROES;
    if (slot.wire.type == NBD_CMD_FLUSH) {
      if (slot.flush_mark > flushed_.load(std::memory_order_relaxed)) flushed_ = slot.flush_mark;
    } else if (changes && (slot.wire.flags & NBD_CMD_FLAG_FUA) == 0) {
      acknowledged_.store(acknowledged_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }
    // What was in flight when the loss was found out, too.
    if (refuses(*slot.request)) error = EIO;
  }
  end_slot(number, error);
  if (waiting_ != nullptr) pump();
}

void NbdSession::end_slot(uint32_t number, int error) {
  Request& request = *slots_[number].request;
  slots_.give_back(number);
  end_part(request, error);
}

void NbdSession::end_part(Request& request, int error) {
  const Parts parts{request};
  --parts.in_flight();
  if (error != 0 && request.error == 0) request.error = error;
  if (request.error != 0 && parts.queued() != 0) {
    NETBLK_CHECK(waiting_ == &request, "a request that was begun is not the first in the queue");
    pop_waiting();
  }
  if (parts.in_flight() > 0 || parts.queued() != 0) return;
  if (request.error == 0 && parts.begun() == request.length && needs_flush(request)) {
    // Only now, so that the FLUSH covers every part. A slot is free: the last part has just given back its own.
    const uint32_t number = slots_.take();
    NbdSlot& slot = slots_[number];
    slot.use = NbdSlot::Use::kWaiting;
    slot.request = &request;
    slice(request, slot);
    ++parts.in_flight();
    return assign(number);
  }
  finish(request, request.error);
}

void NbdSession::finish(Request& request, int error) {
  if (error == ETIMEDOUT) timed_out_.fetch_add(1, std::memory_order_relaxed);
  if (--requests_ == 0) {
    dead_since_ms_ = 0;
    times_.set_oldest_since(0);
    if (draining_) closing_wake_.set();
  }
  if (request.loop == &loop_) return std::move(request.held.completion).finish(error);
  request.error = error;
  request.held.hop.send(request, [](Request& home) { std::move(home.held.completion).finish(home.error); });
}

void NbdSession::end_all(int error) {
  bulk_ = true;
  for (uint32_t number = 0; number < slots_.size(); ++number) {
    NbdSlot& slot = slots_[number];
    if (slot.use == NbdSlot::Use::kFree) continue;
    NETBLK_CHECK(slot.use == NbdSlot::Use::kWaiting, "a request ends while a connection has its memory");
    end_slot(number, error);
  }
  while (waiting_ != nullptr) {
    Request& request = *waiting_;
    pop_waiting();
    finish(request, error);
  }
  requeue();
}

// ---- deadlines

uint64_t NbdSession::age_ms(Request& request, uint64_t now_ms) const {
  const uint64_t since_ms = Parts{request}.since_ms();
  return now_ms > since_ms ? now_ms - since_ms : 0;
}

uint64_t NbdSession::oldest_since_ns() {
  uint64_t oldest_ns = waiting_ == nullptr ? UINT64_MAX : Parts{*waiting_}.since_ns();
  for (const auto& slot : slots_.all())
    if (slot.request != nullptr) oldest_ns = std::min(oldest_ns, Parts{*slot.request}.since_ns());
  return oldest_ns == UINT64_MAX ? 0 : oldest_ns;
}

void NbdSession::arm_sweep() {
  uint64_t period = std::min(kSweepMs, std::max<uint64_t>(options_.dead_time_ms / 4, 1));
  if (options_.request_timeout_ms != 0) period = std::min(period, std::max<uint64_t>(options_.request_timeout_ms / 4, 1));
  uint64_t at = loop_.now_ms() + period;
  if (draining_ && close_at_ms_ > loop_.now_ms()) at = std::min(at, close_at_ms_);
  if (!sweep_.queued) sweep_.arm(at);
}

void NbdSession::sweep() {
  const uint64_t now = loop_.now_ms();
  if (draining_ && now >= close_at_ms_) closing_wake_.set();
  if (options_.request_timeout_ms != 0) expire(now);
  times_.set_oldest_since(oldest_since_ns());
  if (requests_ == 0 || up_ > 0)
    dead_since_ms_ = 0;
  else if (dead_since_ms_ == 0)
    dead_since_ms_ = now;
  else if (now - dead_since_ms_ >= options_.dead_time_ms && !giving_up_)
    give_up(fmt::format("no server for {} ms", options_.dead_time_ms));
  if (requests_ > 0 || (draining_ && now < close_at_ms_)) arm_sweep();
}

void NbdSession::expire(uint64_t now) {
  const uint64_t limit = options_.request_timeout_ms;
  const auto is_due = [&](const NbdSlot& slot) {
    return slot.use != NbdSlot::Use::kFree && !slot.expired && age_ms(*slot.request, now) >= limit;
  };
  // Queues that are made anew are in the order of the slots: at every sweep of a busy link, that would starve the last.
  const std::vector<NbdSlot>& slots = slots_.all();
  if (std::none_of(slots.begin(), slots.end(), is_due) && (waiting_ == nullptr || age_ms(*waiting_, now) < limit)) return;
  bulk_ = true;
  for (uint32_t number = 0; number < slots_.size(); ++number) {
    NbdSlot& slot = slots_[number];
    if (!is_due(slot)) continue;
    if (slot.use == NbdSlot::Use::kWaiting) {
      end_slot(number, ETIMEDOUT);
    } else {
      slot.expired = true;
      links_[slot.link]->fail(make_error(ETIMEDOUT, "no answer within {} ms", limit));
    }
  }
  while (waiting_ != nullptr && Parts{*waiting_}.in_flight() == 0 && age_ms(*waiting_, now) >= limit) {
    Request& request = *waiting_;
    pop_waiting();
    finish(request, ETIMEDOUT);
  }
  requeue();
}

// All requests end when the connections have.
void NbdSession::give_up(std::string why) {
  log_error("{}: giving up: {}; {} waiting requests end with EIO", options_.name, why, requests_);
  set_last_error(why);
  giving_up_ = true;
  set_state(State::kError);
  for (auto& link : links_) link->fail(make_error(EIO, "{}", why));
  finish_giving_up();
}

void NbdSession::finish_giving_up() {
  for (const auto& link : links_)
    if (link->connected()) return;
  end_all(EIO);
  dead_since_ms_ = 0;
  giving_up_ = false;
  wake_links();
}

// ---- what others see

void NbdSession::set_state(State state) {
  if (state_.exchange(state, std::memory_order_relaxed) == state) return;
  if (known_) log_info("{}: {}", options_.name, state_text(state));
  if (options_.on_state) options_.on_state(state);
}

void NbdSession::set_last_error(const std::string& text) {
  const std::lock_guard lock(mutex_);
  last_error_ = text;
}

NbdInfo NbdSession::info() const {
  const std::lock_guard lock(mutex_);
  return info_;
}

ClientStatus NbdSession::status() const {
  ClientStatus now;
  now.state = state();
  now.connections = shown_up_;
  now.reconnects = reconnects_;
  now.replayed = replayed_;
  now.timed_out = timed_out_;
  const uint64_t flushed = flushed_;
  const uint64_t acknowledged = acknowledged_;
  now.unflushed = acknowledged > flushed ? acknowledged - flushed : 0;
  times_.show(now, loop_.now_ns());
  now.lost = lost();
  const std::lock_guard lock(mutex_);
  if (now.lost) now.lost_reason = lost_reason_;
  now.last_error = last_error_;
  return now;
}

void NbdSession::reset_lost() {
  if (!lost()) return;
  log_warning("{}: the loss is acknowledged; flushes work again", options_.name);
  lost_.store(false, std::memory_order_release);
}

}  // namespace netblk::client
