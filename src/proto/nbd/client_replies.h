// SPDX-License-Identifier: GPL-2.0-only
// The client's half of NBD's transmission phase, without I/O: requests to bytes, and a stream of replies to answers.
// Whatever the server sends, the memory is bounded, data lands only where a READ asked for it, and each request is
// answered once or the connection is over.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "protocol/nbd_wire.h"

namespace netblk::proto {

// A request in flight, as far as its reply needs it.
struct NbdInFlight {
  uint16_t type = NBD_CMD_READ;
  uint16_t flags = 0;
  uint64_t cookie = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
  std::byte* data = nullptr;  // of a READ: where it goes

  // What has come of the reply, set by begin().
  uint64_t came = 0;       // READ: bytes; BLOCK_STATUS: bytes that the extents cover
  uint64_t in_order = 0;   // READ: what came without a gap from the start
  uint32_t error_chunks = 0;
  int error = 0;
  bool status_came = false;
  bool status_full = false;
  struct Range {
    uint64_t from, to;
  };
  std::vector<Range> scattered;  // READ: what came beyond in_order, sorted, never touching

  void begin() {
    came = in_order = 0;
    error_chunks = 0;
    error = 0;
    status_came = status_full = false;
    scattered.clear();
  }
};

// As it goes out: NBD_REQUEST_SIZE bytes, or NBD_EXTENDED_REQUEST_SIZE. `to` has room for either.
size_t encode_nbd_request(const NbdInFlight& request, bool extended, std::byte* to);

// The errno value of an error on the wire; what is unknown is EINVAL, as the public text wants it.
int error_of_nbd(uint32_t error);

// What a reader of replies asks and tells.
class NbdReplySink {
 public:
  // The request with this cookie that is on this connection; null: there is none.
  virtual NbdInFlight* find(uint64_t cookie) = 0;
  // Its last byte has been sent: until then its memory is in use, and its reply waits.
  virtual bool is_sent(const NbdInFlight& request) = 0;
  // A BLOCK_STATUS: the next extent of base:allocation. `length` is inside the range that was asked. False: there is no
  // room for it, and no more are wanted.
  virtual bool extent(NbdInFlight& request, uint64_t length, uint64_t status) = 0;
  // The request has ended: 0 or an errno value. It is not touched again.
  virtual void answered(NbdInFlight& request, int error) = 0;

 protected:
  ~NbdReplySink() = default;
};

struct NbdReplyTerms {
  bool structured = false;
  bool extended = false;
  uint32_t allocation_id = 0;
};

class NbdReplies {
 public:
  // The longest piece that must be there whole to be understood.
  static constexpr size_t kMaxPiece = NBD_CHUNK_ERROR_SIZE + NBD_MAX_STRING + NBD_CHUNK_OFFSET_SIZE;
  // Of one reply: pieces that do not follow each other, and errors.
  static constexpr size_t kMaxScattered = 4096;
  static constexpr uint32_t kMaxErrorChunks = 64;

  explicit NbdReplies(NbdReplySink& sink) : sink_(sink) {}

  // A new connection.
  void begin(const NbdReplyTerms& terms);

  // Takes what is at the front of `bytes`; returns how much. It has taken all that it can: more must come (kMaxPiece
  // bytes always suffice to go on), or blocked(), or failed().
  size_t take(std::span<const std::byte> bytes);

  // The data that come next, if they may be received in their own place; took() says how many were.
  std::span<std::byte> direct() const { return {data_to_, state_ == State::kData ? data_left_ : 0}; }
  void took(size_t bytes);

  // The reply at the front is to a request that is not sent whole.
  bool is_blocked() const { return blocked_; }
  // Why the connection is over; null: it is not.
  const Error* failed() const { return failed_ ? &error_ : nullptr; }
  // Where READs are long, data are worth receiving in their own place: then, how many bytes stand before the next ones.
  // 0: whatever comes may be received at once.
  size_t bytes_before_data(size_t large) const {
    if (last_data_bytes_ < large) return 0;
    if (state_ == State::kPayload) return piece_;
    if (state_ != State::kHeader) return 0;
    if (terms_.extended) return NBD_EXTENDED_REPLY_SIZE + NBD_CHUNK_OFFSET_SIZE;
    return terms_.structured ? NBD_STRUCTURED_REPLY_SIZE + NBD_CHUNK_OFFSET_SIZE : NBD_SIMPLE_REPLY_SIZE;
  }
  // What the server said with its last error; empty: nothing.
  const std::string& said() const { return said_; }

 private:
  enum class State : uint8_t { kHeader, kPayload, kData, kExtents };

  size_t take_header(std::span<const std::byte> bytes);
  void take_simple(uint32_t error);
  void begin_chunk(uint64_t length);
  void begin_status(uint64_t length);
  void take_payload(std::span<const std::byte> payload);
  void take_error(std::span<const std::byte> payload);
  void take_status_head(std::span<const std::byte> payload);
  size_t take_extents(std::span<const std::byte> bytes);
  bool cover(uint64_t from, uint64_t length);
  bool find(uint64_t cookie, const char* what);
  void end_of_chunk();
  void finish();
  void begin_data(std::byte* to, uint64_t length);
  template <class... Args>
  void fail(fmt::format_string<Args...> format, Args&&... args) {
    failed_ = true;
    error_ = make_error(EPROTO, format, std::forward<Args>(args)...);
  }

  NbdReplySink& sink_;
  NbdReplyTerms terms_;
  State state_ = State::kHeader;
  bool blocked_ = false;
  bool failed_ = false;
  Error error_{0, {}};
  std::string said_;

  // The chunk that is being taken.
  NbdInFlight* request_ = nullptr;
  uint16_t type_ = 0;
  bool done_ = false;
  uint64_t chunk_length_ = 0;  // of the payload
  size_t piece_ = 0;      // kPayload: that much must be there
  std::byte* data_to_ = nullptr;
  size_t data_left_ = 0;
  size_t last_data_bytes_ = 0;
  uint64_t extents_left_ = 0;
  size_t extent_size_ = 0;
};

}  // namespace netblk::proto
