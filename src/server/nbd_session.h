// SPDX-License-Identifier: GPL-2.0-only
// NbdSession: NBD on one connection, from the server's greeting on.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "block/request.h"
#include "coro/event.h"
#include "coro/task.h"
#include "proto/nbd/server_requests.h"
#include "server/exports.h"
#include "server/link.h"
#include "server/nbd_handshake.h"

namespace netblk::server {

// Two coroutines after the handshake: the reader takes every whole request out of one receive and submits them; the
// writer gathers whatever replies are there, in any order, into one send. A request that the device ends at once costs
// no wake-up and no allocation.
//
// Invariant: an operation is free, read into, in the device, or in the queue of replies; it owns its data until its
// reply was sent.
class NbdSession {
 public:
  NbdSession(Link& link, const ExportTable& exports, const io::Address& peer);
  NbdSession(const NbdSession&) = delete;
  NbdSession& operator=(const NbdSession&) = delete;
  ~NbdSession();

  // Ends when the connection is over and every request that it submitted has ended.
  coro::Task<void> run();

  // An export that has gone. Called every limits::kSweepPeriodMs.
  void sweep();

  // The handshake was ended by the server.
  bool refused() const { return refused_; }
  uint64_t requests() const { return requests_; }
  uint64_t failed_requests() const { return failed_; }

 private:
  struct Operation;
  // Why a request does not reach the device; error 0: it does.
  struct Refusal {
    uint32_t error = 0;  // NBD_E*
    const char* text = "";
  };

  void begin(const NbdHandshake& handshake);

  // ---- requests
  coro::Task<void> read_loop();
  coro::Task<bool> take_status_payload(proto::NbdRequest& request, uint64_t bytes, Refusal& refusal, std::vector<uint32_t>& asked);
  Refusal refusal_of(const proto::NbdRequest& request, uint64_t payload_bytes) const;
  Refusal range_of(const proto::NbdRequest& request) const;
  void submit(Operation& operation, const proto::NbdRequest& request);
  void ask_status(Operation& operation);
  bool sent_from_file(const proto::NbdRequest& request) const;
  bool has_room(uint32_t bytes) const;
  Operation& take_operation(const proto::NbdRequest& request);
  void free_operation(Operation& operation);
  void close(std::string reason);

  // ---- replies
  void ended(Operation& operation);
  void refuse(Operation& operation, uint32_t error, std::string_view text);
  void answer(Operation& operation);
  void add_status(Operation& operation);
  void tell_status(Operation& operation);
  bool tell_holes(Operation& operation);
  void queue(Operation& operation);
  size_t put_header(const Operation& operation, std::byte* to) const;
  bool gather();
  void free_sent();
  void send_at_once();
  coro::Task<void> write_loop();

  Link& link_;
  const ExportTable& exports_;
  const io::Address& peer_;
  std::shared_ptr<Export> export_;  // entered

  // What the handshake agreed on, and what the device is: neither changes.
  proto::NbdHeaders headers_ = proto::NbdHeaders::kSimple;
  std::vector<NbdContext> contexts_;  // that are selected, and their ids
  std::vector<uint32_t> context_ids_;
  uint32_t max_payload_bytes_ = 0;
  block::Geometry geometry_;
  int file_ = -1;  // READs may be sent from here
  bool file_in_memory_ = false;

  // Operations are made as they are needed, so many at a time.
  static constexpr uint32_t kChunk = 64;
  std::vector<std::unique_ptr<Operation[]>> chunks_;
  Operation* free_ = nullptr;
  uint32_t made_ = 0;
  uint32_t busy_ = 0;  // not free
  Operation* replies_head_ = nullptr;
  Operation* replies_tail_ = nullptr;
  // What is being sent: the replies from `first` to before `rest`, of whose parts `left` is to go. Headers lie side by
  // side: the replies of WRITEs are one part.
  static constexpr size_t kBatchReplies = limits::kSendReplies2;
  struct Sending {
    std::array<std::byte, kBatchReplies * proto::kNbdReplyBytes> headers;
    std::array<iovec, 2 * kBatchReplies> parts;
    std::span<iovec> left;
    Operation* first = nullptr;  // null: nothing is
    Operation* last = nullptr;
    Operation* rest = nullptr;
  };
  static_assert(2 * limits::kNbdReadExtents + 2 <= 2 * kBatchReplies && limits::kMaxNbdContexts <= kBatchReplies);
  Sending sending_;
  // One block status at a time is in the device: its answer may be large.
  std::vector<block::Extent> extents_;
  bool in_status_ = false;

  bool refused_ = false;
  uint64_t requests_ = 0;
  uint64_t failed_ = 0;
  bool reading_ = true;
  coro::Event due_;   // something is to be sent, or the reader has ended
  coro::Event room_;  // an operation or bytes came free, or a block status has ended
};

}  // namespace netblk::server
