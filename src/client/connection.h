// SPDX-License-Identifier: GPL-2.0-only
// Connection: one netblk/1 connection from its making to its loss.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "client/pending.h"
#include "coro/event.h"
#include "coro/task.h"
#include "io/loop.h"
#include "protocol/netblk_wire.h"

namespace netblk::client {

// What a connection tells its owner, on the loop's thread.
class ConnectionOwner {
 public:
  // The front part was answered: take it off. 0, or EIO. now_ns: by the loop's clock.
  virtual void answered(int error, uint64_t now_ns) = 0;
  // A part that never reached the wire, whose asker is gone.
  virtual void withdrawn(block::Request& request) = 0;

 protected:
  ~ConnectionOwner() = default;
};

// Sends the parts of `pending` in order and reads the replies. The memory of a request is in the kernel's hands until
// run() has ended: its owner ends no request of a failed connection before that.
class Connection {
 public:
  // give_up_at_ms: the connection ends then if it has answered nothing; 0: never.
  Connection(io::Loop& loop, io::UniqueFd fd, Pending& pending, ConnectionOwner& owner, uint64_t timeout_ms,
             uint64_t give_up_at_ms);

  // Until the connection is lost or stopped. error() then says why.
  coro::Task<void> run();

  // Something was appended to `pending`.
  void appended();
  // Says DISCONNECT once everything has been sent, and ends.
  void stop();
  // Resets the connection; the first reason is kept.
  void fail(std::string reason);

  const std::string& error() const { return error_; }
  // Replies on this connection.
  uint64_t answers() const { return answers_; }
  // When the reply that is due now became due.
  uint64_t due_since_ms() const { return due_since_ms_; }

 private:
  static constexpr size_t kBatchParts = limits::kSendReplies;
  static constexpr size_t kBatchBytes = 1u << 20;
  static constexpr size_t kReceiveBytes = 64u << 10;
  // From here on the data of a READ is received in its own place, without a copy.
  static constexpr size_t kDirectBytes = 16u << 10;

  struct DueTimer : io::Timer {
    explicit DueTimer(Connection& of);
    Connection& connection;
  };

  coro::Task<void> send_all();
  coro::Task<void> receive_all();
  // Fills batch_ with what can go in one send; false: nothing to send.
  bool gather();
  void add_part(const Part& part, std::byte* header);
  void sent(size_t bytes);
  void take_status(std::byte status);
  void finish_front(int error);
  void end_flushes();
  uint64_t due_at_ms() const;
  void became_due();
  void check_due();

  io::Loop& loop_;
  std::unique_ptr<io::Stream> stream_;
  Pending& pending_;
  ConnectionOwner& owner_;
  const uint64_t timeout_ms_;
  const uint64_t give_up_at_ms_;
  DueTimer due_timer_;
  uint64_t due_since_ms_ = 0;
  uint64_t answers_ = 0;
  uint64_t heard_ns_ = 0;  // when bytes came last, by the loop's clock
  bool over_ = false;
  bool stopping_ = false;
  std::string error_;

  // The send under way: its gathered parts, and how many bytes each part of `pending` in it still has to go.
  std::vector<iovec> batch_;
  size_t batch_at_ = 0;
  std::vector<size_t> batch_left_;
  size_t batch_left_at_ = 0;
  std::array<std::byte, kBatchParts * NETBLK1_REQUEST_SIZE> headers_{};
  coro::Event send_wanted_;
  coro::Event send_ended_;

  // The READ whose data arrives.
  size_t data_left_ = 0;
  std::byte* data_at_ = nullptr;
  std::vector<std::byte> received_;
};

}  // namespace netblk::client
