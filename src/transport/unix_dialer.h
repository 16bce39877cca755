// SPDX-License-Identifier: GPL-2.0-only
// UnixDialer: connections to one unix socket.
#pragma once

#include <string>
#include <utility>

#include "io/dialer.h"

namespace netblk::transport {

class UnixDialer final : public io::Dialer {
 public:
  explicit UnixDialer(std::string path) : path_(std::move(path)) {}

  coro::Task<Result<std::unique_ptr<io::Stream>>> dial(io::Loop& loop, uint64_t give_up_at_ms) override;
  std::string peer() const override { return "unix:" + path_; }

 private:
  const std::string path_;
};

}  // namespace netblk::transport
