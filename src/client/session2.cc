// SPDX-License-Identifier: GPL-2.0-only
#include "client/session2.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/limits.h"
#include "base/log.h"

namespace netblk::client {

using block::Command;
using block::Request;

Session2::Session2(io::Loop& loop, io::Dialer& dialer, const Options2& options, Random random)
    : loop_(loop),
      dialer_(dialer),
      options_(options),
      random_(std::move(random)),
      offered_(offered_features(options)),
      unassigned_(slots_.all()),
      sweep_(*this) {
  acknowledged_ = options.unflushed;
  NETBLK_CHECK(options.connections >= 1 && options.connections <= NETBLK2_MAX_CONNECTIONS, "a session of no connection");
  NETBLK_CHECK(!options.client_id.is_zero(), "a client without an id");
  cookie_ = random_();
  do {
    for (uint8_t& byte : session_id_.bytes) byte = static_cast<uint8_t>(random_());
  } while (session_id_.is_zero());
  for (unsigned i = 0; i < options.connections; ++i) links_.push_back(std::make_unique<Link2>(*this, i));
}

Session2::~Session2() { NETBLK_CHECK(requests_ == 0, "a session is destroyed with requests in it"); }

// ---- opening and closing

coro::Task<Status> Session2::open() {
  open_until_ms_ = loop_.now_ms() + options_.open_timeout_ms;
  for (auto& link : links_) scope_.spawn(keep(*link));
  while (!outcome_) co_await opened_.wait();
  if (!outcome_->ok()) co_await stop();
  co_return *outcome_;
}

coro::Task<void> Session2::close() {
  if (closing_) co_return;
  draining_ = true;
  close_at_ms_ = loop_.now_ms() + options_.close_timeout_ms;
  arm_sweep();
  while (requests_ > 0 && loop_.now_ms() < close_at_ms_) co_await closing_wake_.wait();
  const auto said = std::find_if(links_.begin(), links_.end(), [](const auto& link) { return link->up; });
  if (requests_ == 0 && said != links_.end()) {
    Link2& link = **said;
    close_at_ms_ = loop_.now_ms() + options_.close_timeout_ms;
    arm_sweep();
    link.say_goodbye(++cookie_);
    while (link.up && !link.goodbye_answered() && loop_.now_ms() < close_at_ms_) co_await closing_wake_.wait();
  }
  co_await stop();
}

coro::Task<void> Session2::drop() {
  if (closing_) co_return;
  draining_ = true;
  co_await stop();
}

coro::Task<void> Session2::stop() {
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

coro::Task<void> Session2::keep(Link2& link) {
  for (;;) {
    const bool go = co_await its_turn(link);
    if (!go) break;
    greeting_ = &link;
    auto connected = co_await connect(link);
    if (connected) {
      greeting_ = nullptr;
      wake_links();
      co_await link.serve(connected.value());
    } else {
      link.fail(connected.error());
    }
    const Error why = connected ? link.error() : connected.error();
    if (link.connected()) {
      link.end();
      ended(link);
    }
    if (greeting_ == &link) greeting_ = nullptr;
    failed(link, why);
    wake_links();
  }
}

// False: the session closes.
coro::Task<bool> Session2::its_turn(Link2& link) {
  while (!closing_) {
    const uint64_t now = loop_.now_ms();
    if (may_connect(link) && now >= link.retry_at_ms && greeting_ == nullptr) break;
    if (now < link.retry_at_ms) link.alarm_at(link.retry_at_ms);
    co_await link.wake.wait();
  }
  co_return !closing_;
}

bool Session2::may_connect(const Link2& link) const {
  // A closing client without requests needs no connection.
  if (closing_ || fatal_ || giving_up_ || (draining_ && requests_ == 0)) return false;
  if (known_ && state() == State::kError && !options_.retry_after_error) return false;
  // The first begins the session; the others join.
  return link.index == 0 || (known_ && link.index < max_links_);
}

coro::Task<Result<Terms2>> Session2::connect(Link2& link) {
  auto dialed = co_await dialer_.dial(loop_, loop_.now_ms() + options_.connect_timeout_ms);
  if (!may_connect(link)) co_return make_error(ECANCELED, "the session ended meanwhile");
  if (!dialed) co_return std::move(dialed).error();
  load_for_greeting(link);
  auto hello = proto::encode_hello(hello_of(link));
  auto welcome = co_await link.greet(std::move(dialed).value(), std::move(hello), !blocked());
  if (!welcome) co_return std::move(welcome).error();
  auto adopted = co_await adopt(link, welcome.value());
  co_return adopted;
}

// What the link's last connection left unanswered, and what no link could take: READs of it ride along.
void Session2::load_for_greeting(Link2& link) {
  slice_waiting();
  for (uint32_t number = 0; number < slots_.size(); ++number) {
    Slot2& slot = slots_[number];
    if (slot.use == Slot2::Use::kSent && slot.link == link.index && !slot.on_wire) {
      slot.use = Slot2::Use::kWaiting;
      link.queue.push(number);
    }
  }
  if (up_ > 0) return;
  while (!unassigned_.empty()) {
    const uint32_t number = unassigned_.pop();
    slots_[number].link = link.index;
    link.load += slots_[number].load();
    link.queue.push(number);
  }
}

// The operations of the connection have ended: memory is the users' again.
void Session2::ended(Link2& link) {
  if (link.was_up) {
    --up_;
    shown_up_ = up_;
    if (loop_.now_ms() - link.up_since_ms >= kSoundMs) link.backoff_ms = 0;
  }
  if (preferred_ == &link) preferred_ = nullptr;
  if (up_ == 0 && !closing_ && state() == State::kConnected) set_state(State::kConnecting);
  {
    const Bulk bulk(*this);
    for (uint32_t number = 0; number < slots_.size(); ++number) {
      Slot2& slot = slots_[number];
      if (slot.use != Slot2::Use::kSent || !slot.on_wire || slot.link != link.index) continue;
      slot.on_wire = false;
      if (std::exchange(slot.expired, false)) give_up_slot(number, ETIMEDOUT);
    }
  }
  if (giving_up_) finish_giving_up();
  if (requests_ > 0 && dead_since_ms_ == 0 && !usable()) dead_since_ms_ = loop_.now_ms();
  others_ended_.set();
  closing_wake_.set();
}

void Session2::failed(Link2& link, const Error& error) {
  const bool was_up = std::exchange(link.was_up, false);
  if (closing_ || error.code == ECANCELED || (draining_ && requests_ == 0)) return;
  if (!known_) {
    if (error.code == EAGAIN && loop_.now_ms() < open_until_ms_) return back_off(link);
    fatal_ = true;
    outcome_.emplace(error);
    opened_.set();
    return;
  }
  const std::string text = fmt::format("connection {}: {}", link.index, error.message);
  bool repeated = false;
  {
    const std::lock_guard lock(mutex_);
    repeated = last_error_ == text;
  }
  if (!repeated) log_warning("{}: {}", options_.name, text);
  set_last_error(text);
  // A connection that was reset for a fence's sake is made again at once.
  if (link.must_fence && was_up)
    link.retry_at_ms = loop_.now_ms();
  else
    back_off(link);
}

void Session2::back_off(Link2& link) {
  const uint64_t now = loop_.now_ms();
  if (link.backoff_ms == 0) {
    link.backoff_ms = std::max<uint64_t>(options_.min_backoff_ms, 1);
    link.retry_at_ms = now + random_() % link.backoff_ms;
    return;
  }
  link.retry_at_ms = now + link.backoff_ms / 2 + random_() % (link.backoff_ms / 2 + 1);
  link.backoff_ms = std::min(link.backoff_ms * 2, std::max(options_.max_backoff_ms, options_.min_backoff_ms));
}

void Session2::wake_links() {
  for (auto& link : links_) link->wake.set();
}

void Session2::set_fence(Link2& link, bool on) {
  if (link.must_fence == on) return;
  link.must_fence = on;
  fences_ += on ? 1u : ~0u;
  if (fences_ == 0)
    for (auto& each : links_)
      if (each->up) each->wake_sender();
}

bool Session2::usable() const { return up_ > 0 && fences_ == 0; }

// ---- requests

void Session2::submit(Request& request) {
  const Parts parts{request};
  parts.begun() = 0;
  parts.in_flight() = 0;
  parts.queued() = 0;
  parts.since_ns() = loop_.now_ns();
  request.error = 0;
  ++requests_;
  if (draining_ || giving_up_ || state() == State::kError) return finish(request, EIO);
  if (lost() && (request.command == Command::kFlush || request.fua)) return finish(request, EIO);
  if (request.is_abandoned()) return finish(request, ECANCELED);
  parts.queued() = 1;
  request.held.next = nullptr;
  if (waiting_ == nullptr)
    waiting_ = &request;
  else
    last_waiting_->held.next = &request;
  last_waiting_ = &request;
  if (!sweep_.armed()) {
    arm_sweep();
    if (dead_since_ms_ == 0 && !usable()) dead_since_ms_ = parts.since_ms();
  }
  pump();
}

void Session2::pump() {
  if (bulk_ > 0 || up_ == 0) return;
  while (!unassigned_.empty()) assign(unassigned_.pop());
  slice_waiting();
}

void Session2::pop_waiting() {
  Request& request = *waiting_;
  waiting_ = request.held.next;
  Parts{request}.queued() = 0;
}

// A request takes slots, one for each part that the server takes at once; then it leaves the queue.
void Session2::slice_waiting() {
  while (waiting_ != nullptr && !slots_.full()) {
    Request& request = *waiting_;
    const Parts parts{request};
    if (parts.begun() == 0) {
      const bool refused = lost() && (request.command == Command::kFlush || request.fua);
      if (refused || request.is_abandoned()) {
        pop_waiting();
        finish(request, refused ? EIO : ECANCELED);
        continue;
      }
    }
    const uint32_t number = slots_.take();
    Slot2& slot = slots_[number];
    slot.use = Slot2::Use::kWaiting;
    slot.request = &request;
    slot.flags = request.fua && request.modifies() ? NETBLK2_FUA : 0;
    uint64_t most = ((uint64_t{1} << 32) - 1) / block_bytes_ * block_bytes_;
    switch (request.command) {
      case Command::kRead:
        slot.type = NETBLK2_READ;
        most = max_payload_bytes_;
        break;
      case Command::kWrite:
        slot.type = NETBLK2_WRITE;
        most = max_payload_bytes_;
        break;
      case Command::kTrim: slot.type = NETBLK2_TRIM; break;
      case Command::kWriteZeroes: slot.type = NETBLK2_WRITE_ZEROES; break;
      case Command::kFlush: slot.type = NETBLK2_FLUSH; break;
      case Command::kCache:
      case Command::kBlockStatus: NETBLK_CHECK(false, "netblk/2 has no such request: the edge answers it");
    }
    const bool ranged = request.command != Command::kFlush;
    const uint64_t left = parts.whole() - parts.begun();
    slot.offset = ranged ? request.offset + parts.begun() : 0;
    slot.length = ranged ? static_cast<uint32_t>(std::min(left, most)) : 0;
    parts.begun() += ranged ? slot.length : 1;
    ++parts.in_flight();
    if (parts.begun() == parts.whole()) pop_waiting();
    assign(number);
  }
}

Link2* Session2::pick() {
  if (up_ == 0) return nullptr;
  Link2* least = nullptr;
  for (const auto& link : links_)
    if (link->up && (least == nullptr || link->load < least->load)) least = link.get();
  if (preferred_ == nullptr || !preferred_->up || preferred_->load > least->load + kSpreadLoad) preferred_ = least;
  return preferred_;
}

void Session2::assign(uint32_t number) {
  Link2* const link = pick();
  slots_[number].link = link == nullptr ? kNoLink : link->index;
  if (link == nullptr) return unassigned_.push(number);
  link->load += slots_[number].load();
  link->push(number);
}

// Every queue of slots from what the slots say themselves.
void Session2::requeue() {
  unassigned_.clear();
  for (auto& link : links_) {
    link->queue.clear();
    link->load = 0;
  }
  for (uint32_t number = 0; number < slots_.size(); ++number) {
    Slot2& slot = slots_[number];
    if (slot.use == Slot2::Use::kFree) continue;
    if (slot.use == Slot2::Use::kWaiting) {
      Link2* const link = slot.link == kNoLink ? nullptr : links_[slot.link].get();
      if (link != nullptr && (link->up || link->connected())) {
        link->push(number);
      } else if (slot.numbered) {
        slot.use = Slot2::Use::kSent;  // until its link is welcomed again
      } else {
        slot.link = kNoLink;
        unassigned_.push(number);
      }
    }
    if (slot.link != kNoLink) links_[slot.link]->load += slot.load();
  }
}

void Session2::number(Slot2& slot) {
  if (slot.numbered) {
    if (slot.request != nullptr) replayed_.fetch_add(1, std::memory_order_relaxed);
    return;
  }
  slot.numbered = true;
  ++slot.sequence;
  slot.cookie = ++cookie_;
  // What was acknowledged up to here is what this flush, when it succeeds, has made durable.
  if (slot.type == NETBLK2_FLUSH) slot.flush_mark = acknowledged_.load(std::memory_order_relaxed);
}

bool Session2::withdrawn(uint32_t number) {
  Slot2& slot = slots_[number];
  if (slot.numbered || slot.request == nullptr || !slot.request->is_abandoned()) return false;
  Request& request = *slot.request;
  links_[slot.link]->load -= slot.load();
  slots_.give_back(number);
  end_part(request, ECANCELED);
  return true;
}

void Session2::answered(uint32_t number, int error) {
  Slot2& slot = slots_[number];
  links_[slot.link]->load -= slot.load();
  if (slot.request == nullptr) {
    slots_.give_back(number);
    return pump();
  }
  if (error == 0) {
    // The order is that of the rule: lost or not is judged by what the user was told before.
    if (slot.type == NETBLK2_FLUSH) {
      if (slot.flush_mark > flushed_.load(std::memory_order_relaxed)) flushed_ = slot.flush_mark;
    } else if (slot.type != NETBLK2_READ && (slot.flags & NETBLK2_FUA) == 0) {
      acknowledged_.store(acknowledged_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    }
  }
  Request& request = *slot.request;
  slots_.give_back(number);
  end_part(request, error);
  if (waiting_ != nullptr) pump();
}

void Session2::end_part(Request& request, int error) {
  const Parts parts{request};
  --parts.in_flight();
  if (error != 0 && request.error == 0) request.error = error;
  if (request.error != 0 && parts.queued() != 0) {
    NETBLK_CHECK(waiting_ == &request, "a request that was begun is not the first in the queue");
    pop_waiting();
  }
  if (parts.in_flight() == 0 && parts.queued() == 0) finish(request, request.error);
}

void Session2::finish(Request& request, int error) {
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

// The user is answered before the server has answered: the slot stays taken until the server has settled it. A link that
// is up and has not sent the request again was welcomed after the connection that did: that fence is done, and no other
// welcome would come to confirm one.
void Session2::give_up_slot(uint32_t number, int error) {
  Slot2& slot = slots_[number];
  Request& request = *slot.request;
  Link2& link = *links_[slot.link];
  if (!link.up) set_fence(link, true);
  slot.request = nullptr;
  slot.type = NETBLK2_NOP;
  slot.flags = 0;
  slot.offset = 0;
  slot.length = 0;
  end_part(request, error);
}

void Session2::end_all(int error) {
  const Bulk bulk(*this);
  for (uint32_t number = 0; number < slots_.size(); ++number) {
    Slot2& slot = slots_[number];
    if (slot.use == Slot2::Use::kFree) continue;
    NETBLK_CHECK(!slot.on_wire, "a request ends while a connection has its memory");
    Request* const request = slot.request;
    slots_.give_back(number);
    if (request != nullptr) end_part(*request, error);
  }
  end_waiting(error);
}

void Session2::end_waiting(int error) {
  while (waiting_ != nullptr) {
    Request& request = *waiting_;
    pop_waiting();
    finish(request, error);
  }
}

// ---- deadlines

uint64_t Session2::age_ms(Request& request, uint64_t now_ms) const {
  const uint64_t since_ms = Parts{request}.since_ms();
  return now_ms > since_ms ? now_ms - since_ms : 0;
}

uint64_t Session2::oldest_since_ns() {
  uint64_t oldest_ns = waiting_ == nullptr ? UINT64_MAX : Parts{*waiting_}.since_ns();
  for (const auto& slot : slots_.all())
    if (slot.request != nullptr) oldest_ns = std::min(oldest_ns, Parts{*slot.request}.since_ns());
  return oldest_ns == UINT64_MAX ? 0 : oldest_ns;
}

void Session2::arm_sweep() {
  uint64_t period = std::min(kSweepMs, std::max<uint64_t>(options_.dead_time_ms / 4, 1));
  if (options_.request_timeout_ms != 0) period = std::min(period, std::max<uint64_t>(options_.request_timeout_ms / 4, 1));
  uint64_t at = loop_.now_ms() + period;
  if (draining_ && close_at_ms_ > loop_.now_ms()) at = std::min(at, close_at_ms_);
  if (!sweep_.queued) sweep_.arm(at);
}

void Session2::sweep() {
  const uint64_t now = loop_.now_ms();
  if (draining_ && now >= close_at_ms_) closing_wake_.set();
  if (options_.request_timeout_ms != 0) expire(now);
  times_.set_oldest_since(oldest_since_ns());
  if (requests_ == 0 || usable())
    dead_since_ms_ = 0;
  else if (dead_since_ms_ == 0)
    dead_since_ms_ = now;
  else if (now - dead_since_ms_ >= options_.dead_time_ms && !giving_up_)
    give_up(fmt::format("no server for {} ms", options_.dead_time_ms));
  if (requests_ > 0 || (draining_ && now < close_at_ms_)) arm_sweep();
}

void Session2::expire(uint64_t now) {
  const uint64_t limit = options_.request_timeout_ms;
  const auto is_due = [&](const Slot2& slot) {
    return slot.use != Slot2::Use::kFree && slot.request != nullptr && !slot.expired && age_ms(*slot.request, now) >= limit;
  };
  // Queues that are made anew are in the order of the slots: at every sweep of a busy link, that would starve the last.
  const std::vector<Slot2>& slots = slots_.all();
  if (std::none_of(slots.begin(), slots.end(), is_due) && (waiting_ == nullptr || age_ms(*waiting_, now) < limit)) return;
  const Bulk bulk(*this);
  for (uint32_t number = 0; number < slots_.size(); ++number) {
    Slot2& slot = slots_[number];
    if (!is_due(slot)) continue;
    if (!slot.numbered) {
      Request& request = *slot.request;
      slots_.give_back(number);
      end_part(request, ETIMEDOUT);
    } else if (slot.on_wire) {
      slot.expired = true;
      Link2& link = *links_[slot.link];
      set_fence(link, true);
      link.fail(make_error(ETIMEDOUT, "no answer within {} ms", limit));
    } else {
      give_up_slot(number, ETIMEDOUT);
    }
  }
  while (waiting_ != nullptr && Parts{*waiting_}.begun() == 0 && age_ms(*waiting_, now) >= limit) {
    Request& request = *waiting_;
    pop_waiting();
    finish(request, ETIMEDOUT);
  }
}

// All requests end. The session stays: what the server may still have of them is fenced and settled before anything
// else is sent, and whether another client took the disk over meanwhile is the server's to say.
void Session2::give_up(std::string why) {
  log_error("{}: giving up: {}; {} waiting requests end with EIO", options_.name, why, requests_);
  set_last_error(why);
  giving_up_ = true;
  set_state(State::kError);
  for (auto& link : links_) link->fail(make_error(EIO, "{}", why));
  finish_giving_up();
}

void Session2::finish_giving_up() {
  for (const auto& link : links_)
    if (link->connected()) return;
  {
    const Bulk bulk(*this);
    for (uint32_t number = 0; number < slots_.size(); ++number) {
      Slot2& slot = slots_[number];
      if (slot.use == Slot2::Use::kFree || slot.request == nullptr) continue;
      if (slot.numbered) {
        give_up_slot(number, EIO);
        continue;
      }
      Request& request = *slot.request;
      slots_.give_back(number);
      end_part(request, EIO);
    }
    end_waiting(EIO);
  }
  dead_since_ms_ = 0;
  giving_up_ = false;
  wake_links();
}

// ---- what others see

void Session2::set_state(State state) {
  if (state_.exchange(state, std::memory_order_relaxed) == state) return;
  if (known_) log_info("{}: {}", options_.name, state_text(state));
  if (options_.on_state) options_.on_state(state);
}

void Session2::set_last_error(const std::string& text) {
  const std::lock_guard lock(mutex_);
  last_error_ = text;
}

Session2Info Session2::info() const {
  const std::lock_guard lock(mutex_);
  return info_;
}

Status2 Session2::status() const {
  Status2 now;
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

void Session2::reset_lost() {
  if (!lost()) return;
  log_warning("{}: the loss is acknowledged; flushes work again", options_.name);
  lost_.store(false, std::memory_order_release);
}

}  // namespace netblk::client
