// SPDX-License-Identifier: GPL-2.0-only
#include "sim/network.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/result.h"

namespace netblk::sim {
namespace {

constexpr size_t kMaxHelloCopy = 256u << 10;

size_t total(std::span<const iovec> parts) {
  size_t sum = 0;
  for (const iovec& part : parts) sum += part.iov_len;
  return sum;
}

}  // namespace

Connection::Connection(Network& network, uint64_t number)
    : network_(network), world_(network.world()), number_(number) {
  const NetworkPlan& plan = network.plan();
  for (Pipe& pipe : pipes_) {
    pipe.capacity = world_.random.between(plan.buffer_low_bytes, plan.buffer_high_bytes);
    pipe.base_delay_us = world_.random.skewed(plan.delay_low_us, plan.delay_high_us);
  }
}

// --- Sending: from a side's parts into the pipe ---------------------------------------------------------------------

bool Connection::send(int end, io::Op& op, std::span<const iovec> parts) {
  End& side = ends_[end];
  NETBLK_CHECK(side.sender == nullptr, "two sends on one stream");
  if (side.error != 0) return op.finish_now(-(side.error == ECONNRESET ? EPIPE : side.error));
  if (side.write_closed) return op.finish_now(-EPIPE);
  if (from(end).room() > 0 && !world_.random.one_in(4)) return op.finish_now(put(end, parts));
  op.begin(&side.in_flight);
  side.sender = &op;
  side.send_parts = parts;
  if (from(end).room() > 0) {
    // Taken later: what the caller changes in its buffers meanwhile would be sent changed.
    side.send_started = true;
    world_.after(world_.random.between(1, 200), [self = shared_from_this(), end] {
      self->ends_[end].send_started = false;
      self->wake_sender(end);
    });
  }
  return false;
}

void Connection::wake_sender(int end) {
  End& side = ends_[end];
  if (side.sender == nullptr || side.send_started) return;
  int32_t result = 0;
  if (side.error != 0 || side.write_closed) {
    result = -EPIPE;
  } else if (from(end).room() > 0) {
    result = put(end, side.send_parts);
  } else {
    return;
  }
  std::exchange(side.sender, nullptr)->complete(result);
}

int32_t Connection::put(int end, std::span<const iovec> parts) {
  Pipe& pipe = from(end);
  size_t length = std::min(pipe.room(), total(parts));
  if (length > 1 && world_.random.one_in(8)) length = world_.random.between(1, length);
  const size_t sent = length;
  const size_t at_most = std::max<size_t>(1, network_.plan().segment_bytes);
  std::vector<std::byte> bytes;
  bytes.reserve(length);
  for (const iovec& part : parts) {
    const size_t piece = std::min(part.iov_len, length - bytes.size());
    const auto* const from_part = static_cast<const std::byte*>(part.iov_base);
    bytes.insert(bytes.end(), from_part, from_part + piece);
    if (bytes.size() == length) break;
  }
  world_.count(Count::kBytesSent, sent);
  if (end == 0 && copy_hello_) copy_hello_(bytes);
  if (tap_ != nullptr) tap_->sent(end, bytes);
  for (size_t at = 0; at < length;) {
    const size_t piece = std::min(length - at, world_.random.between(1, at_most));
    const auto first = bytes.begin() + static_cast<std::ptrdiff_t>(at);
    post(end, Mark::kData, {first, first + static_cast<std::ptrdiff_t>(piece)});
    at += piece;
  }
  return static_cast<int32_t>(sent);
}

// What a broken middle box does to a stream: a bit flips, bytes are lost, come twice, or come in another place.
void Connection::mangle(std::vector<std::byte>& bytes) {
  const auto at = [&](size_t position) { return bytes.begin() + static_cast<std::ptrdiff_t>(position); };
  const size_t from = world_.random.below(bytes.size());
  const size_t length = world_.random.between(1, std::min<size_t>(bytes.size() - from, 200));
  switch (network_.plan().splices ? world_.random.below(4) : 0) {
    case 0:
      world_.count(Count::kFlips);
      bytes[from] ^= static_cast<std::byte>(1u << world_.random.below(8));
      break;
    case 1:
      world_.count(Count::kCuts);
      // Never the whole: a segment without bytes is another event.
      if (length < bytes.size()) bytes.erase(at(from), at(from + length));
      break;
    case 2: {
      world_.count(Count::kDoubles);
      const std::vector<std::byte> twice(at(from), at(from + length));
      bytes.insert(at(from), twice.begin(), twice.end());
      break;
    }
    default:
      world_.count(Count::kSplices);
      std::rotate(bytes.begin(), at(from), bytes.end());
  }
}

void Connection::post(int end, Mark mark, std::vector<std::byte> bytes) {
  Pipe& pipe = from(end);
  if (pipe.dead) {
    pipe.flying_bytes += bytes.size();  // counted, and never there: the buffer fills
    return;
  }
  if (mark == Mark::kData && world_.random.one_in(network_.plan().flip_one_in)) mangle(bytes);
  pipe.flying_bytes += bytes.size();
  const NetworkPlan& plan = network_.plan();
  uint64_t at_us = world_.now_us() + pipe.base_delay_us + world_.random.skewed(0, plan.delay_low_us * 4);
  at_us = std::max({at_us, pipe.last_arrival_us, pipe.stalled_until_us + world_.random.below(1000)});
  if (network_.partitioned())
    at_us = std::max(at_us, network_.partitioned_until_us_ + world_.random.skewed(0, 500'000));
  pipe.last_arrival_us = at_us;
  pipe.flying.push_back({at_us, mark, std::move(bytes)});
  if (pipe.flying.size() == 1) schedule_arrival(end);
}

void Connection::schedule_arrival(int end) {
  world_.at(from(end).flying.front().arrive_us, [self = shared_from_this(), end] { self->arrive(end); });
}

// --- Receiving ------------------------------------------------------------------------------------------------------

void Connection::arrive(int end) {
  Pipe& pipe = from(end);
  if (pipe.flying.empty()) return;
  if (pipe.flying.front().arrive_us > world_.now_us()) return schedule_arrival(end);  // a stall came over it
  Segment segment = std::move(pipe.flying.front());
  pipe.flying.pop_front();
  pipe.flying_bytes -= segment.bytes.size();
  if (!pipe.flying.empty()) schedule_arrival(end);
  const int peer = 1 - end;
  End& receiver = ends_[peer];
  switch (segment.mark) {
    case Mark::kReset: return broken(peer, ECONNRESET);
    case Mark::kEnd: pipe.ended = true; break;
    case Mark::kData:
      if (receiver.closed) {
        // A host answers bytes for what it has closed by a reset.
        if (!std::exchange(receiver.reset_sent, true)) post(peer, Mark::kReset, {});
        return;
      }
      if (!receiver.read_closed)
        pipe.arrived.insert(pipe.arrived.end(), segment.bytes.begin(), segment.bytes.end());
      break;
  }
  wake_receiver(peer);
  wake_sender(end);
}

bool Connection::readable(int end) {
  const End& side = ends_[end];
  return side.error != 0 || side.read_closed || to(end).unread() > 0 || to(end).ended;
}

int32_t Connection::read_result(int end, std::span<std::byte> into) {
  End& side = ends_[end];
  if (side.read_closed) return 0;
  if (to(end).unread() > 0) return take(end, into);
  if (side.error != 0) return -side.error;
  return 0;
}

int32_t Connection::take(int end, std::span<std::byte> into) {
  Pipe& pipe = to(end);
  size_t length = std::min(pipe.unread(), into.size());
  if (length > 1 && world_.random.one_in(8)) length = world_.random.between(1, length);
  std::memcpy(into.data(), pipe.arrived.data() + pipe.read_at, length);
  pipe.read_at += length;
  if (tap_ != nullptr) tap_->read(1 - end, length);
  if (pipe.read_at == pipe.arrived.size()) {
    pipe.arrived.clear();
    pipe.read_at = 0;
  }
  if (end == 0) copy_hello_ = nullptr;
  wake_sender(1 - end);
  return static_cast<int32_t>(length);
}

bool Connection::recv(int end, io::Op& op, std::span<std::byte> into) {
  End& side = ends_[end];
  NETBLK_CHECK(side.receiver == nullptr, "two receives on one stream");
  NETBLK_CHECK(!into.empty(), "a receive of nothing");
  if (readable(end)) return op.finish_now(read_result(end, into));
  op.begin(&side.in_flight);
  side.receiver = &op;
  side.receive_into = into;
  return false;
}

int32_t Connection::recv_now(int end, std::span<std::byte> into) {
  NETBLK_CHECK(ends_[end].receiver == nullptr, "recv_now beside a receive");
  return readable(end) ? read_result(end, into) : -EAGAIN;
}

void Connection::wake_receiver(int end) {
  End& side = ends_[end];
  if (side.receiver == nullptr || !readable(end)) return;
  const int32_t result = read_result(end, side.receive_into);
  std::exchange(side.receiver, nullptr)->complete(result);
}

// --- Ends -----------------------------------------------------------------------------------------------------------

void Connection::broken(int end, int error) {
  End& side = ends_[end];
  if (side.error == 0) side.error = error;
  // A system may or may not let its user read what came before the reset.
  if (world_.random.percent(50)) {
    to(end).arrived.clear();
    to(end).read_at = 0;
  }
  wake_receiver(end);
  wake_sender(end);
}

void Connection::shutdown_read(int end) {
  ends_[end].read_closed = true;
  wake_receiver(end);
}

void Connection::shutdown_write(int end) {
  End& side = ends_[end];
  if (side.write_closed) return;
  side.write_closed = true;
  wake_sender(end);
  if (side.error != 0 || from(end).end_sent) return;
  from(end).end_sent = true;
  post(end, Mark::kEnd, {});
}

void Connection::abort(int end) {
  End& side = ends_[end];
  side.read_closed = true;
  side.write_closed = true;
  wake_receiver(end);
  wake_sender(end);
  Pipe& pipe = from(end);
  if (side.error != 0) return;
  side.error = ECONNRESET;
  side.reset_sent = true;
  world_.count(Count::kResets);
  // What the host had not put on the wire yet is gone with the reset.
  while (!pipe.flying.empty() && pipe.flying.size() > 1 && world_.random.percent(50)) {
    pipe.flying_bytes -= pipe.flying.back().bytes.size();
    pipe.flying.pop_back();
    pipe.last_arrival_us = pipe.flying.back().arrive_us;
  }
  if (world_.random.percent(network_.plan().silent_resets)) return kill_direction(end);
  post(end, Mark::kReset, {});
}

void Connection::close(int end) {
  End& side = ends_[end];
  NETBLK_CHECK(side.in_flight == 0, "a stream is destroyed with an operation in flight");
  if (side.closed) return;
  const bool unread = to(end).unread() > 0;
  if (side.error == 0 && unread) {
    abort(end);
  } else {
    if (side.error == 0 && !side.write_closed) world_.count(Count::kCloses);
    shutdown_write(end);
  }
  side.closed = true;
}

void Connection::end_process(int end, bool peer_hears) {
  End& side = ends_[end];
  if (side.closed && side.stream_made) return;
  if (peer_hears) {
    if (world_.random.percent(50) || to(end).unread() > 0) {
      abort(end);
    } else {
      shutdown_write(end);
    }
  } else {
    side.lost_power = true;
    kill_direction(end);
  }
  side.error = ECONNRESET;
  side.read_closed = true;
  side.write_closed = true;
  wake_receiver(end);
  wake_sender(end);
  // Bytes that come later meet a host that knows no such connection.
  side.closed = true;
}

void Connection::host_is_back(int end) {
  if (!ends_[end].lost_power) return;
  from(end).dead = false;
  from(end).last_arrival_us = world_.now_us();
  // What was sent to it meanwhile is sent again, and answered.
  if (ends_[end].reset_sent) post(end, Mark::kReset, {});
}

void Connection::kill_direction(int end) {
  Pipe& pipe = from(end);
  if (pipe.dead) return;
  pipe.dead = true;
  // What a host sent before it lost its power is still on its way.
  if (!ends_[end].lost_power) pipe.flying.clear();
  // Both systems give the connection up in the end: one is not acknowledged, the other's probes are not answered.
  const NetworkPlan& plan = network_.plan();
  for (const int side : {0, 1}) {
    const uint64_t patience_us = world_.random.between(plan.keepalive_low_us, plan.keepalive_high_us);
    world_.after(patience_us, [self = shared_from_this(), side] { self->broken(side, ETIMEDOUT); });
  }
}

void Connection::stall(int end, uint64_t until_us) {
  Pipe& pipe = from(end);
  pipe.stalled_until_us = std::max(pipe.stalled_until_us, until_us);
  for (Segment& segment : pipe.flying) segment.arrive_us = std::max(segment.arrive_us, until_us);
  pipe.last_arrival_us = std::max(pipe.last_arrival_us, pipe.flying.empty() ? 0 : until_us);
}

void Connection::reset_both() {
  for (const int end : {0, 1}) {
    from(end).flying.clear();
    from(end).flying_bytes = 0;
    broken(end, ECONNRESET);
  }
}

void SimStream::shutdown() {
  connection_->shutdown_read(end_);
  connection_->shutdown_write(end_);
}

// --- The network ----------------------------------------------------------------------------------------------------

std::shared_ptr<Connection> Network::make_connection(uint64_t dialler, bool duplicate) {
  auto connection = std::make_shared<Connection>(*this, next_number_++);
  if (make_tap_) connection->tap_ = make_tap_(dialler, duplicate);
  if (connections_.size() % 64 == 63) forget_closed();
  connections_.push_back(connection);
  world_.count(Count::kConnections);
  return connection;
}

void Network::forget_closed() {
  std::erase_if(connections_, [](const std::weak_ptr<Connection>& weak) { return weak.expired(); });
}

size_t Network::live_connections() {
  forget_closed();
  return connections_.size();
}

std::vector<std::shared_ptr<Connection>> Network::open_connections() {
  std::vector<std::shared_ptr<Connection>> open;
  for (const auto& weak : connections_)
    if (auto connection = weak.lock(); connection != nullptr && connection->open()) open.push_back(std::move(connection));
  return open;
}

void Network::host_is_back() {
  for (const auto& weak : connections_)
    if (const auto connection = weak.lock()) connection->host_is_back(1);
}

void Network::partition(uint64_t until_us) {
  partitioned_until_us_ = std::max(partitioned_until_us_, until_us);
  for (const auto& connection : open_connections())
    for (const int end : {0, 1}) connection->stall(end, until_us + world_.random.skewed(0, 500'000));
}

void Network::accept_at(uint64_t at_us, Host& host, std::shared_ptr<Connection> connection) {
  world_.at(at_us, [this, &host, connection = std::move(connection)] {
    if (!host.up) return connection->kill_direction(1);
    if (!host.accept) {
      connection->ends_[1].closed = true;
      return connection->post(1, Connection::Mark::kReset, {});
    }
    world_.note("accept", connection->number());
    host.accept(std::make_unique<SimStream>(connection, 1), connection);
  });
}

// What a resent opening of a connection carries: the hello and the reads with it, once more, from a client that has gone.
void Network::send_duplicate(Host& host, uint64_t dialler, const std::shared_ptr<std::vector<std::byte>>& hello) {
  const uint64_t at_us = world_.now_us() + world_.random.skewed(1'000, 8'000'000);
  world_.at(at_us, [this, &host, dialler, hello] {
    if (!host.up || !host.accept || hello->empty()) return;
    world_.count(Count::kDuplicates);
    auto connection = make_connection(dialler, true);
    world_.note("duplicate", connection->number(), dialler);
    if (connection->tap_ != nullptr) connection->tap_->sent(0, *hello);
    connection->from(0).capacity = hello->size();
    connection->post(0, Connection::Mark::kData, *hello);
    connection->ends_[0].stream_made = true;
    connection->ends_[0].closed = true;
    if (world_.random.percent(50)) connection->post(0, Connection::Mark::kEnd, {});
    accept_at(world_.now_us(), host, connection);
  });
}

coro::Task<Result<std::unique_ptr<io::Stream>>> Network::dial(io::Loop& loop, Host& host, uint64_t dialler,
                                                              const bool& process_lives,
                                                              std::vector<std::weak_ptr<Connection>>& of_process,
                                                              uint64_t give_up_at_ms) {
  using Outcome = Result<std::unique_ptr<io::Stream>>;
  world_.count(Count::kDials);
  if (!process_lives) co_return Outcome(make_error(EIO, "the process is dead"));
  const uint64_t chance = world_.random.below(100);
  const uint64_t round_trip_us = 2 * world_.random.skewed(plan_.delay_low_us, plan_.delay_high_us);
  uint64_t passed = plan_.refused;
  if (chance < passed) {
    world_.count(Count::kDialsRefused);
    co_await io::SleepUntil(loop, (world_.now_us() + round_trip_us) / 1000);
    co_return Outcome(make_error(ECONNREFUSED, "refused by the simulated network"));
  }
  passed += plan_.lost;
  if (chance < passed || (partitioned() && world_.random.percent(60))) {
    world_.count(Count::kDialsLost);
    co_await io::SleepUntil(loop, give_up_at_ms);
    co_return Outcome(make_error(ETIMEDOUT, "the simulated network lost it"));
  }
  passed += plan_.late;
  if (chance < passed) {
    // It reaches the server when the client no longer waits for it.
    world_.count(Count::kDialsLate);
    auto connection = make_connection(dialler, true);
    co_await io::SleepUntil(loop, give_up_at_ms);
    connection->end_process(0, world_.random.percent(70));
    connection->ends_[0].stream_made = true;
    accept_at(world_.now_us() + world_.random.skewed(100, 3'000'000), host, connection);
    co_return Outcome(make_error(ETIMEDOUT, "the simulated network was late"));
  }
  uint64_t made_at_us = world_.now_us() + round_trip_us;
  if (partitioned()) made_at_us = partitioned_until_us_ + world_.random.skewed(0, 1'000'000);
  if (made_at_us / 1000 >= give_up_at_ms) {
    world_.count(Count::kDialsLost);
    co_await io::SleepUntil(loop, give_up_at_ms);
    co_return Outcome(make_error(ETIMEDOUT, "the simulated network was too slow"));
  }
  co_await io::SleepUntil(loop, (made_at_us + 999) / 1000);
  if (!process_lives) co_return Outcome(make_error(EIO, "the process is dead"));
  if (!host.up) {
    world_.count(Count::kDialsLost);
    co_await io::SleepUntil(loop, give_up_at_ms);
    co_return Outcome(make_error(ETIMEDOUT, "the server's host is off"));
  }
  if (!host.accept) {
    world_.count(Count::kDialsRefused);
    co_return Outcome(make_error(ECONNREFUSED, "nobody listens there"));
  }
  auto connection = make_connection(dialler, false);
  world_.note("connected", connection->number(), dialler);
  if (world_.random.percent(plan_.duplicated)) {
    auto hello = std::make_shared<std::vector<std::byte>>();
    connection->copy_hello_ = [hello](std::span<const std::byte> bytes) {
      if (hello->size() + bytes.size() <= kMaxHelloCopy) hello->insert(hello->end(), bytes.begin(), bytes.end());
    };
    send_duplicate(host, dialler, hello);
  }
  uint64_t accepted_at_us = world_.now_us();
  if (world_.random.percent(plan_.accepted_late)) {
    world_.count(Count::kLateAccepts);
    accepted_at_us += world_.random.skewed(1'000, 5'000'000);
  }
  accept_at(accepted_at_us, host, connection);
  std::erase_if(of_process, [](const std::weak_ptr<Connection>& weak) { return weak.expired(); });
  of_process.push_back(connection);
  co_return Outcome(std::unique_ptr<io::Stream>(std::make_unique<SimStream>(std::move(connection), 0)));
}

void SimDialer::end_process(bool peer_hears) {
  lives_ = false;
  for (const auto& weak : connections_)
    if (const auto connection = weak.lock()) connection->end_process(0, peer_hears);
}

}  // namespace netblk::sim
