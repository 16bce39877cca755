// SPDX-License-Identifier: GPL-2.0-only
// netblk_sim: client, server, network and store.
#include "sim/scenario.h"
#include "sim/seed_runner.h"

namespace netblk::sim {
namespace {

struct Planted {
  PlantedBug bug;
  bool PlantedBugs::* field;
};
constexpr Planted kPlanted[] = {
    {{"flush-early", "a flush ends before its data is durable"}, &PlantedBugs::flush_early},
    {{"keeps-generation", "a reboot that lost data keeps the generation"}, &PlantedBugs::keeps_generation},
    {{"keeps-uuid", "another store has the old one's name"}, &PlantedBugs::keeps_uuid},
    {{"applies-twice", "a write is applied once more, later"}, &PlantedBugs::applies_twice},
    {{"forgets-writes", "an acknowledged write is dropped"}, &PlantedBugs::forgets_writes},
    {{"forgets-owner", "a restarted server does not know who owns the store"}, &PlantedBugs::forgets_owner},
};

RunResult run_one(const SeedOptions& options, Counts& counts) {
  RunOptions run;
  run.trace = options.trace;
  for (const Planted& each : kPlanted)
    if (options.planted == each.bug.name) run.bugs.*each.field = true;
  return run_seed(options.seed, run, counts);
}

}  // namespace
}  // namespace netblk::sim

int main(int argc, char** argv) {
  using namespace netblk::sim;
  SeedProgram program{"netblk_sim", "Runs seeds of netblk's simulator of client, server, network and store.", Count::kRequests,
                      Count::kCrashStates, {}, {}, run_one};
  for (const Planted& each : kPlanted) program.planted.push_back(each.bug);
  return run_seed_program(program, argc, argv);
}
