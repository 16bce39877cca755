// SPDX-License-Identifier: GPL-2.0-only
#include "client/nbd_client.h"

#include <cerrno>
#include <utility>

#include "client/nbd_session.h"
#include "client/session_thread.h"

namespace netblk::client {
namespace {

Status check(const NbdOptions& options) {
  if (options.connections < 1 || options.connections > kMaxNbdConnections)
    return make_error(EINVAL, "{} connections: 1 to {}", options.connections, kMaxNbdConnections);
  if (options.slots < 1 || options.slots > kMaxNbdSlots)
    return make_error(EINVAL, "{} requests in flight: 1 to {}", options.slots, kMaxNbdSlots);
  if (options.connect_timeout_ms == 0 || options.handshake_timeout_ms == 0 || options.dead_time_ms == 0)
    return make_error(EINVAL, "a client that never waits");
  return Ok{};
}

// What is behind the last whole block cannot be reached.
block::Geometry geometry_of(const NbdInfo& info, bool read_only) {
  const uint64_t block = info.found.min_block_bytes;
  return {.size_bytes = info.found.size_bytes / block * block,
          .read_only = read_only || info.read_only(),
          .can_trim = info.can(NBD_FLAG_SEND_TRIM),
          .can_fast_zero = info.can(NBD_FLAG_SEND_FAST_ZERO) && info.can(NBD_FLAG_SEND_WRITE_ZEROES),
          .can_block_status = info.found.allocation_id.has_value(),
          .can_cache = info.can(NBD_FLAG_SEND_CACHE),
          .rotational = info.can(NBD_FLAG_ROTATIONAL)};
}

}  // namespace

struct NbdClient::Owned : SessionThread<NbdSession> {
  using SessionThread::SessionThread;
};

NbdClient::NbdClient(const NbdInfo& info, bool read_only, std::unique_ptr<NbdSession> session)
    : Device(geometry_of(info, read_only)),
      block_bytes_(info.found.min_block_bytes),
      flags_(info.found.flags),
      session_(std::move(session)) {
  session_->watch_size([this](uint64_t size_bytes) { set_size_bytes(size_bytes / block_bytes_ * block_bytes_); });
}

Result<std::unique_ptr<NbdClient>> NbdClient::open(io::Backend& backend, const io::Clock& clock,
                                                   std::unique_ptr<io::Dialer> dialer, const NbdOptions& options) {
  if (auto sound = check(options); !sound) return std::move(sound).error();
  auto loop = backend.make_loop(clock);
  if (!loop) return std::move(loop).error();
  auto owned = std::make_unique<Owned>(std::move(loop).value(), std::move(dialer));
  auto session = std::make_unique<NbdSession>(owned->loop(), owned->dialer(), options, kernel_random);
  if (auto opened = owned->open(*session); !opened) return std::move(opened).error();
  const NbdInfo info = session->info();
  auto client = std::unique_ptr<NbdClient>(new NbdClient(info, options.read_only, std::move(session)));
  client->owned_ = std::move(owned);
  return client;
}

coro::Task<Result<std::unique_ptr<NbdClient>>> NbdClient::open_on(io::Loop& loop, io::Dialer& dialer,
                                                                  const NbdOptions& options) {
  if (auto sound = check(options); !sound) co_return std::move(sound).error();
  auto session = std::make_unique<NbdSession>(loop, dialer, options, kernel_random);
  auto opened = co_await session->open();
  if (!opened) co_return std::move(opened).error();
  const NbdInfo info = session->info();
  co_return std::unique_ptr<NbdClient>(new NbdClient(info, options.read_only, std::move(session)));
}

NbdClient::~NbdClient() {
  if (owned_) owned_->close();
}

coro::Task<void> NbdClient::close() {
  NETBLK_CHECK(!owned_, "a client with a thread is closed by its destructor");
  co_await session_->close();
}

io::Loop& NbdClient::loop() { return session_->loop(); }
NbdInfo NbdClient::info() const { return session_->info(); }
ClientStatus NbdClient::status() const { return session_->status(); }
State NbdClient::state() const { return session_->state(); }
bool NbdClient::lost() const { return session_->lost(); }
void NbdClient::reset_lost() { session_->reset_lost(); }

int NbdClient::refused(const block::Request& request) const {
  using block::Command;
  if (request.command == Command::kTrim && (flags_ & NBD_FLAG_SEND_TRIM) == 0) return EOPNOTSUPP;
  if (request.command == Command::kWriteZeroes && (flags_ & NBD_FLAG_SEND_WRITE_ZEROES) == 0) return EOPNOTSUPP;
  if (request.command != Command::kFlush && ((request.offset | request.length) & (block_bytes_ - 1)) != 0) return EINVAL;
  return 0;
}

void NbdClient::start(block::Request& request, block::Completion completion) {
  const int error = refused(request);
  if (error != 0) return std::move(completion).finish(error);
  if (request.command == block::Command::kFlush && (flags_ & NBD_FLAG_SEND_FLUSH) == 0)
    return std::move(completion).finish(session_->lost() ? EIO : 0);
  request.held.completion = std::move(completion);
  request.held.owner = this;
  if (request.loop == &session_->loop()) return session_->submit(request);
  request.held.hop.request = &request;
  request.held.hop.action = [](block::Request& taken) {
    static_cast<NbdClient*>(taken.held.owner)->session_->submit(taken);
  };
  session_->loop().post(request.held.hop);
}

}  // namespace netblk::client
