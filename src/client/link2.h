// SPDX-License-Identifier: GPL-2.0-only
// Link2: one of the connections of a netblk/2 session: its greeting, its batches, its heartbeat, its end.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/limits.h"
#include "base/result.h"
#include "client/slots2.h"
#include "coro/event.h"
#include "coro/task.h"
#include "io/loop.h"
#include "proto/netblk/codec2.h"

namespace netblk::client {

class Session2;

// What the features of a welcome mean for one connection.
struct Terms2 {
  proto::Framing2 framing;
  uint8_t pack_flag = 0;  // how WRITEs are compressed: NETBLK2_LZ4, NETBLK2_ZSTD or 0
  uint32_t heartbeat_ms = 0;
  bool resize = false;
};

class Link2 {
 public:
  Link2(Session2& session, unsigned index);
  ~Link2();

  // Says hello on a new connection and waits for the welcome. What rides along is sent behind the hello.
  // EPROTONOSUPPORT: what is there does not speak netblk/2. The connection stays until end().
  coro::Task<Result<proto::Welcome2>> greet(std::unique_ptr<io::Stream> stream, std::vector<std::byte> hello,
                                            bool ride_along);
  // Sends and receives until the connection is lost or failed; error() says why.
  coro::Task<void> serve(const Terms2& terms);
  // Closes the connection; its operations have ended. The memory of requests is the users' again.
  void end();

  // A slot to send; called for a link that is up.
  void push(uint32_t slot);
  // There may be something to send again.
  void wake_sender() { send_wanted_.set(); }
  // Resets the connection, if there is one; the first reason is kept.
  void fail(Error why);
  // GOODBYE with END_SESSION, after what is queued.
  void say_goodbye(uint64_t cookie);
  bool goodbye_answered() const { return goodbye_answered_; }

  bool connected() const { return stream_ != nullptr; }
  bool over() const { return over_; }
  const Error& error() const { return error_; }

  const unsigned index;

  // The session's notes about it.
  bool up = false;          // welcomed: takes requests
  bool must_fence = false;  // a request that it carried was given up: nothing is sent before its next welcome
  bool was_welcomed = false;  // ever
  bool was_up = false;        // until its end has been judged
  uint64_t up_since_ms = 0;
  uint64_t load = 0;  // of the slots that it carries now
  uint64_t retry_at_ms = 0;
  uint64_t backoff_ms = 0;
  coro::Event wake;   // of the session's coroutine for it
  SlotList queue;     // to be sent

  // Until the alarm has no run left in the ready queue; before the link is destroyed.
  coro::Task<void> settle_alarm();
  // Sets `wake` then; while the link is not connected.
  void alarm_at(uint64_t at_ms) { alarm_.arm(at_ms); }

 private:
  static constexpr size_t kBatchRequests = 128;
  static constexpr size_t kBatchBytes = 1u << 20;
  static constexpr size_t kReceiveBytes = 128u << 10;
  static_assert(kReceiveBytes >= NETBLK2_MAX_WELCOME);
  // From here on the data of a READ is received in its own place, without a copy.
  static constexpr size_t kDirectBytes = 16u << 10;
  // A ridden READ's slot and length are what every server takes.
  static constexpr uint32_t kRideBytes = NETBLK2_MIN_MAX_PAYLOAD;

  struct Alarm : io::Timer {
    Alarm(io::Loop& loop, Link2& of)
        : Timer(loop, [](coro::Runnable& self) { static_cast<Alarm&>(self).link.alarmed(); }), link(of) {}
    Link2& link;
  };

  void alarmed();
  void check_heartbeat();
  void start_batch();
  void add_request(uint32_t slot);
  void add_frame(const proto::Request2& frame);
  bool gather();
  void gather_riders();
  coro::Task<bool> send_batch();
  coro::Task<Result<proto::Welcome2>> read_welcome();
  coro::Task<void> send_all();
  coro::Task<void> receive_all();
  // What is at the front of the buffer, as far as it is there. False: more must come, or the connection failed.
  bool take_one();
  bool take_reply(const proto::Reply2& reply);
  void take_unasked(const proto::Reply2& reply);
  void take_payload(std::span<const std::byte> bytes);
  void finish_payload();
  void take_times(std::span<const std::byte> message);
  void answered(uint32_t slot, int error);
  uint64_t batch_ns() {
    if (batch_ns_ == 0) batch_ns_ = loop_.now_ns();
    return batch_ns_;
  }
  // A write's memory is the kernel's until it was sent whole: its early reply waits.
  bool sent_whole(const proto::Reply2& reply) const;

  Session2& session_;
  io::Loop& loop_;
  Alarm alarm_;
  std::unique_ptr<io::Stream> stream_;
  Terms2 terms_;
  bool over_ = true;
  bool greeting_ = false;
  bool crc_out_ = false;  // checksums in what is sent: as offered, then as agreed
  bool expects_large_ = false;
  bool heard_anything_ = false;
  Error error_{0, {}};
  uint64_t give_up_at_ms_ = 0;       // greeting
  uint64_t silence_until_ms_ = 0;    // greeting: for the first byte; 0: give_up_at_ms_
  uint64_t last_sent_ms_ = 0;
  uint64_t last_heard_ms_ = 0;

  // Time, for people: of answers by the requests' type, since the server told of them.
  struct Untold {
    uint32_t count = 0;
    uint64_t trip_ns = 0;
  };
  std::array<Untold, NETBLK2_NOP + 1> untold_{};
  uint64_t batch_ns_ = 0;  // when the batch of now was put together; 0: nobody has asked
  uint64_t heard_ns_ = 0;

  // Sending.
  coro::Event send_wanted_;
  coro::Event send_ended_;
  std::vector<iovec> batch_;
  size_t batch_at_ = 0;
  size_t frames_ = 0;
  uint64_t gathered_bytes_ = 0;  // on this connection, ever
  uint64_t sent_bytes_ = 0;
  bool heartbeat_wanted_ = false;
  bool goodbye_wanted_ = false;
  bool goodbye_answered_ = false;
  uint64_t goodbye_cookie_ = 0;
  std::array<std::byte, (kBatchRequests + 2) * NETBLK2_REQUEST_SIZE> headers_;

  // Receiving: bytes from_ to to_ of the buffer have come and are not taken.
  std::vector<std::byte> buffer_;
  size_t from_ = 0;
  size_t to_ = 0;
  bool waits_for_send_ = false;
  // The READ whose payload arrives.
  uint32_t payload_slot_ = 0;
  uint8_t payload_flags_ = 0;
  uint32_t payload_crc_due_ = 0;
  uint32_t payload_crc_ = 0;
  size_t payload_left_ = 0;
  std::byte* payload_to_ = nullptr;
  std::vector<std::byte> packed_;
};

}  // namespace netblk::client
