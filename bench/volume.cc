// SPDX-License-Identifier: GPL-2.0-only
// What a volume of some size and so many extents costs: memory, snapshots, openings (clean, and after a crash), single reads and
// writes. The engine in this process on a file of this machine, without a network; one line of JSON.
//
// The extents are blocks of zeroes that keep their space: entries of the index like any others, whose bytes need no room.
#include <getopt.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <cinttypes>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "block/device.h"
#include "common.h"
#include "full_volume.h"
#include "io/clock.h"
#include "io/epoll/epoll_backend.h"
#include "io/uring/uring_backend.h"
#include "store/volume/volume.h"

namespace {

using namespace bench;
namespace coro = netblk::coro;
namespace io = netblk::io;
namespace volume = netblk::store::volume;
using netblk::block::Command;
using netblk::block::Request;

constexpr uint64_t kBlock = 4096;
constexpr uint64_t kInFlight = 256;

struct Options {
  std::string dir = ".";
  uint64_t size = uint64_t{1} << 40;
  uint64_t extents = 100'000;
  uint64_t log_bytes = 256u << 20;
  uint64_t requests = 20'000;
  uint64_t memory_bytes = volume::kDefaultMemoryBytes;
  bool full = false;
  bool keep = false;
};

using Figures = std::map<std::string, double>;

class Environment final : public volume::Environment {
 public:
  uint64_t wall_ns() override { return io::wall_us() * 1000; }
  void random_bytes(std::span<std::byte> into) override {
    if (getentropy(into.data(), into.size()) != 0) die("getentropy: %s", strerror(errno));
  }
};

double milliseconds_since(uint64_t from) { return static_cast<double>(now_ns() - from) / 1e6; }

double cpu_us() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto us = [](const timeval& t) { return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_usec); };
  return us(usage.ru_utime) + us(usage.ru_stime);
}

// Of this process: a line of its status.
double memory_mib(const char* name) {
  FILE* const file = fopen("/proc/self/status", "re");
  if (file == nullptr) die("/proc/self/status: %s", strerror(errno));
  char line[256];
  double kib = 0;
  while (fgets(line, sizeof line, file) != nullptr)
    if (strncmp(line, name, strlen(name)) == 0) kib = strtod(line + strlen(name), nullptr);
  fclose(file);
  return kib / 1024;
}

template <class T>
void must(const T& result, const char* what) {
  if (!result.ok()) die("%s: %s", what, result.error().message.c_str());
}

// Requests, some in flight at once; each that ends takes the next.
class Load {
 public:
  // next: sets command, offset and length; false: there are no more.
  Load(io::Loop& loop, netblk::block::Device& device, uint64_t depth, std::function<bool(Request&)> next)
      : loop_(loop), device_(device), next_(std::move(next)), data_(64 * kBlock) {
    Random random(7);
    for (std::byte& byte : data_) byte = static_cast<std::byte>(random.next() >> 56);
    for (uint64_t i = 0; i < depth; ++i) slots_.emplace_back(*this);
  }
  coro::Task<void> run() {
    for (Slot& slot : slots_) go_on(slot);
    while (in_flight_ != 0) co_await io::SleepUntil(loop_, loop_.now_ms() + 1);
  }

 private:
  struct Slot : Request {
    explicit Slot(Load& owner) : Request([](Request& request) {
        auto& slot = static_cast<Slot&>(request);
        if (slot.error != 0) die("a request failed: %s", strerror(slot.error));
        --slot.load.in_flight_;
        slot.load.go_on(slot);
      }), load(owner), room(kBlock) {}
    Load& load;
    std::vector<std::byte> room;
  };
  void go_on(Slot& slot) {
    slot.loop = &loop_;
    slot.command = Command::kRead;
    slot.keep_allocated = false;
    slot.length = kBlock;
    slot.offset = 0;
    if (!next_(slot)) return;
    slot.data = nullptr;
    if (slot.command == Command::kRead) slot.data = slot.room.data();
    if (slot.command == Command::kWrite) slot.data = data_.data() + slot.offset / kBlock % 64 * kBlock;
    if (slot.command == Command::kFlush) slot.length = 0;
    ++in_flight_;
    device_.submit(slot);
  }

  io::Loop& loop_;
  netblk::block::Device& device_;
  const std::function<bool(Request&)> next_;
  std::vector<std::byte> data_;
  std::deque<Slot> slots_;
  uint64_t in_flight_ = 0;
};

// A volume that is open in this process.
struct Opened {
  Environment environment;
  std::unique_ptr<volume::Volume> volume;
  std::unique_ptr<netblk::block::Device> device;

  coro::Task<void> open(io::Backend& backend, io::Loop& loop, const Options& o, const volume::VolumeOptions& how) {
    io::UniqueFd fd(::open((o.dir + "/data").c_str(), O_RDWR | O_CLOEXEC));
    if (!fd.valid()) die("%s/data: %s", o.dir.c_str(), strerror(errno));
    auto opened = co_await volume::open_volume(loop, backend.make_file(std::move(fd), false), how, environment);
    must(opened, "open");
    volume = std::move(opened).value();
    auto head = volume->open_device();
    must(head, "open");
    device = std::move(head).value();
  }
  coro::Task<void> close() {
    device.reset();
    const auto closed = co_await volume->close();
    must(closed, "close");
    volume.reset();
  }
};

volume::VolumeOptions usual(const Options& o) {
  volume::VolumeOptions options;
  options.share_memory(o.memory_bytes);
  return options;
}

// Block of extent i: spread over the whole disk.
uint64_t block_of(const Options& o, uint64_t i) { return i * (o.size / kBlock / o.extents); }

coro::Task<void> fill(io::Backend& backend, io::Loop& loop, const Options& o, Figures& out) {
  if (o.full) {
    Environment environment;
    const FullVolume made = make_full_volume(o.dir + "/data", o.size, environment);
    out["index_mib"] = static_cast<double>(made.index_bytes) / (1 << 20);
    co_return;
  }
  io::UniqueFd fd(::open((o.dir + "/data").c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd.valid()) die("%s/data: %s", o.dir.c_str(), strerror(errno));
  const std::unique_ptr<io::File> file = backend.make_file(std::move(fd), false);
  Environment environment;
  const volume::CreateOptions how{.size_bytes = o.size};
  const auto made = co_await volume::create_volume(loop, *file, how, environment);
  must(made, "create");
  Opened on;
  co_await on.open(backend, loop, o, usual(o));
  uint64_t at = 0;
  const double cpu = cpu_us();
  Load load(loop, *on.device, kInFlight, [&](Request& request) {
    if (at == o.extents) return false;
    request.command = Command::kWriteZeroes;
    request.keep_allocated = true;
    request.offset = block_of(o, at++) * kBlock;
    return true;
  });
  co_await load.run();
  out["fill_us"] = (cpu_us() - cpu) / static_cast<double>(o.extents);
  const uint64_t from = now_ns();
  co_await on.close();
  out["close_ms"] = milliseconds_since(from);
}

// What is read next comes from the disk, as after a start of the machine.
void forget(const Options& o) {
  const io::UniqueFd fd(::open((o.dir + "/data").c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid() || fsync(fd.get()) != 0 || posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED) != 0)
    die("%s/data: %s", o.dir.c_str(), strerror(errno));
}

coro::Task<void> use(io::Backend& backend, io::Loop& loop, const Options& o, Figures& out) {
  forget(o);
  Opened on;
  const double before = memory_mib("RssAnon:");
  uint64_t from = now_ns();
  co_await on.open(backend, loop, o, usual(o));
  out["open_clean_ms"] = milliseconds_since(from);
  out["index_entries"] = static_cast<double>(on.volume->info().index_entries);
  std::vector<double> took;
  for (int i = 0; i < 5; ++i) {
    from = now_ns();
    const auto lsn = co_await on.volume->snapshot("s" + std::to_string(i));
    took.push_back(milliseconds_since(from));
    must(lsn, "snapshot");
  }
  std::sort(took.begin(), took.end());
  out["snapshot_ms"] = took[2];
  Random random(3);
  for (const bool writes : {false, true}) {
    uint64_t left = o.requests, since_flush = 0;
    const double cpu = cpu_us();
    from = now_ns();
    Load load(loop, *on.device, 32, [&](Request& request) {
      if (writes && ++since_flush == 33) {
        since_flush = 0;
        request.command = Command::kFlush;
        return true;
      }
      if (left == 0) return false;
      --left;
      request.command = writes ? Command::kWrite : Command::kRead;
      request.offset = block_of(o, random.below(o.extents)) * kBlock;
      return true;
    });
    co_await load.run();
    const double each = static_cast<double>(o.requests);
    out[writes ? "write_us" : "read_us"] = static_cast<double>(now_ns() - from) / 1e3 / each;
    out[writes ? "write_cpu_us" : "read_cpu_us"] = (cpu_us() - cpu) / each;
  }
  out["memory_used_mib"] = memory_mib("RssAnon:") - before;
  from = now_ns();
  co_await on.close();
  out["close_again_ms"] = milliseconds_since(from);
  // With the program, and with the merges.
  out["memory_peak_mib"] = memory_mib("VmHWM:");
}

// Ends without closing, with so much log behind the last checkpoint.
coro::Task<void> leave(io::Backend& backend, io::Loop& loop, const Options& o, Figures& out) {
  Opened on;
  volume::VolumeOptions options = usual(o);
  // No checkpoint: neither for the log's length nor to free space, nor at rest.
  options.checkpoint_bytes = options.table_bytes = uint64_t{1} << 50;
  options.spare_segments = uint64_t{1} << 20;
  options.idle_ms = uint64_t{1} << 40;
  co_await on.open(backend, loop, o, options);
  uint64_t left = o.log_bytes / (kBlock + 128);
  Random random(4);
  Load load(loop, *on.device, 32, [&](Request& request) {
    if (left == 0) return false;
    --left;
    request.command = Command::kWrite;
    request.offset = random.below(o.size / kBlock) * kBlock;
    return true;
  });
  co_await load.run();
  bool flushed = false;
  Load last(loop, *on.device, 1, [&](Request& request) {
    request.command = Command::kFlush;
    return !std::exchange(flushed, true);
  });
  co_await last.run();
  out["log_mib"] = static_cast<double>(o.log_bytes) / (1 << 20);
  // The volume is let go of as a killed process lets go of it: main() ends this one.
  (void)on.device.release();
  (void)on.volume.release();
}

coro::Task<void> recover(io::Backend& backend, io::Loop& loop, const Options& o, Figures& out) {
  forget(o);
  Opened on;
  const double cpu = cpu_us();
  const uint64_t from = now_ns();
  co_await on.open(backend, loop, o, usual(o));
  out["open_crashed_ms"] = milliseconds_since(from);
  out["open_crashed_cpu_ms"] = (cpu_us() - cpu) / 1e3;
  out["replayed_records"] = static_cast<double>(on.volume->info().replayed_records);
  co_await on.close();
  out["recover_memory_peak_mib"] = memory_mib("VmHWM:");
}

// Each in a process of its own: what it holds of memory is its own, and one may end without closing.
using Step = coro::Task<void> (*)(io::Backend&, io::Loop&, const Options&, Figures&);

coro::Task<void> run_step(Step step, io::Backend& backend, io::Loop& loop, const Options& o, int to) {
  Figures out;
  co_await step(backend, loop, o, out);
  for (const auto& [name, value] : out) dprintf(to, "%s %.9g\n", name.c_str(), value);
  _exit(0);
}

void in_child(Step step, const Options& o, std::vector<std::pair<std::string, double>>& all) {
  int ends[2];
  if (pipe(ends) != 0) die("pipe: %s", strerror(errno));
  const pid_t child = fork();
  if (child < 0) die("fork: %s", strerror(errno));
  if (child == 0) {
    const io::SteadyClock clock;
    // As the server has it.
    auto backend = io::make_uring_backend();
    if (!backend.ok()) backend = io::make_epoll_backend(4);
    must(backend, "epoll");
    const auto loop = backend.value()->make_loop(clock);
    must(loop, "a loop");
    loop.value()->run(run_step(step, *backend.value(), *loop.value(), o, ends[1]));
    _exit(1);
  }
  close(ends[1]);
  FILE* const from = fdopen(ends[0], "r");
  char name[64];
  double value = 0;
  while (fscanf(from, "%63s %lf", name, &value) == 2) all.emplace_back(name, value);
  fclose(from);
  int status = 0;
  if (waitpid(child, &status, 0) != child || status != 0) exit(1);
}

constexpr const char* kUsage =
    "usage: bench_volume [--dir DIR] [--size SIZE] [--extents N] [--requests N] [--log SIZE] [--cache SIZE] [--full] [--keep]\n"
    "--full: every block has an entry of its own, whatever --extents says; --keep: only makes the volume DIR\n";

}  // namespace

int main(int argc, char** argv) {
  Options o;
  static const option kOptions[] = {{"dir", required_argument, nullptr, 'd'},      {"size", required_argument, nullptr, 's'},
                                    {"extents", required_argument, nullptr, 'n'},  {"log", required_argument, nullptr, 'l'},
                                    {"requests", required_argument, nullptr, 'r'}, {"cache", required_argument, nullptr, 'c'},
                                    {"full", no_argument, nullptr, 'f'},           {"keep", no_argument, nullptr, 'k'},
                                    {"help", no_argument, nullptr, 'h'},           {nullptr, 0, nullptr, 0}};
  for (int c; (c = getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    switch (c) {
      case 'd': o.dir = optarg; break;
      case 's': o.size = parse_size(optarg); break;
      case 'n': o.extents = parse_size(optarg); break;
      case 'l': o.log_bytes = parse_size(optarg); break;
      case 'r': o.requests = parse_size(optarg); break;
      case 'c': o.memory_bytes = parse_size(optarg); break;
      case 'f': o.full = true; break;
      case 'k': o.keep = true; break;
      case 'h': fputs(kUsage, stdout); return 0;
      default: fputs(kUsage, stderr); return 2;
    }
  }
  if (o.full) o.extents = o.size / kBlock;
  if (optind != argc || o.extents == 0 || o.requests == 0 || o.size / kBlock < o.extents) {
    fputs(kUsage, stderr);
    return 2;
  }
  if (!o.keep) o.dir += "/netblk-bench-volume-" + std::to_string(getpid());
  if (mkdir(o.dir.c_str(), 0700) != 0) die("%s: %s", o.dir.c_str(), strerror(errno));
  std::vector<std::pair<std::string, double>> all;
  in_child(fill, o, all);
  if (!o.keep) {
    for (const Step step : {use, leave, recover}) in_child(step, o, all);
    unlink((o.dir + "/data").c_str());
    rmdir(o.dir.c_str());
  }
  printf("{\"size_bytes\": %" PRIu64 ", \"extents\": %" PRIu64, o.size, o.extents);
  for (const auto& [name, value] : all) printf(", \"%s\": %.6g", name.c_str(), value);
  printf("}\n");
}
