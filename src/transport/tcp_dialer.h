// SPDX-License-Identifier: GPL-2.0-only
// TcpDialer: connections to one host and port.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "io/dialer.h"

namespace netblk::transport {

// Resolves and connects on a thread for each call, so that the loop goes on. A name with several addresses: they are
// tried a quarter of a second apart, side by side, and the first that answers is taken.
// Destroying it waits for the resolver, which knows no deadline but its own.
class TcpDialer final : public io::Dialer {
 public:
  TcpDialer(std::string host, uint16_t port);
  ~TcpDialer() override;

  coro::Task<Result<std::unique_ptr<io::Stream>>> dial(io::Loop& loop, uint64_t give_up_at_ms) override;
  std::string peer() const override { return peer_; }

 private:
  struct Call;
  struct Calls;
  const std::string host_;
  const uint16_t port_;
  const std::string peer_;
  const std::unique_ptr<Calls> calls_;
};

}  // namespace netblk::transport
