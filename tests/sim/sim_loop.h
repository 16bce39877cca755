// SPDX-License-Identifier: GPL-2.0-only
// SimLoop: an io::Loop whose poll() moves the World's time to what happens next.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/check.h"
#include "io/loop.h"
#include "sim/world.h"

namespace netblk::sim {

class SimLoop final : public io::Loop {
 public:
  explicit SimLoop(World& world) : Loop(world.clock()), world_(world) {}

  std::unique_ptr<io::Stream> make_stream(io::UniqueFd) override { no_sockets(); }
  std::unique_ptr<io::Listener> make_listener(io::UniqueFd) override { no_sockets(); }
  std::string description() const override { return "simulated"; }

 protected:
  void poll(int64_t timeout_ms) override {
    if (timeout_ms < 0) {
      if (world_.idle()) world_.fail("liveness", "nothing is left that could ever happen, and the run has not ended");
      (void)world_.step(UINT64_MAX);
      return;
    }
    const uint64_t limit_us = (world_.now_us() / 1000 + static_cast<uint64_t>(timeout_ms)) * 1000;
    (void)world_.step(timeout_ms == 0 ? world_.now_us() : limit_us);
  }
  void wake() override {}

 private:
  [[noreturn]] static void no_sockets() {
    check_failed(__FILE__, __LINE__, "simulated code asks for a socket");
  }
  World& world_;
};

}  // namespace netblk::sim
