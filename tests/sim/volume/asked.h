// SPDX-License-Identifier: GPL-2.0-only
// Asked: one request to a simulated volume.
#pragma once

#include <functional>
#include <utility>

#include "block/device.h"
#include "block/request.h"
#include "coro/event.h"
#include "coro/task.h"
#include "io/loop.h"
#include "sim/volume/model.h"
#include "sim/world.h"

namespace netblk::sim {

// One request, whose answer is heard at once: `heard` runs in the order of the answers.
class Asked : private block::Request {
 public:
  Asked(io::Loop& of, block::Command what, uint64_t first, uint64_t count)
      : Request([](block::Request& self) { static_cast<Asked&>(self).answered(); }) {
    loop = &of;
    command = what;
    offset = first * kVolumeSector;
    length = count * kVolumeSector;
  }
  using Request::data;
  using Request::error;
  using Request::extents;
  using Request::fua;
  using Request::keep_allocated;
  using Request::max_extents;
  using Request::since;

  // Returns when it has been answered.
  coro::Task<void> run(block::Device& on, std::function<void(int)> heard) {
    heard_ = std::move(heard);
    on.submit(*this);
    co_await done_.wait();
  }

 private:
  void answered() {
    heard_(error);
    done_.set();
  }
  std::function<void(int)> heard_;
  coro::Event done_;
};

// All of it, with so many sectors as it has. The error that a read ended with.
coro::Task<int> read_contents(io::Loop& loop, World& world, block::Device& device, Contents& contents);

}  // namespace netblk::sim
