// SPDX-License-Identifier: GPL-2.0-only
// Filters: devices that stand before another device. They stack in any order.
#pragma once

#include <cstdint>
#include <memory>

#include "block/device.h"

namespace netblk::store {

// Every change is refused with EROFS.
std::unique_ptr<block::Device> make_readonly_filter(std::unique_ptr<block::Device> below);

// Each request starts delay_ms later, on its own loop.
std::unique_ptr<block::Device> make_delay_filter(std::unique_ptr<block::Device> below, uint64_t delay_ms);

struct FaultOptions {
  // Which commands fail.
  bool reads = false;
  bool writes = false;
  bool flushes = false;
  bool trims = false;  // and write-zeroes
  // One request in `one_in` fails (1: every one), chosen by a generator that starts from `seed`.
  uint32_t one_in = 1;
  uint64_t seed = 1;
  int error = 5;  // EIO
};

// A chosen request fails before it reaches the device below. With `flushes`, a failed flush or durable change poisons:
// every later one fails with EIO.
std::unique_ptr<block::Device> make_fault_filter(std::unique_ptr<block::Device> below, const FaultOptions& options);

}  // namespace netblk::store
