// SPDX-License-Identifier: GPL-2.0-only
// Filters: devices that stand before another device. They stack in any order.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "block/device.h"

namespace netblk::store {

// Every change is refused with EROFS.
std::unique_ptr<block::Device> make_readonly_filter(std::unique_ptr<block::Device> below);

struct DelayOptions {
  uint64_t read_ms = 0;  // and what else changes nothing, but a flush
  uint64_t write_ms = 0;
  uint64_t flush_ms = 0;
  uint64_t trim_ms = 0;  // and write-zeroes
};

// Each request starts that much later, on its own loop; delay_ms: all of them.
std::unique_ptr<block::Device> make_delay_filter(std::unique_ptr<block::Device> below, const DelayOptions& options);
std::unique_ptr<block::Device> make_delay_filter(std::unique_ptr<block::Device> below, uint64_t delay_ms);

struct FaultOptions {
  // Which commands fail.
  bool reads = false;
  bool writes = false;
  bool flushes = false;
  bool trims = false;  // and write-zeroes
  bool statuses = false;  // of blocks
  // One request in `one_in` fails (1: every one), chosen by a generator that starts from `seed`.
  uint32_t one_in = 1;
  uint64_t seed = 1;
  // So many fail, and none after them; 0: no end.
  uint64_t count = 0;
  int error = 5;  // EIO
};

// A chosen request fails before it reaches the device below. With `flushes`, a failed flush or durable change poisons:
// every later one fails with EIO.
std::unique_ptr<block::Device> make_fault_filter(std::unique_ptr<block::Device> below, const FaultOptions& options);

// Shows the bytes from offset_bytes on; size_bytes of them, or, if 0, all the rest, as much as there is at any time.
// They lie inside the device below.
std::unique_ptr<block::Device> make_window_filter(std::unique_ptr<block::Device> below, uint64_t offset_bytes,
                                                  uint64_t size_bytes);

struct LimitOptions {
  // In a second, of all connections together; 0: no limit.
  uint64_t bytes_per_second = 0;
  uint64_t requests_per_second = 0;
  // What may go at once after a rest. 0: a fiftieth of a second's worth.
  uint64_t burst_bytes = 0;
  uint64_t burst_requests = 0;
};

// The data of reads and writes counts as bytes; every request counts as one. What is over the limit waits, in the order
// of its connection; connections that wait take turns, so that one with many requests in flight does not starve another.
std::unique_ptr<block::Device> make_limit_filter(std::unique_ptr<block::Device> below, const LimitOptions& options);

inline constexpr const char* kTraceToStdout = "-";
// One line for each request that has ended (store/filter/trace_line.h), appended to the file, or kTraceToStdout.
// name: of the disk, in each line. The file is shared by all filters of this process that name it.
Result<std::unique_ptr<block::Device>> make_trace_filter(std::unique_ptr<block::Device> below, const std::string& path,
                                                         const std::string& name);

}  // namespace netblk::store
