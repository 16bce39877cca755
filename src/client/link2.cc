// SPDX-License-Identifier: GPL-2.0-only
#include "client/link2.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/crc32c.h"
#include "client/session2.h"
#include "coro/scope.h"

namespace netblk::client {
namespace {

// Compressing less than this saves no time on any network.
constexpr uint32_t kLeastPacked = 1024;
// A payload of this length is followed by one of its kind more often than not.
constexpr size_t kLargeBytes = 64u << 10;
// Of the memory for a compressed payload, between two of them.
constexpr size_t kKeptBytes = 1u << 20;

// What a user asked for that is sent as this type. A NOP is nobody's, and no user's time.
block::Command command_of(uint8_t type) {
  switch (type) {
    case NETBLK2_READ: return block::Command::kRead;
    case NETBLK2_WRITE: return block::Command::kWrite;
    case NETBLK2_FLUSH: return block::Command::kFlush;
    case NETBLK2_TRIM: return block::Command::kTrim;
    case NETBLK2_WRITE_ZEROES: return block::Command::kWriteZeroes;
    default: return block::Command::kBlockStatus;
  }
}

Error hung_up() {
  return make_error(EPROTONOSUPPORT, "the server closed the connection upon the hello: it does not speak netblk/2");
}

}  // namespace

Link2::Link2(Session2& session, unsigned number)
    : index(number),
      queue(session.slots_.all()),
      session_(session),
      loop_(session.loop_),
      alarm_(session.loop_, *this) {
  batch_.reserve(limits::kKernelMaxIov);
}

Link2::~Link2() { NETBLK_CHECK(stream_ == nullptr, "a link is destroyed with its connection"); }

coro::Task<void> Link2::settle_alarm() {
  alarm_.cancel();
  while (alarm_.queued) co_await io::SleepUntil(loop_, loop_.now_ms());
}

void Link2::fail(Error why) {
  if (over_) return;
  over_ = true;
  error_ = std::move(why);
  stream_->abort();
  send_wanted_.set();
  send_ended_.set();
}

void Link2::end() {
  NETBLK_CHECK(over_, "a connection is closed that nobody ended");
  alarm_.cancel();
  stream_.reset();
  up = false;
}

// ---- greeting

coro::Task<Result<proto::Welcome2>> Link2::greet(std::unique_ptr<io::Stream> stream, std::vector<std::byte> hello,
                                                 bool ride_along) {
  const Options2& options = session_.options_;
  const uint64_t now = loop_.now_ms();
  stream_ = std::move(stream);
  over_ = false;
  greeting_ = true;
  heard_anything_ = false;
  crc_out_ = options.crc32c;
  expects_large_ = false;
  gathered_bytes_ = sent_bytes_ = 0;
  heartbeat_wanted_ = goodbye_wanted_ = goodbye_answered_ = false;
  payload_left_ = 0;
  from_ = to_ = 0;
  if (buffer_.empty()) buffer_.resize(kReceiveBytes);
  give_up_at_ms_ = now + options.welcome_timeout_ms;
  silence_until_ms_ = give_up_at_ms_;
  if (options.silence_is_netblk1_ms != 0 && !session_.was_welcomed())
    silence_until_ms_ = std::min(give_up_at_ms_, now + options.silence_is_netblk1_ms);
  alarm_.arm(silence_until_ms_);

  start_batch();
  batch_.push_back({hello.data(), hello.size()});
  gathered_bytes_ = hello.size();
  if (ride_along) gather_riders();
  const bool sent = co_await send_batch();
  if (!sent && (error_.code == EPIPE || error_.code == ECONNRESET)) co_return hung_up();
  if (!sent) co_return error_;
  auto welcome = co_await read_welcome();
  greeting_ = false;
  alarm_.cancel();
  if (!welcome) fail(welcome.error());
  co_return welcome;
}

coro::Task<Result<proto::Welcome2>> Link2::read_welcome() {
  size_t length = 0;
  while (length == 0 || to_ < length) {
    const int32_t got = co_await io::recv(*stream_, std::span(buffer_).subspan(to_));
    if (over_) co_return error_;
    if (got <= 0) {
      // A server of netblk/1 closes with the hello unread, which shows as a reset.
      if (!heard_anything_ && (got == 0 || got == -ECONNRESET || got == -EPIPE)) co_return hung_up();
      if (got == 0) co_return make_error(ECONNRESET, "the server closed the connection within its welcome");
      co_return make_error(-got, "receiving failed: {}", errno_text(-got));
    }
    heard_anything_ = true;
    to_ += static_cast<size_t>(got);
    const size_t known = std::min<size_t>(to_, NETBLK2_MAGIC_SIZE);
    if (std::memcmp(buffer_.data(), NETBLK2_MAGIC, known) != 0)
      co_return make_error(EPROTONOSUPPORT, "the server answers the hello with 0x{:02x}: it does not speak netblk/2",
                           std::to_integer<unsigned>(buffer_[0]));
    if (length == 0 && to_ >= proto::kGreetingPrefix) {
      const auto told = proto::welcome_length(std::span(buffer_).first(proto::kGreetingPrefix));
      if (!told) co_return told.error();
      length = told.value();
    }
  }
  from_ = length;
  co_return proto::decode_welcome(std::span(buffer_).first(length));
}

// ---- time

void Link2::alarmed() {
  if (stream_ == nullptr) return wake.set();
  if (over_) return;
  if (!greeting_) return check_heartbeat();
  const uint64_t now = loop_.now_ms();
  if (!heard_anything_ && now >= silence_until_ms_ && silence_until_ms_ < give_up_at_ms_)
    return fail(make_error(EPROTONOSUPPORT, "the server is silent about the hello: it does not speak netblk/2"));
  if (now >= give_up_at_ms_)
    return fail(make_error(ETIMEDOUT, "no welcome within {} ms", session_.options_.welcome_timeout_ms));
  alarm_.arm(give_up_at_ms_);
}

// What is sent and heard does not touch the timer: it looks again when it fires.
void Link2::check_heartbeat() {
  if (terms_.heartbeat_ms == 0) return;
  const uint64_t now = loop_.now_ms();
  const uint64_t gone_at = last_heard_ms_ + uint64_t{terms_.heartbeat_ms} * NETBLK2_HEARTBEAT_PERIODS;
  if (now >= gone_at)
    return fail(make_error(ETIMEDOUT, "the server was silent for {} heartbeat periods of {} ms",
                           NETBLK2_HEARTBEAT_PERIODS, terms_.heartbeat_ms));
  if (now >= last_sent_ms_ + terms_.heartbeat_ms) {
    heartbeat_wanted_ = true;
    last_sent_ms_ = now;
    send_wanted_.set();
  }
  alarm_.arm(std::min(gone_at, last_sent_ms_ + terms_.heartbeat_ms));
}

// ---- sending

void Link2::push(uint32_t slot) {
  queue.push(slot);
  send_wanted_.set();
}

void Link2::say_goodbye(uint64_t cookie) {
  goodbye_wanted_ = true;
  goodbye_cookie_ = cookie;
  send_wanted_.set();
}

void Link2::start_batch() {
  batch_.clear();
  batch_at_ = 0;
  frames_ = 0;
  batch_ns_ = 0;
}

void Link2::add_frame(const proto::Request2& frame) {
  std::byte* const to = headers_.data() + frames_ * NETBLK2_REQUEST_SIZE;
  ++frames_;
  proto::encode_request(frame, crc_out_, to);
  gathered_bytes_ += NETBLK2_REQUEST_SIZE;
  // Neighbours in headers_ are one part: a batch of READs is one.
  if (!batch_.empty() && static_cast<std::byte*>(batch_.back().iov_base) + batch_.back().iov_len == to)
    batch_.back().iov_len += NETBLK2_REQUEST_SIZE;
  else
    batch_.push_back({to, NETBLK2_REQUEST_SIZE});
}

void Link2::add_request(uint32_t number) {
  Slot2& slot = session_.slots_[number];
  session_.number(slot);
  slot.use = Slot2::Use::kSent;
  slot.on_wire = true;
  slot.link = index;
  slot.sent_ns = batch_ns();
  proto::Request2 frame{.type = slot.type,
                        .flags = slot.flags,
                        .slot = static_cast<uint16_t>(number),
                        .sequence = slot.sequence,
                        .cookie = slot.cookie,
                        .offset = slot.offset,
                        .length = slot.length};
  std::span<std::byte> payload;
  if (slot.has_payload()) {
    payload = {slot.data(), slot.length};
    slot.packed_bytes = 0;
    if (terms_.pack_flag != 0 && slot.length >= kLeastPacked && session_.luck_.worth_trying()) {
      slot.packed.resize(proto::worthwhile_bytes(slot.length));
      slot.packed_bytes =
          static_cast<uint32_t>(session_.compressor_.compress(terms_.pack_flag, payload, slot.packed));
      session_.luck_.note(slot.packed_bytes != 0);
    }
    if (slot.packed_bytes != 0) {
      payload = std::span(slot.packed).first(slot.packed_bytes);
      frame.flags = static_cast<uint8_t>(frame.flags | terms_.pack_flag);
    }
    frame.payload_length = static_cast<uint32_t>(payload.size());
    if (crc_out_) frame.payload_crc = crc32c(payload);
  }
  add_frame(frame);
  if (!payload.empty()) batch_.push_back({payload.data(), payload.size()});
  gathered_bytes_ += payload.size();
  slot.send_end = gathered_bytes_;
}

bool Link2::gather() {
  start_batch();
  if (heartbeat_wanted_) {
    heartbeat_wanted_ = false;
    add_frame({.type = NETBLK2_HEARTBEAT});
  }
  const uint64_t full_at = gathered_bytes_ + kBatchBytes;
  while (!queue.empty() && !session_.blocked() && frames_ < kBatchRequests && gathered_bytes_ < full_at &&
         batch_.size() + 2 <= limits::kKernelMaxIov) {
    const uint32_t slot = queue.pop();
    if (session_.withdrawn(slot)) continue;
    add_request(slot);
  }
  if (goodbye_wanted_ && queue.empty()) {
    goodbye_wanted_ = false;
    add_frame({.type = NETBLK2_GOODBYE, .flags = NETBLK2_END_SESSION, .cookie = goodbye_cookie_});
  }
  return !batch_.empty();
}

// Only READs ride along: a connection that is refused has then changed nothing.
void Link2::gather_riders() {
  SlotList others(session_.slots_.all());
  const uint32_t most = std::min<uint32_t>(NETBLK2_MIN_SLOTS, kBatchRequests);
  while (!queue.empty()) {
    const uint32_t number = queue.pop();
    const Slot2& slot = session_.slots_[number];
    const bool rides = slot.type == NETBLK2_READ && number < NETBLK2_MIN_SLOTS && slot.length <= kRideBytes &&
                       frames_ < most && !session_.withdrawn(number);
    if (rides)
      add_request(number);
    else if (slot.use == Slot2::Use::kWaiting)
      others.push(number);
  }
  while (!others.empty()) queue.push(others.pop());
}

coro::Task<bool> Link2::send_batch() {
  while (!over_ && batch_at_ < batch_.size()) {
    const int32_t result = co_await io::send(*stream_, std::span(batch_).subspan(batch_at_));
    if (over_) break;
    // A ring gives up a send that waits when the process is stopped or frozen.
    if (result == -EINTR) continue;
    if (result < 0) {
      fail(make_error(-result, "sending failed: {}", errno_text(-result)));
      break;
    }
    last_sent_ms_ = loop_.now_ms();
    sent_bytes_ += static_cast<uint64_t>(result);
    for (size_t left = static_cast<size_t>(result); left > 0;) {
      iovec& part = batch_[batch_at_];
      const size_t taken = std::min(left, part.iov_len);
      part.iov_base = static_cast<std::byte*>(part.iov_base) + taken;
      part.iov_len -= taken;
      left -= taken;
      if (part.iov_len == 0) ++batch_at_;
    }
    send_ended_.set();
  }
  co_return !over_;
}

coro::Task<void> Link2::send_all() {
  while (!over_) {
    if (!gather()) {
      co_await send_wanted_.wait();
      continue;
    }
    const bool sent = co_await send_batch();
    if (!sent) break;
  }
}

coro::Task<void> Link2::serve(const Terms2& terms) {
  terms_ = terms;
  crc_out_ = terms.framing.crc;
  untold_ = {};
  heard_ns_ = loop_.now_ns();
  last_sent_ms_ = last_heard_ms_ = heard_ns_ / 1'000'000;
  if (terms_.heartbeat_ms != 0) alarm_.arm(last_sent_ms_ + terms_.heartbeat_ms);
  coro::Scope scope;
  scope.spawn(send_all());
  scope.spawn(receive_all());
  co_await scope.join();
}

// ---- receiving

coro::Task<void> Link2::receive_all() {
  while (!over_) {
    // Replies that are handled together let their users ask again together.
    session_.prefer(*this);
    while (!over_ && take_one()) {
    }
    if (over_) break;
    if (waits_for_send_) {
      waits_for_send_ = false;
      co_await send_ended_.wait();
      continue;
    }
    const bool direct = payload_left_ >= kDirectBytes;
    std::span<std::byte> into;
    int32_t got = -EAGAIN;
    if (direct) {
      NETBLK_CHECK(from_ == to_, "a payload is received past what is there");
      into = {payload_to_, payload_left_};
      got = stream_->recv_now(into);
    } else {
      if (from_ > 0) std::memmove(buffer_.data(), buffer_.data() + from_, to_ - from_);
      to_ -= from_;
      from_ = 0;
      into = std::span(buffer_).subspan(to_);
      // The header alone, so that its payload needs no copy.
      if (expects_large_ && payload_left_ == 0 && to_ < NETBLK2_REPLY_SIZE) into = into.first(NETBLK2_REPLY_SIZE - to_);
    }
    if (got == -EAGAIN) got = co_await io::recv(*stream_, into);
    if (over_) break;
    if (got <= 0) {
      fail(got == 0 ? make_error(ECONNRESET, "the server closed the connection")
                    : make_error(-got, "receiving failed: {}", errno_text(-got)));
      break;
    }
    heard_ns_ = loop_.now_ns();
    last_heard_ms_ = heard_ns_ / 1'000'000;
    if (direct)
      take_payload(into.first(static_cast<size_t>(got)));
    else
      to_ += static_cast<size_t>(got);
  }
}

bool Link2::take_one() {
  const size_t here = to_ - from_;
  if (payload_left_ > 0) {
    const size_t taken = std::min(here, payload_left_);
    if (taken == 0) return false;
    std::memcpy(payload_to_, buffer_.data() + from_, taken);
    from_ += taken;
    take_payload({payload_to_, taken});
    return payload_left_ == 0;
  }
  if (here < NETBLK2_REPLY_SIZE) return false;
  proto::Reply2 reply;
  const char* const wrong =
      proto::decode_reply(std::span(buffer_).subspan(from_, NETBLK2_REPLY_SIZE), terms_.framing, reply);
  if (wrong != nullptr) {
    fail(make_error(EPROTO, "{}", wrong));
    return false;
  }
  if (!sent_whole(reply)) {
    waits_for_send_ = true;
    return false;
  }
  from_ += NETBLK2_REPLY_SIZE;
  if (reply.type == NETBLK2_TIMES) {
    take_times(std::span(buffer_).subspan(from_ - NETBLK2_TIMES_SIZE, NETBLK2_TIMES_SIZE));
    return true;
  }
  if (reply.type == NETBLK2_HEARTBEAT || reply.type == NETBLK2_RESIZE || reply.type == NETBLK2_GOODBYE) {
    take_unasked(reply);
    return true;
  }
  return take_reply(reply);
}

bool Link2::sent_whole(const proto::Reply2& reply) const {
  if (reply.slot >= session_.slots_.size()) return true;
  const Slot2& slot = session_.slots_[reply.slot];
  return slot.use != Slot2::Use::kSent || !slot.on_wire || slot.link != index || slot.send_end <= sent_bytes_;
}

void Link2::take_unasked(const proto::Reply2& reply) {
  if (reply.type == NETBLK2_HEARTBEAT) {
    if (terms_.heartbeat_ms == 0) fail(make_error(EPROTO, "a heartbeat came that was not negotiated"));
  } else if (reply.type == NETBLK2_RESIZE) {
    if (!terms_.resize || !session_.resized(reply.cookie))
      fail(make_error(EPROTO, "the server says that the size is now {} bytes", reply.cookie));
  } else if (session_.says_goodbye() && reply.cookie == goodbye_cookie_ && !goodbye_answered_) {
    goodbye_answered_ = true;
    session_.goodbye_came();
  } else {
    fail(make_error(EPROTO, "the server answers a goodbye that was not said"));
  }
}

void Link2::take_times(std::span<const std::byte> message) {
  proto::Times2 times;
  if (const char* const wrong = proto::decode_times(message, times); wrong != nullptr)
    return fail(make_error(EPROTO, "{}", wrong));
  const Untold untold = std::exchange(untold_[times.request_type], {});
  if (times.count != untold.count)
    return fail(make_error(EPROTO, "the server tells times of {} requests of type {}, and has answered {}", times.count,
                           times.request_type, untold.count));
  session_.times_.told(command_of(times.request_type), times.count, untold.trip_ns, times.server_ns, times.store_ns);
}

bool Link2::take_reply(const proto::Reply2& reply) {
  Slot2* const slot = reply.slot < session_.slots_.size() ? &session_.slots_[reply.slot] : nullptr;
  if (slot == nullptr || slot->use != Slot2::Use::kSent || !slot->on_wire || slot->link != index ||
      slot->sequence != reply.sequence || slot->cookie != reply.cookie || slot->type != reply.type) {
    fail(make_error(EPROTO, "a reply (type {}, slot {}, sequence {}) answers nothing that was asked", reply.type,
                    reply.slot, reply.sequence));
    return false;
  }
  if (reply.type != NETBLK2_READ || reply.status != NETBLK2_OK) {
    answered(reply.slot, reply.status == NETBLK2_OK ? 0 : proto::error_of(reply.status));
    return true;
  }
  const bool packed = (reply.flags & (NETBLK2_LZ4 | NETBLK2_ZSTD)) != 0;
  if (packed ? reply.payload_length >= slot->length : reply.payload_length != slot->length) {
    fail(make_error(EPROTO, "a READ of {} bytes is answered by {} bytes", slot->length, reply.payload_length));
    return false;
  }
  payload_slot_ = reply.slot;
  payload_flags_ = reply.flags;
  payload_crc_due_ = reply.payload_crc;
  payload_crc_ = 0;
  payload_left_ = reply.payload_length;
  if (packed) packed_.resize(reply.payload_length);
  payload_to_ = packed ? packed_.data() : slot->data();
  expects_large_ = payload_left_ >= kLargeBytes;
  return true;
}

// The bytes are in their place.
void Link2::take_payload(std::span<const std::byte> bytes) {
  if (terms_.framing.crc) payload_crc_ = crc32c(bytes, payload_crc_);
  payload_to_ += bytes.size();
  payload_left_ -= bytes.size();
  if (payload_left_ == 0) finish_payload();
}

void Link2::finish_payload() {
  if (terms_.framing.crc && payload_crc_ != payload_crc_due_)
    return fail(make_error(EPROTO, "the checksum of a payload is wrong"));
  if ((payload_flags_ & (NETBLK2_LZ4 | NETBLK2_ZSTD)) != 0) {
    const Slot2& slot = session_.slots_[payload_slot_];
    if (!session_.compressor_.decompress(payload_flags_, packed_, {slot.data(), slot.length}))
      return fail(make_error(EPROTO, "a payload does not decompress to the {} bytes that were read", slot.length));
    if (packed_.capacity() > kKeptBytes) std::vector<std::byte>().swap(packed_);
  }
  answered(payload_slot_, 0);
}

void Link2::answered(uint32_t number, int error) {
  const Slot2& slot = session_.slots_[number];
  const uint64_t trip_ns = heard_ns_ - slot.sent_ns;
  Untold& untold = untold_[slot.type];
  ++untold.count;
  untold.trip_ns += trip_ns;
  if (slot.request != nullptr)
    session_.times_.answered(slot.request->command, slot.sent_ns - Parts{*slot.request}.since_ns(), trip_ns);
  session_.answered(number, error);
}

}  // namespace netblk::client
