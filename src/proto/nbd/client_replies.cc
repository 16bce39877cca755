// SPDX-License-Identifier: GPL-2.0-only
#include "proto/nbd/client_replies.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/endian.h"

namespace netblk::proto {
namespace {

using Bytes = std::span<const std::byte>;

template <class T>
T get(Bytes from, size_t at) {
  return load_be<T>(from.data() + at);
}

}  // namespace

size_t encode_nbd_request(const NbdInFlight& request, bool extended, std::byte* to) {
  const bool has_payload = request.type == NBD_CMD_WRITE;
  const auto flags = static_cast<uint16_t>(request.flags | (extended && has_payload ? NBD_CMD_FLAG_PAYLOAD_LEN : 0));
  store_be(to, uint32_t{extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC});
  store_be(to + 4, flags);
  store_be(to + 6, request.type);
  store_be(to + 8, request.cookie);
  store_be(to + 16, request.offset);
  if (extended) {
    store_be(to + 24, request.length);
    return NBD_EXTENDED_REQUEST_SIZE;
  }
  NETBLK_CHECK(request.length <= UINT32_MAX, "a request is too long for its header");
  store_be(to + 24, static_cast<uint32_t>(request.length));
  return NBD_REQUEST_SIZE;
}

int error_of_nbd(uint32_t error) {
  switch (error) {
    case NBD_SUCCESS: return 0;
    case NBD_EPERM: return EPERM;
    case NBD_EIO: return EIO;
    case NBD_ENOMEM: return ENOMEM;
    case NBD_ENOSPC: return ENOSPC;
    case NBD_EOVERFLOW: return EOVERFLOW;
    case NBD_ENOTSUP: return EOPNOTSUPP;
    case NBD_ESHUTDOWN: return ESHUTDOWN;
    default: return EINVAL;
  }
}

void NbdReplies::begin(const NbdReplyTerms& terms) {
  terms_ = terms;
  state_ = State::kHeader;
  blocked_ = failed_ = false;
  request_ = nullptr;
  data_to_ = nullptr;
  data_left_ = last_data_bytes_ = 0;
  said_.clear();
}

size_t NbdReplies::take(Bytes bytes) {
  blocked_ = false;
  size_t taken = 0;
  while (!failed_ && !blocked_) {
    const Bytes rest = bytes.subspan(taken);
    size_t now = 0;
    switch (state_) {
      case State::kHeader: now = take_header(rest); break;
      case State::kPayload:
        if (rest.size() < piece_) return taken;
        now = piece_;
        take_payload(rest.first(now));
        break;
      case State::kData:
        now = std::min(rest.size(), data_left_);
        std::memcpy(data_to_, rest.data(), now);
        took(now);
        break;
      case State::kExtents: now = take_extents(rest); break;
    }
    if (now == 0) break;
    taken += now;
  }
  return taken;
}

void NbdReplies::took(size_t bytes) {
  data_to_ += bytes;
  data_left_ -= bytes;
  if (data_left_ == 0) end_of_chunk();
}

bool NbdReplies::find(uint64_t cookie, const char* what) {
  request_ = sink_.find(cookie);
  if (request_ == nullptr) {
    fail("{} with the cookie {:#x} answers nothing that was asked", what, cookie);
    return false;
  }
  blocked_ = !sink_.is_sent(*request_);
  return !blocked_;
}

size_t NbdReplies::take_header(Bytes bytes) {
  request_ = nullptr;
  if (bytes.size() < sizeof(uint32_t)) return 0;
  const auto magic = get<uint32_t>(bytes, 0);
  if (magic == NBD_SIMPLE_REPLY_MAGIC && !terms_.extended) {
    if (bytes.size() < NBD_SIMPLE_REPLY_SIZE) return 0;
    if (find(get<uint64_t>(bytes, 8), "a reply")) take_simple(get<uint32_t>(bytes, 4));
    return blocked_ ? 0 : NBD_SIMPLE_REPLY_SIZE;
  }
  const bool structured = magic == NBD_STRUCTURED_REPLY_MAGIC && terms_.structured && !terms_.extended;
  if (!structured && (magic != NBD_EXTENDED_REPLY_MAGIC || !terms_.extended)) {
    fail("a reply begins with the wrong magic number {:#010x}", magic);
    return sizeof magic;
  }
  const size_t size = structured ? NBD_STRUCTURED_REPLY_SIZE : NBD_EXTENDED_REPLY_SIZE;
  if (bytes.size() < size) return 0;
  const auto flags = get<uint16_t>(bytes, 4);
  type_ = get<uint16_t>(bytes, 6);
  done_ = (flags & NBD_REPLY_FLAG_DONE) != 0;
  if (!find(get<uint64_t>(bytes, 8), "a chunk")) return blocked_ ? 0 : size;
  if ((flags & ~NBD_REPLY_FLAG_DONE) != 0)
    fail("a chunk has unknown flags {:#06x}", flags);
  else
    begin_chunk(structured ? get<uint32_t>(bytes, 16) : get<uint64_t>(bytes, 24));
  return size;
}

void NbdReplies::take_simple(uint32_t error) {
  NbdInFlight& request = *request_;
  if (error != NBD_SUCCESS) {
    request.error = error_of_nbd(error);
    return finish();
  }
  if (request.type == NBD_CMD_BLOCK_STATUS || (request.type == NBD_CMD_READ && terms_.structured))
    return fail("a {} is answered by a simple reply", request.type == NBD_CMD_READ ? "READ" : "BLOCK_STATUS");
  if (request.came != 0 || request.error_chunks != 0) return fail("a reply in chunks ends as a simple one");
  done_ = true;
  if (request.type != NBD_CMD_READ) return finish();
  request.came = request.length;
  begin_data(request.data, request.length);
}

void NbdReplies::begin_chunk(uint64_t length) {
  NbdInFlight& request = *request_;
  chunk_length_ = length;
  state_ = State::kPayload;
  const bool reads = request.type == NBD_CMD_READ;
  if (type_ == NBD_REPLY_TYPE_NONE) {
    if (length != 0 || !done_) return fail("an empty chunk has {} bytes, or is not the last", length);
    return end_of_chunk();
  }
  if (type_ == NBD_REPLY_TYPE_OFFSET_DATA && reads) {
    piece_ = NBD_CHUNK_OFFSET_SIZE;
    if (length <= piece_ || length - piece_ > request.length)
      return fail("a chunk of data has {} bytes for a READ of {}", length, request.length);
    return;
  }
  if (type_ == NBD_REPLY_TYPE_OFFSET_HOLE && reads) {
    piece_ = NBD_CHUNK_HOLE_SIZE;
    if (length != piece_) return fail("a hole is told in {} bytes", length);
    return;
  }
  if ((type_ == NBD_REPLY_TYPE_BLOCK_STATUS || (type_ == NBD_REPLY_TYPE_BLOCK_STATUS_EXT && terms_.extended)) &&
      request.type == NBD_CMD_BLOCK_STATUS)
    return begin_status(length);
  if ((type_ & NBD_REPLY_TYPE_IS_ERROR) != 0) {
    if (length < NBD_CHUNK_ERROR_SIZE || length > kMaxPiece) return fail("an error is told in {} bytes", length);
    if (++request.error_chunks > kMaxErrorChunks) return fail("the errors of one request do not end");
    piece_ = static_cast<size_t>(length);
    return;
  }
  fail("a chunk of type {} answers a request of type {}", type_, request.type);
}

void NbdReplies::begin_status(uint64_t length) {
  const bool wide = type_ == NBD_REPLY_TYPE_BLOCK_STATUS_EXT;
  extent_size_ = wide ? NBD_EXTENDED_EXTENT_SIZE : NBD_EXTENT_SIZE;
  piece_ = wide ? NBD_CHUNK_EXTENDED_STATUS_SIZE : NBD_CHUNK_STATUS_SIZE;
  if (length <= piece_ || (length - piece_) % extent_size_ != 0 || (length - piece_) / extent_size_ > NBD_MAX_EXTENTS)
    return fail("a block status is told in {} bytes", length);
  if (request_->status_came) return fail("a block status is told twice");
  request_->status_came = true;
}

void NbdReplies::take_payload(Bytes payload) {
  NbdInFlight& request = *request_;
  if ((type_ & NBD_REPLY_TYPE_IS_ERROR) != 0) return take_error(payload);
  if (type_ == NBD_REPLY_TYPE_BLOCK_STATUS || type_ == NBD_REPLY_TYPE_BLOCK_STATUS_EXT) return take_status_head(payload);
  const auto offset = get<uint64_t>(payload, 0);
  const bool hole = type_ == NBD_REPLY_TYPE_OFFSET_HOLE;
  const uint64_t length = hole ? get<uint32_t>(payload, 8) : chunk_length_ - NBD_CHUNK_OFFSET_SIZE;
  if (length == 0 || offset < request.offset || offset - request.offset > request.length ||
      length > request.length - (offset - request.offset))
    return fail("{} bytes at {} answer a READ of {} at {}", length, offset, request.length, request.offset);
  const uint64_t from = offset - request.offset;
  if (!cover(from, length)) return;
  if (hole) {
    std::memset(request.data + from, 0, length);
    return end_of_chunk();
  }
  begin_data(request.data + from, length);
}

void NbdReplies::begin_data(std::byte* to, uint64_t length) {
  data_to_ = to;
  data_left_ = last_data_bytes_ = static_cast<size_t>(length);
  state_ = State::kData;
}

// Notes that these bytes have come: each of them once.
bool NbdReplies::cover(uint64_t from, uint64_t length) {
  NbdInFlight& request = *request_;
  const uint64_t to = from + length;
  auto& later = request.scattered;
  const auto next = std::find_if(later.begin(), later.end(), [&](const NbdInFlight::Range& range) { return range.to > from; });
  if (from < request.in_order || (next != later.end() && next->from < to)) {
    fail("bytes {} to {} of a READ come twice", from, to);
    return false;
  }
  request.came += length;
  if (from == request.in_order) {
    request.in_order = to;
    if (next != later.end() && next->from == to) {
      request.in_order = next->to;
      later.erase(next);
    }
    return true;
  }
  const bool joins_next = next != later.end() && next->from == to;
  const bool joins_previous = next != later.begin() && std::prev(next)->to == from;
  if (joins_previous && joins_next) {
    std::prev(next)->to = next->to;
    later.erase(next);
  } else if (joins_previous) {
    std::prev(next)->to = to;
  } else if (joins_next) {
    next->from = from;
  } else if (later.size() >= kMaxScattered) {
    fail("a READ comes in more than {} scattered pieces", kMaxScattered);
    return false;
  } else {
    later.insert(next, {from, to});
  }
  return true;
}

void NbdReplies::take_error(Bytes payload) {
  const auto error = get<uint32_t>(payload, 0);
  const auto length = get<uint16_t>(payload, 4);
  const size_t tail = type_ == NBD_REPLY_TYPE_ERROR_OFFSET ? NBD_CHUNK_OFFSET_SIZE : 0;
  const bool known = type_ == NBD_REPLY_TYPE_ERROR || type_ == NBD_REPLY_TYPE_ERROR_OFFSET;
  if (length > NBD_MAX_STRING || NBD_CHUNK_ERROR_SIZE + length + tail > payload.size() ||
      (known && NBD_CHUNK_ERROR_SIZE + length + tail != payload.size()))
    return fail("an error of {} bytes has a text of {}", payload.size(), length);
  if (error == NBD_SUCCESS) return fail("an error without an error number");
  said_.assign(reinterpret_cast<const char*>(payload.data()) + NBD_CHUNK_ERROR_SIZE, length);
  if (request_->error == 0) request_->error = error_of_nbd(error);
  end_of_chunk();
}

void NbdReplies::take_status_head(Bytes payload) {
  const auto id = get<uint32_t>(payload, 0);
  if (id != terms_.allocation_id) return fail("a block status is told of the context {}, which was not asked for", id);
  extents_left_ = (chunk_length_ - piece_) / extent_size_;
  if (type_ == NBD_REPLY_TYPE_BLOCK_STATUS_EXT && get<uint32_t>(payload, 4) != extents_left_)
    return fail("a block status says {} extents and has {}", get<uint32_t>(payload, 4), extents_left_);
  state_ = State::kExtents;
}

size_t NbdReplies::take_extents(Bytes bytes) {
  size_t taken = 0;
  NbdInFlight& request = *request_;
  while (extents_left_ > 0 && bytes.size() - taken >= extent_size_) {
    const bool wide = extent_size_ == NBD_EXTENDED_EXTENT_SIZE;
    const uint64_t length = wide ? get<uint64_t>(bytes, taken) : get<uint32_t>(bytes, taken);
    const uint64_t status = wide ? get<uint64_t>(bytes, taken + 8) : get<uint32_t>(bytes, taken + 4);
    taken += extent_size_;
    --extents_left_;
    if (length == 0) {
      fail("an extent of no bytes");
      return taken;
    }
    // The last may reach beyond what was asked; what lies behind it is not looked at.
    const uint64_t inside = std::min(length, request.length - request.came);
    request.came += inside;
    if (inside > 0 && !request.status_full) request.status_full = !sink_.extent(request, inside, status);
  }
  if (extents_left_ == 0) end_of_chunk();
  return taken;
}

void NbdReplies::end_of_chunk() {
  state_ = State::kHeader;
  if (done_) finish();
}

void NbdReplies::finish() {
  NbdInFlight& request = *request_;
  state_ = State::kHeader;
  if (request.error == 0 && request.type == NBD_CMD_READ && request.came != request.length)
    return fail("the chunks of a READ of {} bytes have {}", request.length, request.came);
  if (request.error == 0 && request.type == NBD_CMD_BLOCK_STATUS && !request.status_came)
    return fail("a BLOCK_STATUS is answered without an extent");
  request_ = nullptr;
  sink_.answered(request, request.error);
}

}  // namespace netblk::proto
