// SPDX-License-Identifier: GPL-2.0-only
#include "client/netblk2_client.h"

#include <cerrno>
#include <utility>

#include "client/session2.h"
#include "client/session_thread.h"

namespace netblk::client {
namespace {

Result<Options2> checked(Options2 options) {
  if (options.connections < 1 || options.connections > NETBLK2_MAX_CONNECTIONS)
    return make_error(EINVAL, "{} connections: 1 to {}", options.connections, NETBLK2_MAX_CONNECTIONS);
  if (options.slots < NETBLK2_MIN_SLOTS || options.slots > NETBLK2_MAX_SLOTS)
    return make_error(EINVAL, "{} requests in flight: {} to {}", options.slots, NETBLK2_MIN_SLOTS, NETBLK2_MAX_SLOTS);
  if (options.heartbeat_ms != 0 &&
      (options.heartbeat_ms < NETBLK2_MIN_HEARTBEAT_MS || options.heartbeat_ms > NETBLK2_MAX_HEARTBEAT_MS))
    return make_error(EINVAL, "a heartbeat every {} ms: {} to {}, or 0 for none", options.heartbeat_ms,
                      NETBLK2_MIN_HEARTBEAT_MS, NETBLK2_MAX_HEARTBEAT_MS);
  if (options.export_name.size() > NETBLK2_MAX_NAME || options.export_name.find('\0') != std::string::npos)
    return make_error(EINVAL, "an export's name has up to {} bytes, none of them zero", NETBLK2_MAX_NAME);
  if (options.connect_timeout_ms == 0 || options.welcome_timeout_ms == 0 || options.dead_time_ms == 0)
    return make_error(EINVAL, "a client that never waits");
  if (options.must_have_compression && !options.lz4 && !options.zstd)
    return make_error(EINVAL, "compression must be there, and neither lz4 nor zstd is asked for");
  if (options.client_id.is_zero()) options.client_id = random_id();
  return options;
}

block::Geometry geometry_of(const Session2Info& info) {
  return {.size_bytes = info.size_bytes, .read_only = info.read_only, .can_trim = info.can_trim};
}

}  // namespace

struct Netblk2Client::Owned : SessionThread<Session2> {
  using SessionThread::SessionThread;
};

Netblk2Client::Netblk2Client(const Session2Info& info, std::unique_ptr<Session2> session)
    : Device(geometry_of(info)), block_bytes_(info.block_bytes), session_(std::move(session)) {
  session_->watch_size([this](uint64_t size_bytes) { set_size_bytes(size_bytes); });
}

Result<std::unique_ptr<Netblk2Client>> Netblk2Client::open(io::Backend& backend, const io::Clock& clock,
                                                           std::unique_ptr<io::Dialer> dialer, const Options2& options) {
  auto sound = checked(options);
  if (!sound) return std::move(sound).error();
  auto loop = backend.make_loop(clock);
  if (!loop) return std::move(loop).error();
  auto owned = std::make_unique<Owned>(std::move(loop).value(), std::move(dialer));
  auto session = std::make_unique<Session2>(owned->loop(), owned->dialer(), sound.value(), kernel_random);
  if (auto opened = owned->open(*session); !opened) return std::move(opened).error();
  const Session2Info info = session->info();
  auto client = std::unique_ptr<Netblk2Client>(new Netblk2Client(info, std::move(session)));
  client->owned_ = std::move(owned);
  return client;
}

coro::Task<Result<std::unique_ptr<Netblk2Client>>> Netblk2Client::open_on(io::Loop& loop, io::Dialer& dialer,
                                                                          const Options2& options, Random random) {
  auto sound = checked(options);
  if (!sound) co_return std::move(sound).error();
  auto session = std::make_unique<Session2>(loop, dialer, sound.value(), random ? std::move(random) : kernel_random);
  auto opened = co_await session->open();
  if (!opened) co_return std::move(opened).error();
  const Session2Info info = session->info();
  co_return std::unique_ptr<Netblk2Client>(new Netblk2Client(info, std::move(session)));
}

Netblk2Client::~Netblk2Client() {
  if (owned_) owned_->close();
}

coro::Task<void> Netblk2Client::close() {
  NETBLK_CHECK(!owned_, "a client with a thread is closed by its destructor");
  co_await session_->close();
}

coro::Task<void> Netblk2Client::drop() {
  NETBLK_CHECK(!owned_, "a client with a thread is closed by its destructor");
  co_await session_->drop();
}

io::Loop& Netblk2Client::loop() { return session_->loop(); }
Session2Info Netblk2Client::info() const { return session_->info(); }
Status2 Netblk2Client::status() const { return session_->status(); }
State Netblk2Client::state() const { return session_->state(); }
bool Netblk2Client::lost() const { return session_->lost(); }
void Netblk2Client::reset_lost() { session_->reset_lost(); }
block::Generation Netblk2Client::generation() const { return session_->info().generation; }

void Netblk2Client::start(block::Request& request, block::Completion completion) {
  int error = 0;
  if (request.command == block::Command::kTrim && !geometry().can_trim) error = EOPNOTSUPP;
  const uint64_t mask = block_bytes_ - 1;
  if (request.command != block::Command::kFlush && ((request.offset | request.length) & mask) != 0) error = EINVAL;
  if (error != 0) return std::move(completion).finish(error);
  request.held.completion = std::move(completion);
  request.held.owner = this;
  if (request.loop == &session_->loop()) return session_->submit(request);
  request.held.hop.request = &request;
  request.held.hop.action = [](block::Request& taken) {
    static_cast<Netblk2Client*>(taken.held.owner)->session_->submit(taken);
  };
  session_->loop().post(request.held.hop);
}

}  // namespace netblk::client
