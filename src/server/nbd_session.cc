// SPDX-License-Identifier: GPL-2.0-only
#include "server/nbd_session.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/log.h"
#include "coro/scope.h"
#include "io/socket.h"

namespace netblk::server {

using block::Command;
using proto::NbdHeaders;
using proto::NbdRequest;

namespace {

// Failed requests of one connection that get a line of their own in the log.
constexpr uint64_t kLoggedFailures = 10;

// A READ of this length is sent from the file itself (as netblk/2's are), or, where the file's pages are not in the
// cache, its zeroes are looked for first: below it neither pays.
constexpr uint32_t kLargeReadBytes = 64u << 10;

// Zeroes of a READ that are worth a chunk of their own.
constexpr uint64_t kHoleBytes = 4096;

Command command_of(uint16_t type) {
  switch (type) {
    case NBD_CMD_READ: return Command::kRead;
    case NBD_CMD_WRITE: return Command::kWrite;
    case NBD_CMD_TRIM: return Command::kTrim;
    case NBD_CMD_CACHE: return Command::kCache;
    case NBD_CMD_WRITE_ZEROES: return Command::kWriteZeroes;
    case NBD_CMD_BLOCK_STATUS: return Command::kBlockStatus;
    default: return Command::kFlush;
  }
}

bool modifies(uint16_t type) {
  return type == NBD_CMD_WRITE || type == NBD_CMD_TRIM || type == NBD_CMD_WRITE_ZEROES;
}

// What a client is told beside the number. Text that lives for ever: a reply points at it until it was sent.
std::string_view words_of(int error) {
  switch (error) {
    case EIO: return "input/output error of the store";
    case ENOSPC:
    case EDQUOT:
    case EFBIG: return "no space is left in the store";
    case EROFS:
    case EPERM: return "the export is read-only";
    case EOPNOTSUPP: return "zeroes here would be no faster than a write";
    case EINVAL: return "the range is not within the export";
    case ENOMEM: return "the server is out of memory";
    default: return "the store failed";
  }
}

}  // namespace

struct NbdSession::Operation : block::Request {
  Operation()
      : Request([](Request& ended) {
          auto& operation = static_cast<Operation&>(ended);
          operation.session->ended(operation);
        }) {}
  NbdSession* session = nullptr;
  Operation* next = nullptr;  // in the list of free ones, or of replies
  Hold hold;
  proto::NbdAnswered asked;
  uint16_t type = 0;
  bool from_file = false;  // a READ whose data the writer sends from the store's file
  // The reply: NBD_E*, and what follows its header.
  uint32_t reply_error = 0;
  iovec rest{};
  // A READ that tells its zeroes: they are looked for first. Its chunks, where there are some.
  std::vector<block::Extent> found;
  std::vector<std::byte> chunk_headers;
  std::vector<iovec> chunks;
  // A BLOCK_STATUS: the contexts that it asks for, by their ids, and how many extents each has said so far.
  std::vector<uint32_t> contexts;
  std::vector<uint32_t> counts;
};

NbdSession::NbdSession(Link& link, const ExportTable& exports, const io::Address& peer)
    : link_(link), exports_(exports), peer_(peer) {}

NbdSession::~NbdSession() = default;

coro::Task<void> NbdSession::run() {
  {
    link_.begin_handshake();
    NbdHandshake handshake(link_, exports_, peer_);
    export_ = co_await handshake.run();
    if (export_ == nullptr) {
      refused_ = handshake.refused();
      co_return;
    }
    begin(handshake);
  }
  {
    coro::Scope scope;
    scope.spawn(write_loop());
    co_await read_loop();
    reading_ = false;
    link_.stop_deadline();
    due_.set();
    co_await scope.join();
  }
  export_->leave();
}

void NbdSession::begin(const NbdHandshake& handshake) {
  const NbdAgreement& agreement = handshake.agreement();
  headers_ = agreement.headers;
  if (agreement.has_contexts(export_)) contexts_ = agreement.contexts;
  for (const NbdContext& context : contexts_) context_ids_.push_back(context.id);
  max_payload_bytes_ = agreement.knows_block_size ? limits::kNbdAdvertisedBytes : limits::kMaxNbdPayloadBytes;
  geometry_ = export_->device().geometry();
  file_ = export_->device().read_fd();
  file_in_memory_ = file_ >= 0 && io::is_in_memory(file_);
  log_info("{} opened: export '{}', NBD with {} replies", link_.name(), export_->config().name,
           headers_ == NbdHeaders::kSimple       ? "simple"
           : headers_ == NbdHeaders::kStructured ? "structured"
                                                 : "extended");
}

void NbdSession::close(std::string reason) {
  link_.give_up(std::move(reason), false);
  link_.linger();
}

void NbdSession::sweep() {
  if (export_ != nullptr && export_->closed()) link_.drain(export_->why_closed());
}

// ---- requests

coro::Task<void> NbdSession::read_loop() {
  const uint32_t header_bytes = proto::nbd_request_size(headers_);
  for (;;) {
    while (!link_.gone() && link_.unread_bytes() >= header_bytes) {
      NbdRequest request;
      if (const char* wrong = proto::decode_nbd_request(link_.unread().data(), headers_, request)) {
        close(wrong);
        co_return;
      }
      link_.consume(header_bytes);
      link_.stop_deadline();
      if (request.type == NBD_CMD_DISC) {
        link_.give_up("the client disconnected", false);
        co_return;
      }
      ++requests_;
      link_.context().loop.count_request();
      const uint64_t payload_bytes = proto::nbd_payload_bytes(request, headers_);
      if (payload_bytes > (headers_ == NbdHeaders::kExtended ? max_payload_bytes_ : limits::kMaxNbdPayloadBytes)) {
        close(fmt::format("{} with {} bytes of data", proto::nbd_command_text(request.type), payload_bytes));
        co_return;
      }
      Refusal refusal = refusal_of(request, payload_bytes);
      std::vector<uint32_t> asked;  // contexts
      if (refusal.error == 0 && (request.type != NBD_CMD_BLOCK_STATUS || payload_bytes == 0)) refusal = range_of(request);
      auto to_come = static_cast<uint32_t>(payload_bytes);
      if (to_come != 0 && request.type == NBD_CMD_BLOCK_STATUS && refusal.error == 0) {
        const bool whole = co_await take_status_payload(request, to_come, refusal, asked);
        if (!whole) co_return;
        to_come = 0;
      }

      // What it will hold, and a place among those in flight.
      bool from_file = false;
      uint32_t bytes = 0;
      uint32_t extents = 0;
      if (refusal.error != 0) {
      } else if (request.type == NBD_CMD_WRITE) {
        bytes = to_come;
      } else if (request.type == NBD_CMD_READ) {
        from_file = file_ >= 0 && sent_from_file(request);
        bytes = from_file || geometry_.reads_in_place ? 0 : static_cast<uint32_t>(request.length);
      } else if (request.type == NBD_CMD_BLOCK_STATUS) {
        extents = (request.flags & NBD_CMD_FLAG_REQ_ONE) != 0 ? 1 : limits::kMaxNbdExtents;
        if (asked.empty()) asked = context_ids_;
        bytes = extents * static_cast<uint32_t>(proto::nbd_extent_size(headers_) * asked.size());
        while (in_status_) co_await room_.wait();
      }
      while (!has_room(bytes)) co_await room_.wait();
      Operation& operation = take_operation(request);
      operation.from_file = from_file;
      operation.max_extents = extents;
      operation.contexts = std::move(asked);

      if (to_come != 0 && refusal.error != 0) {
        // The stream stays in step: the data of a refused request are read and dropped.
        const bool skipped = co_await link_.skip_data(to_come);
        if (!skipped) {
          free_operation(operation);
          co_return;
        }
      } else if (to_come != 0 && geometry_.writes_inline && link_.unread_bytes() >= to_come) {
        // The device copies the data before submit() returns: it can do so from where the data arrived.
        operation.data = link_.consume(to_come);
      } else if (to_come != 0) {
        if (!link_.take_here(operation.hold, to_come)) {
          const bool whole = co_await link_.take_data(operation.hold, to_come);
          if (!whole) {
            free_operation(operation);
            co_return;
          }
        }
        operation.data = operation.hold.buffer.data();
      } else if (bytes != 0) {
        if (link_.needs_budget(bytes)) co_await link_.take_budget(operation.hold, bytes);
        link_.take(operation.hold, bytes);
        operation.data = operation.hold.buffer.data();
      }
      // What was received before the connection was known to be dead, and not submitted, does not reach the store.
      if (link_.gone()) {
        free_operation(operation);
        co_return;
      }
      if (refusal.error != 0) {
        refuse(operation, refusal.error, refusal.text);
      } else {
        submit(operation, request);
      }
    }
    send_at_once();
    if (link_.draining() || link_.gone()) {
      if (link_.draining() && (link_.unread_bytes() != 0 || busy_ != 0)) link_.linger();
      co_return;
    }
    const bool more = co_await link_.receive(link_.unread_bytes() != 0,
                                             std::min(limits::kHeaderTimeoutMs, link_.context().request_timeout_ms));
    if (!more) co_return;
  }
}

// The payload says which contexts are asked for, and the length. False: the connection is over.
coro::Task<bool> NbdSession::take_status_payload(NbdRequest& request, uint64_t bytes, Refusal& refusal,
                                                 std::vector<uint32_t>& asked) {
  uint64_t length = 0;
  if (bytes > NBD_STATUS_PAYLOAD_SIZE + contexts_.size() * NBD_CONTEXT_ID_SIZE) {
    refusal = {NBD_EINVAL, "a payload that names more contexts than there are"};
    const bool skipped = co_await link_.skip_data(static_cast<uint32_t>(bytes));
    co_return skipped;
  }
  while (link_.unread_bytes() < bytes) {
    const bool more = co_await link_.receive(true, link_.context().request_timeout_ms);
    if (!more) co_return false;
  }
  link_.stop_deadline();
  const std::byte* const payload = link_.consume(static_cast<uint32_t>(bytes));
  if (const char* wrong = proto::decode_nbd_status_payload({payload, bytes}, context_ids_, length, asked)) {
    refusal = {NBD_EINVAL, wrong};
  } else {
    request.length = length;
    refusal = range_of(request);
  }
  co_return true;
}

// The command and its flags.
NbdSession::Refusal NbdSession::refusal_of(const NbdRequest& request, uint64_t payload_bytes) const {
  if (request.type > NBD_CMD_BLOCK_STATUS) return {NBD_EINVAL, "this server does not know that command"};
  if ((request.flags & ~proto::nbd_allowed_flags(request.type, headers_, !contexts_.empty())) != 0)
    return {NBD_EINVAL, "a flag that the command does not take"};
  if (modifies(request.type) && geometry_.read_only) return {NBD_EPERM, "the export is read-only"};
  if (request.type == NBD_CMD_TRIM && !geometry_.can_trim) return {NBD_EINVAL, "the export takes no TRIM"};
  if (request.type == NBD_CMD_BLOCK_STATUS && contexts_.empty())
    return {NBD_EINVAL, "no context was selected for this export"};
  if (payload_bytes > max_payload_bytes_) return {NBD_EINVAL, "more data than the largest payload"};
  return {};
}

NbdSession::Refusal NbdSession::range_of(const NbdRequest& request) const {
  if (request.type == NBD_CMD_FLUSH) {
    if (request.offset != 0 || request.length != 0) return {NBD_EINVAL, "a FLUSH with an offset or a length"};
    return {};
  }
  if (request.length == 0) return {NBD_EINVAL, "a length of 0"};
  const uint64_t size_bytes = export_->device().size_bytes();
  if (request.offset > size_bytes || request.length > size_bytes - request.offset) {
    const bool grows = request.type == NBD_CMD_WRITE || request.type == NBD_CMD_WRITE_ZEROES;
    return {grows ? uint32_t{NBD_ENOSPC} : uint32_t{NBD_EINVAL}, "the range is not within the export"};
  }
  if (request.type == NBD_CMD_READ && request.length > max_payload_bytes_)
    return {headers_ == NbdHeaders::kSimple ? uint32_t{NBD_EINVAL} : uint32_t{NBD_EOVERFLOW},
            "more data than the largest payload"};
  return {};
}

// Its pages are in the cache, as far as a few of them tell: a loop must not wait for a disk.
bool NbdSession::sent_from_file(const NbdRequest& request) const {
  if (request.length < kLargeReadBytes || !export_->sends_files()) return false;
  std::byte byte;
  if (file_in_memory_) return io::read_now(file_, {&byte, 1}, request.offset + request.length - 1, true) == 1;
  for (uint64_t at = 0; at < request.length; at += kLargeReadBytes)
    if (io::read_now(file_, {&byte, 1}, request.offset + at) != 1) return false;
  return io::read_now(file_, {&byte, 1}, request.offset + request.length - 1) == 1;
}

bool NbdSession::has_room(uint32_t bytes) const {
  return (free_ != nullptr || made_ < limits::kNbdOperations) && link_.has_room(bytes);
}

NbdSession::Operation& NbdSession::take_operation(const NbdRequest& request) {
  if (free_ == nullptr) {
    chunks_.push_back(std::make_unique<Operation[]>(kChunk));
    for (uint32_t i = 0; i < kChunk; ++i) {
      Operation& fresh = chunks_.back()[i];
      fresh.session = this;
      fresh.next = std::exchange(free_, &fresh);
    }
    made_ += kChunk;
  }
  Operation& operation = *std::exchange(free_, free_->next);
  ++busy_;
  operation.next = nullptr;
  operation.asked = {request.cookie, request.offset};
  operation.type = request.type;
  operation.offset = request.offset;
  operation.length = request.length;
  operation.data = nullptr;
  operation.reply_error = 0;
  operation.rest = {};
  return operation;
}

void NbdSession::free_operation(Operation& operation) {
  link_.release(operation.hold);
  if (!operation.found.empty() || !operation.chunks.empty()) {
    operation.found.clear();
    operation.chunks.clear();
    operation.chunk_headers.clear();
  }
  operation.next = std::exchange(free_, &operation);
  --busy_;
  room_.set();
}

void NbdSession::submit(Operation& operation, const NbdRequest& request) {
  operation.loop = &link_.context().loop;
  operation.command = command_of(request.type);
  operation.fua = (request.flags & NBD_CMD_FLAG_FUA) != 0;
  operation.keep_allocated = (request.flags & NBD_CMD_FLAG_NO_HOLE) != 0;
  operation.fast_zero = (request.flags & NBD_CMD_FLAG_FAST_ZERO) != 0;
  operation.in_place = geometry_.reads_in_place;
  operation.abandoned = &link_.gone_flag();
  operation.error = 0;
  if (operation.from_file) return ended(operation);
  if (request.type == NBD_CMD_BLOCK_STATUS) {
    in_status_ = true;
    operation.extents = &extents_;
    operation.counts.clear();
    return ask_status(operation);
  } else if (request.type == NBD_CMD_READ && request.length >= kLargeReadBytes && geometry_.can_block_status &&
             headers_ != NbdHeaders::kSimple && (request.flags & NBD_CMD_FLAG_DF) == 0) {
    operation.command = Command::kBlockStatus;
    operation.extents = &operation.found;
    operation.max_extents = limits::kNbdReadExtents;
  }
  export_->device().submit(operation);
}

// The next context that it asks for.
void NbdSession::ask_status(Operation& operation) {
  const uint32_t id = operation.contexts[operation.counts.size()];
  const auto context = std::find_if(contexts_.begin(), contexts_.end(), [&](const NbdContext& each) { return each.id == id; });
  operation.since = context->since.get();
  export_->device().submit(operation);
}

// ---- replies

// The device has ended the request, or it never went there.
void NbdSession::ended(Operation& operation) {
  if (operation.type == NBD_CMD_READ && operation.command == Command::kBlockStatus) {
    // Its zeroes are known. If that is all there is, nothing is read; what the answer left out counts as data.
    auto& found = operation.found;
    if (operation.error != 0) found.clear();
    uint64_t told = 0;
    uint64_t zeroes = 0;
    for (const block::Extent& extent : found) {
      told += extent.length;
      if (extent.zero && extent.length >= kHoleBytes) zeroes += extent.length;
    }
    if (zeroes == operation.length) {
      link_.release(operation.hold);
      return answer(operation);
    }
    if (zeroes == 0) {
      found.clear();
    } else if (told < operation.length) {
      found.push_back({operation.length - told, false, false});
    }
    operation.command = Command::kRead;
    return export_->device().submit(operation);
  }
  if (operation.type == NBD_CMD_BLOCK_STATUS) {
    if (operation.error == 0) {
      add_status(operation);
      if (operation.counts.size() < operation.contexts.size()) return ask_status(operation);
    }
    operation.since = nullptr;
    in_status_ = false;
    room_.set();
  }
  if (operation.error == 0) return answer(operation);
  // Held back by the store until its connection was known to be dead, and then not applied: it never happened.
  if (operation.error == ECANCELED && link_.gone()) {
    free_operation(operation);
    return due_.set();
  }
  const bool may_not_be_fast = operation.type == NBD_CMD_WRITE_ZEROES && operation.fast_zero;
  const int error = operation.error == EOPNOTSUPP && !may_not_be_fast ? EIO : operation.error;
  refuse(operation, proto::nbd_error(error), words_of(error));
}

void NbdSession::refuse(Operation& operation, uint32_t error, std::string_view text) {
  if (++failed_ <= kLoggedFailures)
    log_warning("{}: {} of {} bytes at offset {} failed: {}", link_.name(), proto::nbd_command_text(operation.type),
                operation.length, operation.offset, text);
  link_.release(operation.hold);
  operation.reply_error = error;
  if (headers_ != NbdHeaders::kSimple) operation.rest = {const_cast<char*>(text.data()), text.size()};
  queue(operation);
}

void NbdSession::answer(Operation& operation) {
  if (operation.type == NBD_CMD_READ) {
    if (!tell_holes(operation) && !operation.from_file) operation.rest = {operation.data, operation.length};
  } else if (operation.type == NBD_CMD_BLOCK_STATUS) {
    tell_status(operation);
  } else {
    link_.release(operation.hold);
  }
  queue(operation);
}

// What the device has said of one context, behind what it said of those before.
void NbdSession::add_status(Operation& operation) {
  const size_t each = proto::nbd_extent_size(headers_);
  std::byte* to = operation.data + operation.counts.size() * operation.max_extents * each;
  uint32_t count = 0;
  for (size_t i = 0; i < extents_.size(); ++count, to += each) {
    const auto status = [&](const block::Extent& extent) {
      if (operation.since != nullptr) return extent.changed ? NBD_STATE_DIRTY : 0;
      return (extent.hole ? NBD_STATE_HOLE : 0) | (extent.zero ? NBD_STATE_ZERO : 0);
    };
    const uint32_t first = status(extents_[i]);
    uint64_t length = 0;
    for (; i < extents_.size() && status(extents_[i]) == first; ++i) length += extents_[i].length;
    proto::nbd_put_extent(headers_, length, first, to);
  }
  operation.counts.push_back(count);
}

// A chunk for each context.
void NbdSession::tell_status(Operation& operation) {
  const size_t each = proto::nbd_extent_size(headers_);
  const size_t contexts = operation.contexts.size();
  operation.chunk_headers.resize(contexts * proto::kNbdReplyBytes);
  for (size_t i = 0; i < contexts; ++i) {
    std::byte* const header = &operation.chunk_headers[i * proto::kNbdReplyBytes];
    const size_t bytes = proto::nbd_reply_status(headers_, operation.asked, operation.contexts[i], operation.counts[i],
                                                 i + 1 == contexts, header);
    operation.chunks.push_back({header, bytes});
    operation.chunks.push_back({operation.data + i * operation.max_extents * each, operation.counts[i] * each});
  }
}

// False: it is all data.
bool NbdSession::tell_holes(Operation& operation) {
  if (operation.found.empty()) return false;
  // Neighbours that are data, or too small to be told apart from them, share a chunk.
  const auto is_hole = [](const block::Extent& extent) { return extent.zero && extent.length >= kHoleBytes; };
  operation.chunk_headers.resize(operation.found.size() * proto::kNbdHoleBytes);
  std::byte* to = operation.chunk_headers.data();
  uint64_t at = 0;
  for (size_t i = 0; i < operation.found.size();) {
    const bool hole = is_hole(operation.found[i]);
    uint64_t length = operation.found[i++].length;
    while (i < operation.found.size() && is_hole(operation.found[i]) == hole) length += operation.found[i++].length;
    const bool last = i == operation.found.size();
    const auto write = hole ? proto::nbd_reply_hole : proto::nbd_reply_data;
    const size_t bytes = write(headers_, operation.asked, operation.offset + at, static_cast<uint32_t>(length), last, to);
    operation.chunks.push_back({to, bytes});
    if (!hole) operation.chunks.push_back({operation.data + at, length});
    to += bytes;
    at += length;
  }
  return true;
}

void NbdSession::queue(Operation& operation) {
  operation.next = nullptr;
  (replies_tail_ == nullptr ? replies_head_ : replies_tail_->next) = &operation;
  replies_tail_ = &operation;
  due_.set();
}

// What goes before `rest`.
size_t NbdSession::put_header(const Operation& operation, std::byte* to) const {
  const auto rest_bytes = static_cast<uint32_t>(operation.rest.iov_len);
  if (operation.reply_error != 0) {
    const std::string_view text(static_cast<const char*>(operation.rest.iov_base), rest_bytes);
    return proto::nbd_reply_error(headers_, operation.asked, operation.reply_error, text, to);
  }
  switch (operation.type) {
    case NBD_CMD_READ:
      return proto::nbd_reply_data(headers_, operation.asked, operation.offset, static_cast<uint32_t>(operation.length),
                                   true, to);
    default: return proto::nbd_reply_done(headers_, operation.asked, to);
  }
}

// Takes replies from the queue for one send. False: there are none.
bool NbdSession::gather() {
  size_t used = 0;
  std::byte* to = sending_.headers.data();
  sending_.first = replies_head_;
  for (size_t replies = 0; replies_head_ != nullptr && replies < kBatchReplies; ++replies) {
    Operation& operation = *replies_head_;
    const size_t wanted = std::max<size_t>(2, operation.chunks.size());
    if (used + wanted > sending_.parts.size() || (replies != 0 && sending_.last->from_file)) break;
    sending_.last = &operation;
    replies_head_ = operation.next;
    if (!operation.chunks.empty()) {
      for (const iovec& chunk : operation.chunks) sending_.parts[used++] = chunk;
      continue;
    }
    const size_t bytes = put_header(operation, to);
    if (used > 0 && static_cast<std::byte*>(sending_.parts[used - 1].iov_base) + sending_.parts[used - 1].iov_len == to) {
      sending_.parts[used - 1].iov_len += bytes;
    } else {
      sending_.parts[used++] = {to, bytes};
    }
    to += bytes;
    if (operation.rest.iov_len != 0) sending_.parts[used++] = operation.rest;
  }
  if (replies_head_ == nullptr) replies_tail_ = nullptr;
  sending_.rest = replies_head_;
  sending_.left = {sending_.parts.data(), used};
  return used != 0;
}

void NbdSession::free_sent() {
  sending_.left = {};
  for (Operation* sent = std::exchange(sending_.first, nullptr); sent != sending_.rest;)
    free_operation(*std::exchange(sent, sent->next));
}

// The reader's, when it has decoded all that came: the client is answered before other connections have their turn. What
// does not fit now is the writer's, which the queue has woken.
void NbdSession::send_at_once() {
  while (sending_.first == nullptr && gather()) {
    if (sending_.last->from_file) return;
    sending_.left = link_.send_now(sending_.left, false);
    if (!sending_.left.empty()) return;
    free_sent();
  }
}

coro::Task<void> NbdSession::write_loop() {
  for (;;) {
    if (sending_.first == nullptr && !gather()) {
      if (!reading_ && busy_ == 0) co_return;
      co_await due_.wait();
      continue;
    }
    // On a connection that is over the rest is dropped, but its operations end as the others do.
    const Operation& last = *sending_.last;
    const bool sent_all = co_await link_.send(sending_.left, last.from_file);
    if (sent_all && last.from_file) {
      const bool given = co_await link_.send_file(file_, last.offset, last.length);
      if (!given) export_->stop_sending_files();
    }
    free_sent();
  }
}

}  // namespace netblk::server
