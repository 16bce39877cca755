// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_bench.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "backend.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/parse.h"
#include "bench_engine.h"
#include "command_line.h"
#include "interrupt.h"
#include "netblk_export.h"
#include "progress.h"
#include "protocol/netblk_wire.h"
#include "store/file_store.h"
#include "target_guard.h"

namespace netblk::tools {
namespace {

using nlohmann::ordered_json;

constexpr uint64_t kMaxMemoryBytes = 1u << 30;
constexpr uint64_t kMaxWarmUpMs = 300;
constexpr size_t kAlignment = 4096;
constexpr uint64_t kTimeoutMs = 10'000;  // without a server

struct Mode {
  const char* name;
  Access access;
  bool random;
};
constexpr Mode kModes[] = {{"read", Access::kRead, false},
                           {"write", Access::kWrite, false},
                           {"randread", Access::kRead, true},
                           {"randwrite", Access::kWrite, true},
                           {"randrw", Access::kMixed, true}};

const Mode* find_mode(const std::string& name) {
  const auto found = std::find_if(std::begin(kModes), std::end(kModes), [&](const Mode& mode) { return name == mode.name; });
  return found == std::end(kModes) ? nullptr : found;
}

// What is measured, open.
struct Target {
  std::string name;
  std::unique_ptr<block::Device> disk;
  std::unique_ptr<Export> served;
  uint32_t block_bytes = limits::kSectorBytes;
  uint32_t slots = 0;  // that the server granted; 0: as many as one likes
  bool direct = false;

  block::Device& device() const { return served ? served->device() : *disk; }
};

class Benching {
 public:
  Benching(const BenchArguments& arguments, const Mode& mode, uint32_t block_bytes, io::Backend& backend, io::Loop& loop)
      : arguments_(arguments), mode_(mode), block_bytes_(block_bytes), backend_(backend), loop_(loop) {}

  coro::Task<void> run();
  const Status& outcome() const { return outcome_; }
  bool measured() const { return measured_; }
  std::string text() const;
  std::string json() const;

 private:
  bool writes() const { return mode_.access != Access::kRead; }
  unsigned in_flight() const { return arguments_.depth * arguments_.connections; }
  coro::Task<Status> measure();
  coro::Task<Status> open();
  Status open_path();
  double iops() const;
  double mib_per_s() const;

  const BenchArguments& arguments_;
  const Mode& mode_;
  const uint32_t block_bytes_;
  io::Backend& backend_;
  io::Loop& loop_;
  Target target_;
  BenchResult result_;
  unsigned granted_ = 0;  // requests in flight
  bool measured_ = false;
  Status outcome_ = Ok{};
};

coro::Task<void> Benching::run() {
  outcome_ = co_await open();
  if (outcome_) outcome_ = co_await measure();
  if (target_.served) co_await target_.served->close();
  target_ = Target{};
}

coro::Task<Status> Benching::open() {
  target_.name = arguments_.target;
  if (!looks_like_uri(arguments_.target)) co_return open_path();
  auto uri = parse_server_uri(arguments_.target);
  if (!uri) co_return std::move(uri).error();
  ExportOptions options;
  options.read_only = !writes();
  options.connections = arguments_.connections;
  options.slots = std::clamp<uint32_t>(in_flight(), NETBLK2_MIN_SLOTS, NETBLK2_MAX_SLOTS);
  options.timeout_ms = kTimeoutMs;
  options.purpose = "bench";
  auto served = co_await open_export(loop_, std::move(uri).value(), options);
  if (!served) co_return std::move(served).error();
  target_.served = std::move(served).value();
  const ExportFacts info = target_.served->facts();
  target_.block_bytes = info.block_bytes;
  target_.slots = info.slots;
  if (writes() && info.read_only) co_return make_error(EROFS, "{} is read-only: measure it with --rw read or randread", target_.name);
  co_return Ok{};
}

// A block device or a file, past the page cache where its file system can.
Status Benching::open_path() {
  const std::string& path = arguments_.target;
  struct stat status{};
  if (::stat(path.c_str(), &status) != 0) return make_error(errno, "cannot open {}: {}", path, errno_text(errno));
  if (!S_ISREG(status.st_mode) && !S_ISBLK(status.st_mode))
    return make_error(ENOTBLK, "{} is neither a block device, nor a file, nor a URI", path);
  if (writes())
    if (auto is_free = refuse_in_use(path); !is_free) return is_free;
  const int access = (writes() ? O_RDWR : O_RDONLY) | (writes() && S_ISBLK(status.st_mode) ? O_EXCL : 0) | O_CLOEXEC;
  io::UniqueFd fd(::open(path.c_str(), access));
  if (!fd.valid()) return make_error(errno, "cannot open {}: {}", path, errno_text(errno));
  if (writes() && S_ISREG(status.st_mode) && ::flock(fd.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
    return make_error(EBUSY, "{} is in use by another process, perhaps a server: stop that first", path);
  uint64_t size = static_cast<uint64_t>(status.st_size);
  uint32_t alignment = kAlignment;
  if (S_ISBLK(status.st_mode)) {
    int sector = 0;
    if (::ioctl(fd.get(), BLKGETSIZE64, &size) != 0 || ::ioctl(fd.get(), BLKSSZGET, &sector) != 0)
      return make_error(errno, "cannot read the size of {}: {}", path, errno_text(errno));
    alignment = target_.block_bytes = static_cast<uint32_t>(sector);
  }
  io::UniqueFd direct(::open(path.c_str(), (writes() ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC));
  target_.direct = direct.valid() && block_bytes_ % alignment == 0;
  if (!target_.direct) note(fmt::format("{} is measured through the page cache: it takes no direct I/O of {} bytes", path, block_bytes_));
  const block::Geometry geometry{.size_bytes = size, .read_only = !writes()};
  auto buffered_file = backend_.make_file(std::move(fd), false);
  auto direct_file = target_.direct ? backend_.make_file(std::move(direct), true) : nullptr;
  target_.disk = std::make_unique<store::FileStore>(geometry, std::move(buffered_file), std::move(direct_file), alignment);
  return Ok{};
}

coro::Task<Status> Benching::measure() {
  const uint64_t size = target_.device().size_bytes();
  if (block_bytes_ % target_.block_bytes != 0)
    co_return make_error(EINVAL, "{} has blocks of {} bytes: --bs is a multiple of it", target_.name, target_.block_bytes);
  if (size < block_bytes_)
    co_return make_error(EINVAL, "{} has {} bytes, less than one request of {}", target_.name, size, block_bytes_);
  if (writes() && !arguments_.yes) {
    const std::string act = fmt::format("--rw {}", mode_.name);
    Status empty = co_await refuse_data(loop_, target_.device(), target_.block_bytes, target_.name, act);
    if (!empty) co_return empty;
  }
  granted_ = in_flight();
  if (target_.slots != 0 && target_.slots < granted_) {
    granted_ = target_.slots;
    note(fmt::format("{} takes {} requests in flight", target_.name, granted_));
  }
  const auto measure_ms = static_cast<uint64_t>(std::llround(arguments_.seconds * 1000));
  BenchPlan plan;
  plan.access = mode_.access;
  plan.random = mode_.random;
  plan.block_bytes = block_bytes_;
  plan.in_flight = granted_;
  plan.warm_up_ms = std::min(measure_ms / 10, kMaxWarmUpMs);
  plan.measure_ms = measure_ms;
  const Id seed = random_id();
  for (size_t i = 0; i < sizeof plan.seed; ++i) plan.seed = plan.seed << 8 | seed.bytes[i];
  {
    StatusLine line;
    plan.on_tick = [&line, this](double seconds, uint64_t requests) {
      if (seconds > 0)
        line.show(fmt::format("{:.1f} of {:g} s  {:.0f} requests/s", seconds, arguments_.seconds,
                              static_cast<double>(requests) / seconds));
      return interrupted();
    };
    Bench bench(loop_, target_.device(), std::move(plan));
    co_await bench.run();
    result_ = bench.result();
  }
  measured_ = result_.seconds > 0;
  const std::string reason = target_.served ? target_.served->reason() : "";
  if (result_.errors > 0)
    co_return make_error(result_.first_error, "{} of {} requests failed: {}{}", result_.errors,
                         result_.errors + result_.requests(), errno_text(result_.first_error),
                         reason.empty() ? "" : " (" + reason + ")");
  if (!measured_) co_return make_error(EINTR, "interrupted before anything was measured");
  co_return Ok{};
}

double Benching::iops() const { return static_cast<double>(result_.requests()) / result_.seconds; }
double Benching::mib_per_s() const { return iops() * block_bytes_ / (1u << 20); }

double rounded(double value, double parts) { return std::round(value * parts) / parts; }
double microseconds(uint64_t ns) { return static_cast<double>((ns + 50) / 100) / 10; }

std::string Benching::text() const {
  const Histogram& latency = result_.latency_ns;
  std::string lines = fmt::format("{:<11} {} of {} bytes, {} in flight, {} connection{}, {:.2f} s\n", arguments_.rw,
                                  arguments_.target, block_bytes_, granted_, arguments_.connections,
                                  arguments_.connections == 1 ? "" : "s", result_.seconds);
  lines += fmt::format("{:<11} {:.0f} requests/s, {:.1f} MiB/s\n", "rate", iops(), mib_per_s());
  lines += fmt::format("{:<11} p50 {:.1f} us, p99 {:.1f} us, p99.9 {:.1f} us, max {:.1f} us\n", "latency",
                       microseconds(latency.at(0.5)), microseconds(latency.at(0.99)), microseconds(latency.at(0.999)),
                       microseconds(latency.max()));
  return lines + fmt::format("{:<11} {}", "errors", result_.errors);
}

std::string Benching::json() const {
  const Histogram& latency = result_.latency_ns;
  const ordered_json object = {{"target", arguments_.target},
                               {"rw", arguments_.rw},
                               {"bs_bytes", block_bytes_},
                               {"in_flight", granted_},
                               {"connections", arguments_.connections},
                               {"seconds", rounded(result_.seconds, 1000)},
                               {"reads", result_.reads},
                               {"writes", result_.writes},
                               {"iops", rounded(iops(), 10)},
                               {"mib_per_s", rounded(mib_per_s(), 100)},
                               {"p50_us", microseconds(latency.at(0.5))},
                               {"p99_us", microseconds(latency.at(0.99))},
                               {"p999_us", microseconds(latency.at(0.999))},
                               {"max_us", microseconds(latency.max())},
                               {"errors", result_.errors}};
  return object.dump(2, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace

int run_bench(const BenchArguments& arguments) {
  const Mode* const mode = find_mode(arguments.rw);
  if (mode == nullptr)
    return fail(kMalformed, fmt::format("--rw {}: expected read, write, randread, randwrite or randrw", arguments.rw));
  const auto block = parse_size(arguments.block_size);
  if (!block || *block == 0 || *block % limits::kSectorBytes != 0 || *block > limits::kMaxRequestBytes)
    return fail(kMalformed, fmt::format("--bs {}: expected a multiple of 512 up to {}, in bytes or with K or M",
                                        arguments.block_size, size_text(limits::kMaxRequestBytes)));
  const uint64_t in_flight = uint64_t{arguments.depth} * arguments.connections;
  if (in_flight > NETBLK2_MAX_SLOTS)
    return fail(kMalformed, fmt::format("--depth {} on {} connections is more than {} requests in flight", arguments.depth,
                                        arguments.connections, NETBLK2_MAX_SLOTS));
  if (in_flight * std::max<uint64_t>(*block, kAlignment) > kMaxMemoryBytes)
    return fail(kMalformed, fmt::format("{} requests of {} in flight need more than {} of memory: use a smaller --bs or --depth",
                                        in_flight, size_text(*block), size_text(kMaxMemoryBytes)));
  if (looks_like_uri(arguments.target)) {
    if (const auto uri = parse_server_uri(arguments.target); !uri) return fail(kMalformed, uri.error().message);
  } else if (arguments.connections != 1) {
    return fail(kMalformed, fmt::format("--connections {}: only a server has connections; use --depth for {}",
                                        arguments.connections, arguments.target));
  }
  catch_interrupts();
  set_log_level(LogLevel::kOff);
  auto backend = make_backend();
  if (!backend) return fail(kFailed, backend.error().message);
  const io::SteadyClock clock;
  auto loop = backend.value()->make_loop(clock);
  if (!loop) return fail(kFailed, loop.error().message);
  Benching benching(arguments, *mode, static_cast<uint32_t>(*block), *backend.value(), *loop.value());
  loop.value()->run(benching.run());
  if (benching.measured()) {
    const int printed = print(arguments.json ? benching.json() : benching.text());
    if (printed != 0) return printed;
  }
  return benching.outcome() ? 0 : fail(kFailed, benching.outcome().error().message);
}

}  // namespace netblk::tools
