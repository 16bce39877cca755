// SPDX-License-Identifier: GPL-2.0-only
// netblk_volume_sim: a volume on a disk that fails, tears and lies.
#include "sim/seed_runner.h"
#include "sim/volume/scenario.h"

int main(int argc, char** argv) {
  using namespace netblk::sim;
  const SeedProgram program{"netblk_volume_sim",
                            "Runs seeds of netblk's simulator of a volume on a lying disk.",
                            Count::kCrashStates,
                            Count::kLast,
                            {{"sync-lies", "the disk says that it synced, and nobody knows"},
                             {"forgets-writes", "the disk loses writes, and nobody knows"}},
                            {{"every-crash", "a crash after every write and sync, and again after each of every recovery"},
                             {"every-error", "every nth operation of the disk fails, for every n"},
                             {"whole", "all that a volume can do, one request after the other"},
                             {"silent", "one silent fault at a time, and what became of it"}},
                            run_volume_seed};
  return run_seed_program(program, argc, argv);
}
