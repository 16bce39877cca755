// SPDX-License-Identifier: GPL-2.0-only
#include "sim/seed_runner.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <string_view>

#include <CLI/CLI.hpp>

#include "base/check.h"
#include "base/log.h"

namespace netblk::sim {
namespace {

constexpr long kSecondsPerSeed = 60;  // of the processor: a busy machine fails no seed
constexpr uint64_t kReplayOneIn = 25;

// One worker's place in the memory that all processes share.
struct Worker {
  std::atomic<uint64_t> seed{0};
  std::atomic<bool> said{false};
  char words[1024] = {};
  int log = -1;  // what it says on stderr during its seed
};

constexpr unsigned kMaxJobs = 64;
struct Shared {
  std::atomic<uint64_t> next{0};
  std::atomic<uint64_t> done{0};
  std::atomic<uint64_t> replayed{0};
  std::atomic<uint64_t> virtual_ms{0};
  std::atomic<uint64_t> hash{0};
  std::atomic<uint64_t> counts[static_cast<size_t>(Count::kLast)] = {};
  Worker workers[kMaxJobs];
};

Shared* shared = nullptr;
Worker* self = nullptr;
pid_t pids[kMaxJobs];  // the parent's

void failed(const World& world, std::string_view rule, std::string_view words) {
  const std::string text = fmt::format("{}: {} (at {:.3f} ms)", rule, words, static_cast<double>(world.now_us()) / 1000);
  if (self != nullptr) {
    std::strncpy(self->words, text.c_str(), sizeof self->words - 1);
    self->said.store(true);
  }
  std::fprintf(stderr, "%s\n", text.c_str());
  std::fflush(nullptr);
  std::_Exit(3);
}

struct Settings {
  uint64_t first = 1, last = 0;
  unsigned jobs = 2;
  unsigned max_failures = 25;
  bool trace = false;
  std::string planted, scenario;
};

[[noreturn]] void work(const SeedProgram& program, const Settings& settings) {
  ::dup2(self->log, 2);
  for (;;) {
    const uint64_t seed = shared->next.fetch_add(1);
    if (seed > settings.last) std::exit(0);  // the sanitizer looks for leaks
    self->seed.store(seed);
    if (::ftruncate(self->log, 0) != 0) std::_Exit(4);
    const itimerval patience{.it_interval = {0, 0}, .it_value = {kSecondsPerSeed, 0}};
    ::setitimer(ITIMER_PROF, &patience, nullptr);
    Counts counts{};
    const RunResult result = program.run({seed, false, settings.planted, settings.scenario}, counts);
    if (seed % kReplayOneIn == 0) {
      Counts again{};
      const RunResult replay = program.run({seed, false, settings.planted, settings.scenario}, again);
      if (replay.hash != result.hash) {
        std::strncpy(self->words, "one seed replays exactly: two runs of it were different", sizeof self->words - 1);
        self->said.store(true);
        std::_Exit(3);
      }
      ++shared->replayed;
    }
    for (size_t i = 0; i < counts.size(); ++i) shared->counts[i] += counts[i];
    shared->virtual_ms += result.virtual_us / 1000;
    shared->hash += result.hash;
    ++shared->done;
  }
}

void start_worker(unsigned number, const SeedProgram& program, const Settings& settings) {
  Worker& worker = shared->workers[number];
  worker.said.store(false);
  std::fflush(nullptr);
  const pid_t pid = ::fork();
  NETBLK_CHECK(pid >= 0, "fork failed");
  pids[number] = pid;
  if (pid == 0) {
    self = &worker;
    work(program, settings);
  }
}

std::string log_tail(int fd) {
  const off_t size = ::lseek(fd, 0, SEEK_END);
  constexpr off_t kTail = 6000;
  std::string text(static_cast<size_t>(std::min(size, kTail)), '\0');
  const ssize_t got = ::pread(fd, text.data(), text.size(), std::max<off_t>(0, size - kTail));
  text.resize(static_cast<size_t>(std::max<ssize_t>(0, got)));
  return text;
}

// Returns how many seeds failed.
unsigned run_all(const SeedProgram& program, const Settings& settings, bool verbose, std::string& first_words, uint64_t& first_seed) {
  shared->next.store(settings.first);
  unsigned failures = 0;
  unsigned living = 0;
  for (unsigned i = 0; i < settings.jobs; ++i) {
    Worker& worker = shared->workers[i];
    worker.log = ::memfd_create("netblk_sim", MFD_CLOEXEC);
    ::fcntl(worker.log, F_SETFL, O_APPEND);
    start_worker(i, program, settings);
    ++living;
  }
  while (living > 0) {
    int status = 0;
    const pid_t pid = ::waitpid(-1, &status, 0);
    if (pid < 0) break;
    for (unsigned i = 0; i < settings.jobs; ++i) {
      Worker& worker = shared->workers[i];
      if (pids[i] != pid) continue;
      pids[i] = 0;
      --living;
      if (WIFEXITED(status) && WEXITSTATUS(status) == 0) break;
      ++failures;
      std::string words = worker.said.load() ? worker.words
                          : WIFSIGNALED(status) && WTERMSIG(status) == SIGPROF
                              ? fmt::format("it did not end within {} s of the processor", kSecondsPerSeed)
                              : std::string();
      const std::string log = log_tail(worker.log);
      if (words.empty()) {
        // An abort's own line: "file:line: check failed: what".
        const size_t at = log.find("check failed");
        const size_t line = at == std::string::npos ? std::string::npos : log.rfind('\n', at) + 1;
        words = at == std::string::npos ? fmt::format("status {:#x}", status) : log.substr(line, log.find('\n', at) - line);
      }
      if (first_words.empty()) {
        first_words = words;
        first_seed = worker.seed.load();
      }
      if (verbose) {
        if (!worker.said.load()) std::fputs(log.c_str(), stderr);
        const std::string which = settings.scenario.empty() ? "" : " --scenario " + settings.scenario;
        std::printf("FAIL seed-%llu: %s; replay it: %s%s --seed %llu --trace\n",
                    static_cast<unsigned long long>(worker.seed.load()), words.c_str(), program.name, which.c_str(),
                    static_cast<unsigned long long>(worker.seed.load()));
        std::fflush(stdout);
      }
      if (failures < settings.max_failures) {
        start_worker(i, program, settings);
        ++living;
      } else {
        shared->next.store(settings.last + 1);
      }
      break;
    }
  }
  return failures;
}

void report(const SeedProgram& program, const Settings& settings) {
  std::printf("seeds %llu to %llu: %llu ran, %llu of them twice with the same events, %.1f hours of their time, sum %016llx\n",
              static_cast<unsigned long long>(settings.first), static_cast<unsigned long long>(settings.last),
              static_cast<unsigned long long>(shared->done.load()), static_cast<unsigned long long>(shared->replayed.load()),
              static_cast<double>(shared->virtual_ms.load()) / 3'600'000,
              static_cast<unsigned long long>(shared->hash.load()));
  for (size_t i = static_cast<size_t>(program.first_count); i < static_cast<size_t>(program.last_count); ++i)
    std::printf("  %-48s %llu\n", std::string(count_name(static_cast<Count>(i))).c_str(),
                static_cast<unsigned long long>(shared->counts[i].load()));
}

}  // namespace

int run_seed_program(const SeedProgram& program, int argc, char** argv) {
  CLI::App app{program.title};
  Settings settings;
  uint64_t seed = 0;
  std::string seeds;
  std::string& planted = settings.planted;
  bool list = false, list_scenarios = false, quiet = false, until_failure = false;
  auto* const one = app.add_option("--seed", seed, "one seed, in this process");
  auto* const many = app.add_option("--seeds", seeds, "A..B");
  app.add_option("--jobs", settings.jobs, "worker processes")->check(CLI::Range(1u, kMaxJobs));
  app.add_option("--planted", planted, "with this bug planted in the store; succeeds when a seed fails");
  app.add_option("--scenario", settings.scenario, "what is done with a seed: --list-scenarios names them");
  app.add_flag("--trace", settings.trace, "every event on stderr (with --seed)");
  app.add_flag("--until-failure", until_failure, "ends with the first seed that fails");
  app.add_flag("--quiet", quiet, "no counts");
  app.add_flag("--list-planted", list, "the bugs that --planted knows");
  app.add_flag("--list-scenarios", list_scenarios, "what --scenario knows");
  one->excludes(many);
  CLI11_PARSE(app, argc, argv);
  if (list) {
    for (const PlantedBug& each : program.planted) std::printf("%s: %s\n", each.name, each.what);
    return 0;
  }
  if (list_scenarios) {
    for (const Scenario& each : program.scenarios) std::printf("%s: %s\n", each.name, each.what);
    return 0;
  }
  const bool known_scenario = std::any_of(program.scenarios.begin(), program.scenarios.end(),
                                          [&](const Scenario& each) { return settings.scenario == each.name; });
  if (!settings.scenario.empty() && !known_scenario) {
    std::fprintf(stderr, "%s: no scenario is called '%s': --list-scenarios names them\n", program.name, settings.scenario.c_str());
    return 2;
  }
  const bool known = std::any_of(program.planted.begin(), program.planted.end(),
                                 [&](const PlantedBug& each) { return planted == each.name; });
  if (!planted.empty() && !known) {
    std::fprintf(stderr, "%s: no bug is called '%s': --list-planted names them\n", program.name, planted.c_str());
    return 2;
  }
  set_log_level(settings.trace ? LogLevel::kDebug : LogLevel::kError);
  World::set_failure_handler(failed);
  if (one->count() > 0) {
    Counts counts{};
    const RunResult result = program.run({seed, settings.trace, planted, settings.scenario}, counts);
    std::printf("PASS seed-%llu: %.3f s of its time, %llu %s, events %016llx\n", static_cast<unsigned long long>(seed),
                static_cast<double>(result.virtual_us) / 1e6,
                static_cast<unsigned long long>(counts[static_cast<size_t>(program.first_count)]),
                std::string(count_name(program.first_count)).c_str(),
                static_cast<unsigned long long>(result.hash));
    return 0;
  }
  const size_t dots = seeds.find("..");
  if (dots == std::string::npos) {
    std::fprintf(stderr, "%s: give --seed N, or --seeds A..B\n", program.name);
    return 2;
  }
  settings.first = std::strtoull(seeds.c_str(), nullptr, 10);
  settings.last = std::strtoull(seeds.c_str() + dots + 2, nullptr, 10);
  shared = new (::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared;
  if (!planted.empty() || until_failure) settings.max_failures = 1;
  std::string words;
  uint64_t first_seed = 0;
  const unsigned failures = run_all(program, settings, planted.empty(), words, first_seed);
  if (!planted.empty()) {
    if (failures == 0) {
      std::printf("FAIL planted-%s: not noticed in seeds %s\n", planted.c_str(), seeds.c_str());
      return 1;
    }
    std::printf("PASS planted-%s: noticed by seed %llu: %s\n", planted.c_str(), static_cast<unsigned long long>(first_seed),
                words.c_str());
    return 0;
  }
  if (failures == 0)
    std::printf("PASS seeds-%s: %llu seeds\n", seeds.c_str(), static_cast<unsigned long long>(shared->done.load()));
  if (!quiet) report(program, settings);
  return failures == 0 ? 0 : 1;
}

}  // namespace netblk::sim
