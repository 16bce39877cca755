// SPDX-License-Identifier: GPL-2.0-only
#include "client/netblk1_client.h"

#include <cerrno>
#include <utility>

#include "base/limits.h"
#include "client/worker.h"

namespace netblk::client {

Netblk1Client::Netblk1Client(const Options& options, std::unique_ptr<Worker> worker)
    : Device({.size_bytes = options.size_bytes, .read_only = options.read_only, .can_trim = false}),
      worker_(std::move(worker)) {}

Netblk1Client::~Netblk1Client() = default;

Result<std::unique_ptr<Netblk1Client>> Netblk1Client::open(io::Backend& backend, const io::Clock& clock,
                                                           Connect connect, const Options& options) {
  NETBLK_CHECK(options.timeout_ms > 0 && options.tries > 0, "a client that never waits or never tries");
  if (options.size_bytes == 0 || options.size_bytes % limits::kSectorBytes != 0)
    return make_error(EINVAL, "a size of {} bytes is no positive multiple of {}", options.size_bytes,
                      limits::kSectorBytes);
  auto loop = backend.make_loop(clock);
  if (!loop) return std::move(loop).error();
  auto worker = std::make_unique<Worker>(std::move(loop).value(), std::move(connect), options);
  Status begun = worker->begin();
  if (!begun) return std::move(begun).error();
  return std::unique_ptr<Netblk1Client>(new Netblk1Client(options, std::move(worker)));
}

io::Loop& Netblk1Client::loop() { return worker_->loop(); }
State Netblk1Client::state() const { return worker_->state(); }
uint64_t Netblk1Client::reconnects() const { return worker_->reconnects(); }
std::string Netblk1Client::last_error() const { return worker_->last_error(); }
ClientStatus Netblk1Client::status() const { return worker_->status(); }

void Netblk1Client::start(block::Request& request, block::Completion completion) {
  int error = 0;
  if (request.command == block::Command::kTrim) error = EOPNOTSUPP;
  if (request.offset % limits::kSectorBytes != 0 || request.length % limits::kSectorBytes != 0) error = EINVAL;
  if (error != 0) return std::move(completion).finish(error);
  request.held.completion = std::move(completion);
  request.held.owner = this;
  worker_->submit(request);
}

}  // namespace netblk::client
