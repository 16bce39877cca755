// SPDX-License-Identifier: GPL-2.0-only
// A program that runs seeds of a simulator, each in a worker process that a failure ends, and reports what was reached.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "sim/world.h"

namespace netblk::sim {

struct RunResult {
  uint64_t hash = 0;
  uint64_t virtual_us = 0;
};

struct SeedOptions {
  uint64_t seed = 0;
  bool trace = false;
  std::string planted;  // the name of a bug to plant; empty: none
  std::string scenario;  // what is done with the seed: one of SeedProgram::scenarios, or empty
};

struct PlantedBug {
  const char* name;
  const char* what;
};

struct Scenario {
  const char* name;
  const char* what;
};

struct SeedProgram {
  const char* name;
  const char* title;
  // Which counts are this program's.
  Count first_count, last_count;
  std::vector<PlantedBug> planted;
  std::vector<Scenario> scenarios;  // beside the one without a name
  // Fails by World::fail() if a rule is broken.
  std::function<RunResult(const SeedOptions& options, Counts& counts)> run;
};

int run_seed_program(const SeedProgram& program, int argc, char** argv);

}  // namespace netblk::sim
