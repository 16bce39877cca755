// SPDX-License-Identifier: GPL-2.0-only
// What a seed chooses before its first life.
#pragma once

#include "sim/volume/life.h"

namespace netblk::sim {

Mode choose_mode(Random& random);
Shape choose_shape(Random& random, Mode mode);
LifePlan choose_plan(Random& random, uint64_t most_requests);
// An empty one, durable, on a disk whose pace is chosen here.
void make_volume(World& world, LyingDisk& disk, const Shape& shape);

}  // namespace netblk::sim
