// SPDX-License-Identifier: GPL-2.0-only
#include "client/worker.h"

#include <cerrno>
#include <utility>

#include "base/log.h"

namespace netblk::client {

using block::Command;
using block::Request;

Netblk1Client::Worker::Worker(std::unique_ptr<io::Loop> loop, Connect connect, const Options& options)
    : options_(options),
      dead_time_ms_(options.timeout_ms * options.tries),
      loop_(std::move(loop)),
      connect_(std::move(connect)),
      probe_([](Request&) {}),
      stop_call_(*this),
      dialed_call_(*this) {
  probe_.loop = loop_.get();
  probe_.command = Command::kRead;
  probe_.offset = options.size_bytes - limits::kSectorBytes;
  probe_.length = limits::kSectorBytes;
  probe_.data = probe_data_.data();
}

Netblk1Client::Worker::~Worker() {
  if (!thread_.joinable()) return;
  loop_->post(stop_call_);
  thread_.join();
  NETBLK_CHECK(pending_.empty(), "a client is destroyed with requests in it");
}

Status Netblk1Client::Worker::begin() {
  thread_ = std::thread([this] { loop_->run(main()); });
  std::unique_lock lock(mutex_);
  first_outcome_.wait(lock, [this] { return outcome_.has_value(); });
  return *outcome_;
}

void Netblk1Client::Worker::submit(Request& request) {
  if (request.loop == loop_.get()) return arrived(request);
  request.held.hop.request = &request;
  request.held.hop.action = [](Request& taken) {
    static_cast<Netblk1Client*>(taken.held.owner)->worker_->arrived(taken);
  };
  loop_->post(request.held.hop);
}

void Netblk1Client::Worker::arrived(Request& request) {
  if (request.is_abandoned()) return end_request(request, ECANCELED);
  if (!proven_) return end_request(request, EIO);
  if (request.command == Command::kFlush && pending_.empty()) return end_request(request, 0);
  request.held.since_ns = loop_->now_ns();
  pending_.append(part_at(request, 0));
  note_oldest();
  if (connection_ != nullptr) connection_->appended();
}

// Requests are answered in their order: it is the first, but for the parts of a long one, which end up behind others.
void Netblk1Client::Worker::note_oldest() {
  const bool user_waits = !pending_.empty() && pending_.front().request != &probe_;
  times_.set_oldest_since(user_waits ? pending_.front().request->held.since_ns : 0);
}

void Netblk1Client::Worker::end_request(Request& request, int error) {
  request.error = error;
  if (request.loop == loop_.get()) return std::move(request.held.completion).finish(error);
  request.held.hop.send(request, [](Request& home) { std::move(home.held.completion).finish(home.error); });
}

void Netblk1Client::Worker::withdrawn(Request& request) { end_request(request, ECANCELED); }

void Netblk1Client::Worker::answered(int error, uint64_t now_ns) {
  const Part part = pending_.front();
  pending_.pop_front();
  note_oldest();
  Request& request = *part.request;
  if (part.length > 0 && &request != &probe_)
    times_.answered(request.command, part.sent_ns - request.held.since_ns, now_ns - part.sent_ns);
  if (&request == &probe_) {
    if (error != 0) {
      connection_->fail(fmt::format("the server refuses to read the last sector of {} bytes: is the export smaller?",
                                    options_.size_bytes));
      return;
    }
    proven_ = true;
    state_ = State::kConnected;
    report(Ok{});
  }
  dead_since_ms_ = 0;
  unanswered_in_a_row_ = 0;
  if (&request == &probe_) return;
  const uint64_t done = part.offset + part.length - request.offset;
  if (part.length > 0 && error == 0 && done < request.length) return pending_.append(part_at(request, done));
  end_request(request, error);
}

// Nothing was answered for the dead time, or on `tries` connections: the waiting requests end.
void Netblk1Client::Worker::give_up_when_due() {
  if (!proven_ || dead_since_ms_ == 0) return;
  if (loop_->now_ms() < give_up_at_ms() && unanswered_in_a_row_ < options_.tries) return;
  log_error("{}: giving up: {}; {} waiting requests end with EIO; a connection is tried every {} ms", options_.name,
            last_error(), pending_.size(), options_.error_retry_ms);
  state_ = State::kError;
  dead_since_ms_ = 0;
  unanswered_in_a_row_ = 0;
  end_pending(EIO);
}

// Completions may submit again; nothing is proven then, so that they are refused.
void Netblk1Client::Worker::end_pending(int error) {
  proven_ = false;
  while (!pending_.empty()) {
    Request& request = *pending_.front().request;
    pending_.pop_front();
    if (&request != &probe_) end_request(request, error);
  }
  note_oldest();
}

void Netblk1Client::Worker::lost(const std::string& reason, uint64_t since_ms) {
  if (connected_before_ && reason != last_error()) log_warning("{}: {}", options_.name, reason);
  set_last_error(reason);
  report(make_error(EIO, "{}", reason));
  if (!proven_) return;
  if (dead_since_ms_ == 0) dead_since_ms_ = since_ms;
  state_ = State::kConnecting;
  give_up_when_due();
}

coro::Task<void> Netblk1Client::Worker::main() {
  while (!stopping_) {
    co_await dial();
    give_up_when_due();
    if (!dial_result_->ok()) {
      lost(dial_result_->error().message, loop_->now_ms());
      next_try_ms_ = loop_->now_ms() + (proven_ ? options_.retry_ms : options_.error_retry_ms);
    } else if (!stopping_) {
      io::UniqueFd fd = std::move(*dial_result_).value();
      co_await serve(std::move(fd));
    }
    dial_result_.reset();
    co_await pause_until(next_try_ms_);
  }
  end_pending(EIO);
}

coro::Task<void> Netblk1Client::Worker::serve(io::UniqueFd fd) {
  if (!proven_) pending_.append({.request = &probe_, .offset = probe_.offset, .length = limits::kSectorBytes});
  if (proven_ && pending_.empty()) dead_since_ms_ = 0;  // nobody waits: the clock starts with the next request
  if (connected_before_) reconnects_.fetch_add(1, std::memory_order_relaxed);
  connected_before_ = true;
  if (proven_) state_ = State::kConnected;
  log_info("{}: connected", options_.name);
  const bool waited_for = !pending_.empty();
  Connection connection(*loop_, std::move(fd), pending_, *this, options_.timeout_ms, give_up_at_ms());
  connection_ = &connection;
  co_await connection.run();
  connection_ = nullptr;
  if (!proven_) end_pending(EIO);
  if (stopping_) co_return;
  const uint64_t now = loop_->now_ms();
  const bool answered_nothing = connection.answers() == 0 && (waited_for || !pending_.empty());
  if (answered_nothing && proven_) ++unanswered_in_a_row_;
  next_try_ms_ = now;
  if (answered_nothing || connection.answers() == 0) next_try_ms_ += options_.unanswered_retry_ms;
  if (!proven_) next_try_ms_ = now + options_.error_retry_ms;
  lost(connection.error(), pending_.empty() ? now : connection.due_since_ms());
}

// The attempt blocks on a thread of its own, so that deadlines go on being kept here.
coro::Task<void> Netblk1Client::Worker::dial() {
  dial_done_ = false;
  dialer_ = std::thread([this] {
    dial_result_.emplace(connect_(options_.timeout_ms));
    loop_->post(dialed_call_);
  });
  Alarm alarm(*this);
  while (!dial_done_) {
    if (dead_since_ms_ != 0 && !alarm.armed()) alarm.arm(give_up_at_ms());
    co_await wake_.wait();
    give_up_when_due();
  }
  dialer_.join();
  alarm.cancel();
  while (alarm.queued) co_await io::SleepUntil(*loop_, loop_->now_ms());
}

coro::Task<void> Netblk1Client::Worker::pause_until(uint64_t at_ms) {
  Alarm alarm(*this);
  while (!stopping_ && loop_->now_ms() < at_ms) {
    const uint64_t give_up = give_up_at_ms();
    alarm.arm(give_up != 0 && give_up < at_ms ? give_up : at_ms);
    co_await wake_.wait();
    give_up_when_due();
  }
  alarm.cancel();
  while (alarm.queued) co_await io::SleepUntil(*loop_, loop_->now_ms());
}

void Netblk1Client::Worker::dialed() {
  dial_done_ = true;
  wake_.set();
}

void Netblk1Client::Worker::stop() {
  stopping_ = true;
  if (connection_ != nullptr) connection_->stop();
  wake_.set();
}

void Netblk1Client::Worker::report(Status status) {
  const std::lock_guard lock(mutex_);
  if (outcome_.has_value()) return;
  outcome_.emplace(std::move(status));
  first_outcome_.notify_all();
}

ClientStatus Netblk1Client::Worker::status() const {
  ClientStatus now;
  now.state = state();
  now.connections = now.state == State::kConnected ? 1 : 0;
  now.reconnects = reconnects();
  now.last_error = last_error();
  times_.show(now, loop_->now_ns());
  return now;
}

std::string Netblk1Client::Worker::last_error() const {
  const std::lock_guard lock(mutex_);
  return last_error_;
}

void Netblk1Client::Worker::set_last_error(std::string text) {
  const std::lock_guard lock(mutex_);
  last_error_ = std::move(text);
}

}  // namespace netblk::client
