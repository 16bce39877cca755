// SPDX-License-Identifier: GPL-2.0-only
#include "server/session2.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/crc32c.h"
#include "base/log.h"
#include "coro/scope.h"
#include "io/socket.h"

namespace netblk::server {

using block::Command;
using proto::Reply2;
using proto::Request2;

namespace {

// Failed requests of one connection that get a line of their own in the log.
constexpr uint64_t kLoggedFailures = 10;

// A READ of this length is sent from the file itself where nobody must see the data on the way. bench/README.md has the
// measurement: half the CPU at 64 KiB. The file's pages are looked for at this distance: a loop must not wait for a disk.
constexpr uint32_t kFromFileBytes = 64u << 10;

// The least payload that is worth compressing.
constexpr uint32_t kCompressBytes = 1024;

constexpr size_t kBatchReplies = limits::kSendReplies2;

Command command_of(uint8_t type) {
  switch (type) {
    case NETBLK2_READ: return Command::kRead;
    case NETBLK2_WRITE: return Command::kWrite;
    case NETBLK2_TRIM: return Command::kTrim;
    case NETBLK2_WRITE_ZEROES: return Command::kWriteZeroes;
    default: return Command::kFlush;
  }
}

}  // namespace

struct Session2::Operation : block::Request {
  Operation()
      : Request([](Request& ended) {
          auto& operation = static_cast<Operation&>(ended);
          operation.session->ended(operation);
        }) {}
  Session2* session = nullptr;
  Operation* next = nullptr;  // in the list of free ones, or of replies
  Hold hold;
  uint64_t ledger_before = 0;
  uint64_t cookie = 0;
  uint32_t sequence = 0;
  uint16_t slot = 0;
  uint8_t type = 0;
  bool from_file = false;  // a READ whose data the writer sends from the store's file
  // The reply.
  uint8_t reply_flags = 0;
  uint32_t status = 0;
  uint32_t payload_bytes = 0;
  uint32_t payload_crc = 0;
  Stopwatch::Stamp stamp;
};

Session2::Session2(Link& link, const ExportTable& exports, const io::Address& peer, std::shared_ptr<Export> place)
    : link_(link), exports_(exports), peer_(peer), place_(std::move(place)), stopwatch_(link.context().loop) {}

Session2::~Session2() = default;

coro::Task<void> Session2::run() {
  proto::Hello2 hello;
  const bool came = co_await receive_hello(hello);
  presence_ = std::make_shared<Presence>(link_);
  bool greeted = false;
  if (came) greeted = co_await greet(hello);
  if (greeted) {
    coro::Scope scope;
    scope.spawn(write_loop());
    co_await read_loop();
    reading_ = false;
    link_.stop_deadline();
    due_.set();
    co_await scope.join();
  }
  if (place_ != nullptr) place_->leave();
  if (export_ == nullptr) co_return;
  export_->sessions().leave(*presence_);
  export_->leave();
}

void Session2::close(std::string reason) {
  link_.give_up(std::move(reason), false);
  link_.linger();
}

void Session2::sweep(uint64_t now_ms) {
  if (session_ == nullptr) return;
  if (export_->closed()) link_.drain(export_->why_closed());
  if (pushes_size_ && export_->device().size_bytes() != told_size_bytes_) due_.set();
  if (stopwatch_.has_news()) {
    times_due_ = true;
    due_.set();
  }
  if (heartbeat_ms_ == 0) return;
  // Scenario: a host lost its power, or a cable was cut: nothing ever says so but silence. The session stays; the
  // connection does not.
  if (link_.received_bytes() != std::exchange(heard_bytes_, link_.received_bytes())) heard_at_ms_ = now_ms;
  if (now_ms >= heard_at_ms_ + uint64_t{heartbeat_ms_} * NETBLK2_HEARTBEAT_PERIODS)
    return link_.abort(fmt::format("the client was silent for {} heartbeats of {} ms", NETBLK2_HEARTBEAT_PERIODS,
                                   heartbeat_ms_));
  if (link_.sent_bytes() != std::exchange(said_bytes_, link_.sent_bytes())) said_at_ms_ = now_ms;
  if (now_ms + limits::kSweepPeriodMs >= said_at_ms_ + heartbeat_ms_) {
    said_at_ms_ = now_ms;
    heartbeat_due_ = true;
    due_.set();
  }
}

// ---- the handshake

coro::Task<bool> Session2::receive_hello(proto::Hello2& hello) {
  size_t wanted = proto::kGreetingPrefix;
  for (;;) {
    if (link_.unread_bytes() >= proto::kGreetingPrefix) {
      const auto length = proto::hello_length(link_.unread());
      if (!length) {
        // Whoever does not even say the magic speaks something else, and would not understand an answer.
        if (std::memcmp(link_.unread().data(), NETBLK2_MAGIC, NETBLK2_MAGIC_SIZE) == 0) {
          co_await refuse(NETBLK2_EPROTO, length.error().message);
        } else {
          close(length.error().message);
        }
        co_return false;
      }
      wanted = length.value();
    }
    if (link_.unread_bytes() >= wanted) break;
    const bool more = co_await link_.receive(true, link_.context().handshake_timeout_ms);
    if (!more) co_return false;
  }
  link_.stop_deadline();
  auto decoded = proto::decode_hello(link_.unread().first(wanted));
  link_.consume(static_cast<uint32_t>(wanted));
  if (decoded) {
    hello = std::move(decoded).value();
    co_return true;
  }
  co_await refuse(NETBLK2_EPROTO, decoded.error().message);
  co_return false;
}

coro::Task<bool> Session2::send_welcome(const proto::Welcome2& welcome) {
  std::vector<std::byte> bytes = proto::encode_welcome(welcome);
  std::array<iovec, 1> parts{{{bytes.data(), bytes.size()}}};
  const bool sent = co_await link_.send(parts);
  co_return sent;
}

coro::Task<void> Session2::refuse(uint32_t status, std::string text) {
  refused_ = true;
  close(text);
  proto::Welcome2 welcome;
  welcome.status = status;
  welcome.max_connections = 0;
  welcome.block_bytes = welcome.preferred_bytes = welcome.max_payload_bytes = welcome.slots = 0;
  welcome.body = std::move(text);
  co_await send_welcome(welcome);
}

// Which of the offered features are in force. False: a mandatory one is not, `missing` names it.
bool Session2::negotiate(const proto::Hello2& hello, std::vector<proto::Feature2>& features, std::string& missing) {
  for (const proto::Feature2& offered : hello.features) {
    uint32_t value = 0;
    bool known = true;
    switch (offered.number) {
      case NETBLK2_FEATURE_CRC32C: framing_.crc = true; break;
      case NETBLK2_FEATURE_LZ4: framing_.lz4 = true; break;
      case NETBLK2_FEATURE_ZSTD: framing_.zstd = true; break;
      case NETBLK2_FEATURE_HEARTBEAT:
        value = heartbeat_ms_ = std::clamp(offered.value, limits::kMinHeartbeatMs, limits::kMaxHeartbeatMs);
        break;
      case NETBLK2_FEATURE_RESIZE: pushes_size_ = true; break;
      case NETBLK2_FEATURE_TIMES: stopwatch_.begin(); break;
      default: known = false;
    }
    if (known) {
      features.push_back(proto::make_feature(static_cast<netblk2_feature_number>(offered.number), value));
    } else if (offered.mandatory) {
      missing = offered.name;
      return false;
    }
  }
  return true;
}

proto::Welcome2 Session2::describe() const {
  const block::Device& device = export_->device();
  const block::Geometry geometry = device.geometry();
  const block::Generation generation = device.generation();
  proto::Welcome2 welcome;
  welcome.max_connections = limits::kMaxSessionConnections;
  welcome.store_uuid = generation.uuid;
  welcome.generation = generation.counter;
  welcome.size_bytes = geometry.size_bytes / limits::kSectorBytes * limits::kSectorBytes;
  welcome.max_payload_bytes = limits::kMaxPayloadBytes;
  welcome.slots = limits::kSessionSlots;
  if (geometry.read_only) welcome.flags |= NETBLK2_WELCOME_READ_ONLY;
  if (geometry.can_trim) welcome.flags |= NETBLK2_WELCOME_TRIM;
  return welcome;
}

coro::Task<void> Session2::tell_exports(const proto::Hello2& hello) {
  proto::Welcome2 welcome;
  uint32_t number = 0;
  for (const auto& entry : exports_.all()) {
    if (entry == nullptr || !entry->allows(peer_)) continue;
    if (number++ < hello.list_from) continue;
    const block::Geometry geometry = entry->device().geometry();
    std::string more = welcome.body;
    proto::append_export(more, {geometry.size_bytes, geometry.read_only ? uint32_t{NETBLK2_WELCOME_READ_ONLY} : 0u,
                                entry->config().name});
    if (more.size() > NETBLK2_MAX_WELCOME - NETBLK2_WELCOME_SIZE) {
      welcome.flags |= NETBLK2_WELCOME_MORE;
      break;
    }
    welcome.body = std::move(more);
  }
  close("the exports were listed");
  co_await send_welcome(welcome);
}

// Why not, or an empty text.
std::string Session2::enter(std::shared_ptr<Export> wanted) {
  if (wanted != place_) {
    std::string why = wanted->enter(peer_);
    if (!why.empty()) return why;
    if (place_ != nullptr) place_->leave();
  }
  place_ = nullptr;
  export_ = std::move(wanted);
  return {};
}

// True: the client is in a session.
coro::Task<bool> Session2::greet(const proto::Hello2& hello) {
  std::vector<proto::Feature2> features;
  std::string missing;
  if (!negotiate(hello, features, missing)) {
    co_await refuse(NETBLK2_EOPNOTSUPP, fmt::format("the feature '{}' is mandatory and not here", missing));
    co_return false;
  }
  if ((hello.flags & NETBLK2_HELLO_LIST) != 0 && (hello.flags & NETBLK2_HELLO_INFO) != 0) {
    co_await refuse(NETBLK2_EPROTO, "a hello that asks for the list of exports and for one of them");
    co_return false;
  }
  if (hello.flags & NETBLK2_HELLO_LIST) {
    co_await tell_exports(hello);
    co_return false;
  }
  std::shared_ptr<Export> wanted = exports_.find(hello.export_name);
  if (wanted == nullptr) {
    if (exports_.is_away(hello.export_name)) {
      co_await refuse(NETBLK2_EAGAIN, "the export is being changed: try again");
      co_return false;
    }
    // Into a local: g++ 12 destroys a temporary of ?: twice where it is an argument of what is awaited.
    std::string why = "nothing is exported";
    if (!hello.export_name.empty()) why = fmt::format("there is no export '{}'", hello.export_name);
    co_await refuse(NETBLK2_ENOENT, std::move(why));
    co_return false;
  }
  if (const std::string why = enter(wanted); !why.empty()) {
    // One that is closed is being changed, or has gone: by then the next try is told.
    const uint32_t status = wanted->closed() ? NETBLK2_EAGAIN : NETBLK2_EPERM;
    co_await refuse(status, fmt::format("export '{}': {}", wanted->config().name, why));
    co_return false;
  }
  proto::Welcome2 welcome = describe();
  welcome.features = features;
  if (hello.flags & NETBLK2_HELLO_INFO) {
    close("the export was described");
    co_await send_welcome(welcome);
    co_return false;
  }
  const Admission admission = co_await export_->sessions().admit(hello, presence_);
  if (admission.status != NETBLK2_OK) {
    co_await refuse(admission.status, admission.text);
    co_return false;
  }
  session_ = admission.session;
  link_.opened();
  // Told after the fence: what ended last may have moved the generation.
  welcome = describe();
  welcome.features = std::move(features);
  welcome.flags |= admission.flags;
  if (!session_->writes) welcome.flags |= NETBLK2_WELCOME_READ_ONLY;
  welcome.session_id = session_->id;
  welcome.slots = session_->ledger.slots();
  framing_.max_payload_bytes = welcome.max_payload_bytes;
  if (!framing_.crc && !framing_.lz4 && !framing_.zstd) {
    file_ = export_->device().read_fd();
    in_place_ = export_->device().geometry().reads_in_place;
  }
  writes_inline_ = export_->device().geometry().writes_inline;
  told_size_bytes_ = welcome.size_bytes;
  heard_at_ms_ = said_at_ms_ = link_.context().loop.now_ms();
  log_info("{} opened: export '{}', client {}, session {} connection {} epoch {}{}", link_.name(), export_->config().name,
           id_text(hello.client_id), id_text(session_->id), hello.connection, hello.epoch,
           admission.flags & NETBLK2_WELCOME_NEW       ? ", new"
           : admission.flags & NETBLK2_WELCOME_ADOPTED ? ", adopted"
                                                       : "");
  const bool sent = co_await send_welcome(welcome);
  co_return sent;
}

// ---- requests

coro::Task<void> Session2::read_loop() {
  stopwatch_.go_on();
  for (;;) {
    while (!link_.gone() && link_.unread_bytes() >= NETBLK2_REQUEST_SIZE) {
      Request2 request;
      const char* wrong = proto::decode_request(link_.unread().first(NETBLK2_REQUEST_SIZE), framing_, request);
      if (wrong != nullptr) {
        close(wrong);
        co_return;
      }
      link_.consume(NETBLK2_REQUEST_SIZE);
      link_.stop_deadline();
      if (request.type == NETBLK2_HEARTBEAT) {
        if (heartbeat_ms_ != 0) continue;
        close("a heartbeat, which was not negotiated");
        co_return;
      }
      if (request.type == NETBLK2_GOODBYE) {
        co_await say_goodbye(request);
        co_return;
      }
      ++requests_;
      const int error = refusal(request);
      const bool from_file = error == 0 && file_ >= 0 && sent_from_file(request);
      const bool fetches = request.type == NETBLK2_READ && !from_file && !in_place_;
      const uint32_t bytes = error != 0 ? 0u : std::max(request.payload_length, fetches ? request.length : 0u);
      uint64_t came_ns = stopwatch_.now_ns();
      while (!has_room(bytes)) {
        stopwatch_.pause();
        co_await room_.wait();
        stopwatch_.go_on();
      }
      Operation& operation = take_operation(request);
      operation.error = error;
      operation.from_file = from_file;
      if (request.payload_length != 0) {
        bool sound = false;
        if (is_taken_in_place(request, error)) {
          sound = take_in_place(operation, request);
        } else if (link_.unread_bytes() >= request.payload_length) {
          sound = co_await take_payload(operation, request);
        } else {
          // Until the rest of it has come, it is the network's.
          stopwatch_.pause();
          sound = co_await take_payload(operation, request);
          stopwatch_.go_on();
          came_ns = stopwatch_.now_ns();
        }
        if (!sound) {
          free_operation(operation);
          co_return;
        }
      } else if (bytes != 0) {
        if (link_.needs_budget(bytes)) {
          stopwatch_.pause();
          co_await link_.take_budget(operation.hold, bytes);
          stopwatch_.go_on();
        }
        link_.take(operation.hold, bytes);
        operation.data = operation.hold.buffer.data();
      }
      stopwatch_.submit(operation.stamp, came_ns);
      const bool goes_on = run_request(operation, request);
      stopwatch_.submitted();
      if (!goes_on) co_return;
    }
    stopwatch_.pause();
    if (link_.draining() || link_.gone()) {
      if (link_.draining() && (link_.unread_bytes() != 0 || busy_ != 0)) link_.linger();
      co_return;
    }
    const bool more = co_await link_.receive(link_.unread_bytes() != 0,
                                             std::min(limits::kHeaderTimeoutMs, link_.context().request_timeout_ms));
    if (!more) co_return;
    stopwatch_.go_on();
  }
}

// 0, or why the request does not reach the device. The client is told, and the stream stays in step.
int Session2::refusal(const Request2& request) const {
  if (request.type == NETBLK2_FLUSH || request.type == NETBLK2_NOP) return 0;
  if (request.type != NETBLK2_READ && !session_->writes) return EROFS;
  if (request.type == NETBLK2_TRIM && !export_->device().geometry().can_trim) return EOPNOTSUPP;
  if (request.length == 0 || request.length % limits::kSectorBytes != 0 || request.offset % limits::kSectorBytes != 0)
    return EINVAL;
  const uint64_t size_bytes = export_->device().size_bytes();
  return request.offset > size_bytes || request.length > size_bytes - request.offset ? EINVAL : 0;
}

// Its pages are in the cache, as far as a few of them tell.
bool Session2::sent_from_file(const Request2& request) const {
  if (request.type != NETBLK2_READ || request.length < kFromFileBytes || !export_->sends_files()) return false;
  std::byte byte;
  for (uint32_t at = 0; at < request.length; at += kFromFileBytes)
    if (io::read_now(file_, {&byte, 1}, request.offset + at) != 1) return false;
  return io::read_now(file_, {&byte, 1}, request.offset + request.length - 1) == 1;
}

bool Session2::has_room(uint32_t bytes) const {
  return (free_ != nullptr || made_ < session_->ledger.slots()) && link_.has_room(bytes);
}

Session2::Operation& Session2::take_operation(const Request2& request) {
  if (free_ == nullptr) {
    const uint32_t count = std::min(kChunk, session_->ledger.slots() - made_);
    chunks_.push_back(std::make_unique<Operation[]>(count));
    for (uint32_t i = 0; i < count; ++i) {
      Operation& fresh = chunks_.back()[i];
      fresh.session = this;
      fresh.next = std::exchange(free_, &fresh);
    }
    made_ += count;
  }
  Operation& operation = *std::exchange(free_, free_->next);
  ++busy_;
  operation.next = nullptr;
  operation.cookie = request.cookie;
  operation.sequence = request.sequence;
  operation.slot = request.slot;
  operation.type = request.type;
  operation.from_file = false;
  operation.data = nullptr;
  operation.reply_flags = 0;
  operation.payload_bytes = operation.payload_crc = 0;
  return operation;
}

void Session2::free_operation(Operation& operation) {
  link_.release(operation.hold);
  operation.next = std::exchange(free_, &operation);
  --busy_;
  room_.set();
}

bool Session2::checked(const Request2& request, std::span<const std::byte> payload) {
  if (!framing_.crc || crc32c(payload) == request.payload_crc) return true;
  // The bytes are not what the client sent. It sends them again on a new connection.
  link_.abort("the checksum of a WRITE's data is wrong");
  return false;
}

// A device that copies the data of a WRITE before submit() returns can do so from where it arrived.
bool Session2::is_taken_in_place(const Request2& request, int error) const {
  return error == 0 && writes_inline_ && link_.unread_bytes() >= request.payload_length &&
         (request.flags & (NETBLK2_LZ4 | NETBLK2_ZSTD)) == 0;
}

bool Session2::take_in_place(Operation& operation, const Request2& request) {
  operation.data = link_.consume(request.payload_length);
  return checked(request, {operation.data, request.payload_length});
}

// Receives, checks and unpacks the data of a WRITE into the operation. False: the connection is over.
coro::Task<bool> Session2::take_payload(Operation& operation, const Request2& request) {
  const uint32_t bytes = request.payload_length;
  if (operation.error != 0) {
    const bool skipped = co_await link_.skip_data(bytes);
    co_return skipped;
  }
  const bool packed = (request.flags & (NETBLK2_LZ4 | NETBLK2_ZSTD)) != 0;
  const bool all_here = link_.unread_bytes() >= bytes;
  std::span<const std::byte> payload;
  Hold raw;
  if (all_here && packed) {
    payload = {link_.consume(bytes), bytes};
  } else {
    // Of a WRITE that is still to come, nothing is held yet but what it gets to send.
    Hold& hold = packed ? raw : operation.hold;
    if (all_here && link_.needs_budget(bytes)) co_await link_.take_budget(hold, bytes);
    link_.take(hold, bytes);
    const uint32_t here = std::min(link_.unread_bytes(), bytes);
    std::memcpy(hold.buffer.data(), link_.consume(here), here);
    if (here < bytes) {
      const bool whole = co_await link_.receive_data(hold, here, bytes);
      if (!whole) {
        link_.release(raw);
        co_return false;
      }
    }
    payload = {hold.buffer.data(), bytes};
    operation.data = hold.buffer.data();
  }
  bool sound = checked(request, payload);
  if (sound && packed) {
    if (link_.needs_budget(request.length)) co_await link_.take_budget(operation.hold, request.length);
    link_.take(operation.hold, request.length);
    operation.data = operation.hold.buffer.data();
    const auto flag = static_cast<uint8_t>(request.flags & (NETBLK2_LZ4 | NETBLK2_ZSTD));
    sound = compressor_.decompress(flag, payload, {operation.data, request.length});
    if (!sound) close("the data of a WRITE do not unpack to its length");
  }
  link_.release(raw);
  co_return sound;
}

// The request is whole. False: the connection is over.
bool Session2::run_request(Operation& operation, const Request2& request) {
  // The fence is looked at here, at submission: what was received before it and not submitted is as if it had never come.
  if (link_.gone()) {
    free_operation(operation);
    return false;
  }
  const Ledger::Taken taken =
      session_->ledger.take(request.slot, request.sequence, request.type == NETBLK2_READ);
  switch (taken.verdict) {
    case Ledger::Verdict::kNew: break;
    case Ledger::Verdict::kRepeated: answer(operation, taken.status); return true;
    case Ledger::Verdict::kRunning:
    case Ledger::Verdict::kOutOfOrder:
    case Ledger::Verdict::kNoSuchSlot:
      free_operation(operation);
      close(taken.verdict == Ledger::Verdict::kRunning ? fmt::format("slot {} was used twice at once", request.slot)
            : taken.verdict == Ledger::Verdict::kOutOfOrder
                ? fmt::format("sequence {} is not the next of slot {}", request.sequence, request.slot)
                : fmt::format("slot {} of {}", request.slot, session_->ledger.slots()));
      return false;
  }
  operation.ledger_before = taken.before;
  operation.loop = &link_.context().loop;
  operation.command = command_of(request.type);
  operation.offset = request.offset;
  operation.length = request.length;
  operation.in_place = in_place_;
  operation.fua = (request.flags & NETBLK2_FUA) != 0;
  operation.keep_allocated = (request.flags & NETBLK2_NO_UNMAP) != 0;
  operation.abandoned = &link_.gone_flag();
  if (operation.error != 0 || request.type == NETBLK2_NOP || operation.from_file) {
    ended(operation);
  } else {
    export_->device().submit(operation);
  }
  return true;
}

// Answered when everything before it on this connection has been.
coro::Task<void> Session2::say_goodbye(const Request2& request) {
  while (busy_ != 0) co_await room_.wait();
  Operation& operation = take_operation(request);
  uint32_t status = NETBLK2_OK;
  if (request.flags & NETBLK2_END_SESSION) status = co_await export_->sessions().end(*session_, *presence_);
  answer(operation, status);
  close("the client said goodbye");
}

// ---- replies

// The device has ended the request, or it never went there.
void Session2::ended(Operation& operation) {
  // Held back by the store until its connection was known to be dead, and then not applied: it never happened.
  if (operation.error == ECANCELED && link_.gone()) {
    session_->ledger.restore(operation.slot, operation.ledger_before);
    free_operation(operation);
    due_.set();
    return;
  }
  const uint32_t status = proto::status_of(operation.error);
  if (operation.type == NETBLK2_READ && session_->ledger.leaves_no_trace(operation.ledger_before))
    session_->ledger.restore(operation.slot, operation.ledger_before);
  else
    session_->ledger.finish(operation.slot, status);
  if (operation.error != 0 && ++failed_ <= kLoggedFailures && operation.error != EINVAL)
    log_warning("{}: {} of {} bytes at offset {} failed: {}", link_.name(), block::command_text(operation.command),
                operation.length, operation.offset, errno_text(operation.error));
  answer(operation, status);
}

void Session2::answer(Operation& operation, uint32_t status) {
  operation.status = status;
  stopwatch_.end(operation.stamp);
  if (operation.type != NETBLK2_READ || status != NETBLK2_OK) {
    link_.release(operation.hold);
  } else if (!operation.from_file) {
    pack(operation);
  }
  operation.next = nullptr;
  (replies_tail_ == nullptr ? replies_head_ : replies_tail_->next) = &operation;
  replies_tail_ = &operation;
  due_.set();
}

// The data of a READ: compressed where that wins, and its checksum.
void Session2::pack(Operation& operation) {
  const auto length = static_cast<uint32_t>(operation.length);
  operation.payload_bytes = length;
  const uint8_t way = framing_.lz4 ? uint8_t{NETBLK2_LZ4} : framing_.zstd ? uint8_t{NETBLK2_ZSTD} : uint8_t{0};
  if (way != 0 && length >= kCompressBytes && luck_.worth_trying()) {
    Hold packed;
    link_.take(packed, static_cast<uint32_t>(proto::worthwhile_bytes(length)));
    const size_t bytes = compressor_.compress(way, {operation.data, length},
                                              {packed.buffer.data(), packed.buffer.size_bytes()});
    luck_.note(bytes != 0);
    if (bytes == 0) {
      link_.release(packed);
    } else {
      // The budget that the data was given goes on with what takes its place, which is smaller.
      std::swap(operation.hold, packed);
      operation.hold.charged_bytes = std::exchange(packed.charged_bytes, 0);
      link_.release(packed);
      operation.data = operation.hold.buffer.data();
      operation.payload_bytes = static_cast<uint32_t>(bytes);
      operation.reply_flags = way;
    }
  }
  if (framing_.crc) operation.payload_crc = crc32c({operation.data, operation.payload_bytes});
}

coro::Task<void> Session2::write_loop() {
  // Headers lie side by side: the replies of WRITEs are one part.
  constexpr size_t kUnasked = 2 + Stopwatch::kTypes;
  std::array<std::byte, (kBatchReplies + kUnasked) * NETBLK2_REPLY_SIZE> headers;
  std::array<iovec, 2 * kBatchReplies + kUnasked> parts;
  for (;;) {
    size_t said = 0;
    size_t used = 0;
    const auto place = [&] {
      std::byte* const to = headers.data() + said++ * NETBLK2_REPLY_SIZE;
      if (used > 0 && static_cast<std::byte*>(parts[used - 1].iov_base) + parts[used - 1].iov_len == to) {
        parts[used - 1].iov_len += NETBLK2_REPLY_SIZE;
      } else {
        parts[used++] = {to, NETBLK2_REPLY_SIZE};
      }
      return to;
    };
    const auto say = [&](const Reply2& message) { proto::encode_reply(message, framing_.crc, place()); };
    if (std::exchange(heartbeat_due_, false)) say({.type = NETBLK2_HEARTBEAT});
    const uint64_t size_bytes = export_->device().size_bytes() / limits::kSectorBytes * limits::kSectorBytes;
    if (pushes_size_ && size_bytes != std::exchange(told_size_bytes_, size_bytes))
      say({.type = NETBLK2_RESIZE, .cookie = size_bytes});
    if (std::exchange(times_due_, false))
      while (const auto times = stopwatch_.take()) proto::encode_times(*times, framing_.crc, place());
    Operation* const first = replies_head_;
    Operation* last = nullptr;
    for (size_t replies = 0; replies_head_ != nullptr && replies < kBatchReplies && (last == nullptr || !last->from_file);
         ++replies) {
      Operation& operation = *(last = replies_head_);
      const bool from_file = operation.from_file && operation.status == NETBLK2_OK;
      say({.type = operation.type,
           .flags = operation.reply_flags,
           .slot = operation.slot,
           .sequence = operation.sequence,
           .cookie = operation.cookie,
           .status = operation.status,
           .payload_length = from_file ? static_cast<uint32_t>(operation.length) : operation.payload_bytes,
           .payload_crc = operation.payload_crc});
      stopwatch_.reply(operation.type, operation.stamp);
      if (operation.payload_bytes != 0) parts[used++] = {operation.data, operation.payload_bytes};
      replies_head_ = operation.next;
    }
    if (replies_head_ == nullptr) replies_tail_ = nullptr;
    Operation* const rest = replies_head_;
    if (used == 0) {
      if (!reading_ && busy_ == 0) co_return;
      co_await due_.wait();
      continue;
    }
    // On a connection that is over the rest is dropped, but its operations end as the others do.
    const bool sent_all = co_await link_.send({parts.data(), used});
    if (sent_all && last != nullptr && last->from_file) {
      const bool given = co_await link_.send_file(file_, last->offset, last->length);
      if (!given) export_->stop_sending_files();
    }
    for (Operation* sent = first; sent != rest;) free_operation(*std::exchange(sent, sent->next));
  }
}

}  // namespace netblk::server
