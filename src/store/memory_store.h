// SPDX-License-Identifier: GPL-2.0-only
// The `memory` and `null` stores: for tests and as ceilings.
#pragma once

#include <memory>

#include "base/result.h"
#include "block/device.h"

namespace netblk::store {

// Zeroes at first, gone with the process. Memory is taken from the system when it is first written, given back on trim, or
// cleared where it is locked and the system cannot take it back.
Result<std::unique_ptr<block::Device>> make_memory_store(uint64_t size_bytes);

// Reads give zeroes, writes go nowhere.
std::unique_ptr<block::Device> make_null_store(uint64_t size_bytes);

}  // namespace netblk::store
