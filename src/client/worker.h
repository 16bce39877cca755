// SPDX-License-Identifier: GPL-2.0-only
// Worker: the thread of a client: connects, connects again, and decides when to give up.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "client/connection.h"
#include "client/netblk1_client.h"
#include "client/pending.h"
#include "client/timekeeper.h"

namespace netblk::client {

class Netblk1Client::Worker final : private ConnectionOwner {
 public:
  Worker(std::unique_ptr<io::Loop> loop, Connect connect, const Options& options);
  ~Worker();

  // Starts the thread and waits for the first connection to be proven or to fail.
  Status begin();
  void submit(block::Request& request);

  io::Loop& loop() { return *loop_; }
  State state() const { return state_.load(std::memory_order_relaxed); }
  uint64_t reconnects() const { return reconnects_.load(std::memory_order_relaxed); }
  std::string last_error() const;
  ClientStatus status() const;

 private:
  template <void (Worker::*kMethod)()>
  struct Call : io::Posted {
    explicit Call(Worker& of) : Posted([](coro::Runnable& self) { (static_cast<Call&>(self).worker.*kMethod)(); }), worker(of) {}
    Worker& worker;
  };
  struct Alarm : io::Timer {
    explicit Alarm(Worker& of)
        : Timer(*of.loop_, [](coro::Runnable& self) { static_cast<Alarm&>(self).worker.wake_.set(); }), worker(of) {}
    Worker& worker;
  };

  coro::Task<void> main();
  coro::Task<void> dial();
  coro::Task<void> serve(io::UniqueFd fd);
  coro::Task<void> pause_until(uint64_t at_ms);
  void dialed();
  void stop();
  void arrived(block::Request& request);
  void answered(int error, uint64_t now_ns) override;
  void withdrawn(block::Request& request) override;
  void end_request(block::Request& request, int error);
  void note_oldest();
  void lost(const std::string& reason, uint64_t since_ms);
  uint64_t give_up_at_ms() const { return dead_since_ms_ == 0 ? 0 : dead_since_ms_ + dead_time_ms_; }
  void give_up_when_due();
  void end_pending(int error);
  void report(Status status);
  void set_last_error(std::string text);

  const Options options_;
  const uint64_t dead_time_ms_;
  std::unique_ptr<io::Loop> loop_;
  const Connect connect_;
  std::thread thread_;

  // Of the loop's thread.
  Pending pending_;
  Connection* connection_ = nullptr;
  bool stopping_ = false;
  // A connection is proven when it has answered a READ of the last sector; then requests are taken, and a lost
  // connection does not need proof again until the client gave up.
  bool proven_ = false;
  bool connected_before_ = false;
  uint64_t dead_since_ms_ = 0;      // since when nothing is answered; 0: all is well
  unsigned unanswered_in_a_row_ = 0;
  uint64_t next_try_ms_ = 0;
  block::Request probe_;
  std::array<std::byte, limits::kSectorBytes> probe_data_{};
  coro::Event wake_;
  Call<&Worker::stop> stop_call_;

  // One connection attempt: written by its thread before dialed_call_ is posted.
  std::thread dialer_;
  std::optional<Result<io::UniqueFd>> dial_result_;
  bool dial_done_ = false;
  Call<&Worker::dialed> dialed_call_;

  std::atomic<State> state_{State::kConnecting};
  std::atomic<uint64_t> reconnects_{0};
  Timekeeper times_;
  mutable std::mutex mutex_;  // a leaf: guards what follows
  std::condition_variable first_outcome_;
  std::optional<Status> outcome_;
  std::string last_error_;
};

}  // namespace netblk::client
