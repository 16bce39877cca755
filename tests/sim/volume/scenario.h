// SPDX-License-Identifier: GPL-2.0-only
// One seed: the shape of a volume, how it is used in several lives of its process, and what the disk does to it.
#pragma once

#include "sim/seed_runner.h"

namespace netblk::sim {

RunResult run_volume_seed(const SeedOptions& options, Counts& counts);

// Its scenarios.
void run_every_crash(World& world);
void run_silent(World& world);
void run_whole(World& world);
RunResult run_every_error(const SeedOptions& options, Counts& counts);

}  // namespace netblk::sim
