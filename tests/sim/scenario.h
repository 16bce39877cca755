// SPDX-License-Identifier: GPL-2.0-only
// Scenario: one run. The seed chooses the shape of the network, the disk and the clients, which faults there are and how
// often; they strike for a while, then they end, and everything must come to its end.
#pragma once

#include <cstdint>

#include "sim/disk.h"
#include "sim/seed_runner.h"
#include "sim/world.h"

namespace netblk::sim {

struct RunOptions {
  bool trace = false;
  PlantedBugs bugs;
};

// Fails by World::fail() if a rule is broken.
RunResult run_seed(uint64_t seed, const RunOptions& options, Counts& counts);

}  // namespace netblk::sim
