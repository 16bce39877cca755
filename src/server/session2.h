// SPDX-License-Identifier: GPL-2.0-only
// Session2: netblk/2 on one connection (protocol/netblk.md).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "block/request.h"
#include "coro/event.h"
#include "coro/task.h"
#include "proto/netblk/codec2.h"
#include "proto/netblk/compress.h"
#include "server/exports.h"
#include "server/link.h"
#include "server/session_table.h"
#include "server/stopwatch.h"

namespace netblk::server {

// Two coroutines: the reader takes every whole request out of one receive and submits them; the writer gathers whatever
// replies are there, in any order, into one send. A request that the device ends at once costs no wake-up and no
// allocation.
//
// Invariant: an operation is free, read into, in the device, or in the queue of replies; it owns its data until its
// reply was sent. The session's slots bound how many there are.
class Session2 {
 public:
  // place: an export that was entered already, or null; given up when the client asks for another.
  Session2(Link& link, const ExportTable& exports, const io::Address& peer, std::shared_ptr<Export> place);
  Session2(const Session2&) = delete;
  Session2& operator=(const Session2&) = delete;
  ~Session2();

  // From the hello on. Ends when the connection is over and every request that it submitted has ended.
  coro::Task<void> run();

  // Heartbeats, news of the size, an export that has gone. Called every limits::kSweepPeriodMs.
  void sweep(uint64_t now_ms);

  // The hello was answered with a refusal.
  bool refused() const { return refused_; }
  uint64_t requests() const { return requests_; }
  uint64_t failed_requests() const { return failed_; }

 private:
  struct Operation;

  // ---- the handshake
  coro::Task<bool> receive_hello(proto::Hello2& hello);
  std::string enter(std::shared_ptr<Export> wanted);
  coro::Task<bool> greet(const proto::Hello2& hello);
  coro::Task<void> refuse(uint32_t status, std::string text);
  coro::Task<void> tell_exports(const proto::Hello2& hello);
  bool negotiate(const proto::Hello2& hello, std::vector<proto::Feature2>& features, std::string& missing);
  proto::Welcome2 describe() const;
  coro::Task<bool> send_welcome(const proto::Welcome2& welcome);

  // ---- requests
  coro::Task<void> read_loop();
  bool is_taken_in_place(const proto::Request2& request, int error) const;
  bool take_in_place(Operation& operation, const proto::Request2& request);
  coro::Task<bool> take_payload(Operation& operation, const proto::Request2& request);
  coro::Task<void> say_goodbye(const proto::Request2& request);
  bool checked(const proto::Request2& request, std::span<const std::byte> payload);
  bool run_request(Operation& operation, const proto::Request2& request);
  int refusal(const proto::Request2& request) const;
  bool sent_from_file(const proto::Request2& request) const;
  bool has_room(uint32_t bytes) const;
  Operation& take_operation(const proto::Request2& request);
  void free_operation(Operation& operation);
  void close(std::string reason);

  // ---- replies
  void ended(Operation& operation);
  void answer(Operation& operation, uint32_t status);
  void pack(Operation& operation);
  size_t gather_news(std::span<iovec> parts);
  coro::Task<void> write_loop();

  Link& link_;
  const ExportTable& exports_;
  const io::Address& peer_;
  std::shared_ptr<Export> place_;
  std::shared_ptr<Export> export_;  // entered
  std::shared_ptr<Presence> presence_;
  std::shared_ptr<Session> session_;
  proto::Framing2 framing_;
  int file_ = -1;          // READs may be sent from here
  bool in_place_ = false;  // READs are sent from the store's own memory
  bool writes_inline_ = false;

  // Operations are made as they are needed, so many at a time.
  static constexpr uint32_t kChunk = 64;
  std::vector<std::unique_ptr<Operation[]>> chunks_;
  Operation* free_ = nullptr;
  uint32_t made_ = 0;
  uint32_t busy_ = 0;  // not free
  Operation* replies_head_ = nullptr;
  Operation* replies_tail_ = nullptr;

  proto::Compressor compressor_;
  proto::CompressionLuck luck_;
  Stopwatch stopwatch_;  // runs if the client wants to know

  bool refused_ = false;
  uint64_t requests_ = 0;
  uint64_t failed_ = 0;
  bool reading_ = true;
  coro::Event due_;   // something is to be sent, or the reader has ended
  coro::Event room_;  // an operation or bytes came free

  // What the server says unasked.
  uint32_t heartbeat_ms_ = 0;  // 0: not negotiated
  bool pushes_size_ = false;
  bool times_due_ = false;
  bool heartbeat_due_ = false;
  uint64_t told_size_bytes_ = 0;
  uint64_t heard_bytes_ = 0;  // as of heard_at_ms_
  uint64_t heard_at_ms_ = 0;
  uint64_t said_bytes_ = 0;
  uint64_t said_at_ms_ = 0;
};

}  // namespace netblk::server
