// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_replay.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "backend.h"
#include "base/log.h"
#include "base/parse.h"
#include "command_line.h"
#include "copy_ends.h"
#include "interrupt.h"
#include "netblk_uri.h"
#include "progress.h"
#include "replay_engine.h"
#include "store/filter/trace_line.h"
#include "target_guard.h"

namespace netblk::tools {
namespace {

using block::Command;
using nlohmann::ordered_json;

constexpr uint64_t kTimeoutMs = 10'000;  // without a server
constexpr uint64_t kMaxStepBytes = 64u << 20;

struct Trace {
  std::vector<ReplayStep> steps;
  uint64_t end_bytes = 0;  // what the disk must have
  uint64_t unit_bits = 0;  // all offsets and lengths, or-ed
  bool changes = false;
};

bool is_change(const ReplayStep& step) {
  return step.command == Command::kWrite || step.command == Command::kTrim || step.command == Command::kWriteZeroes;
}

Status add_line(Trace& trace, const store::TraceLine& line) {
  const bool flush = line.command == Command::kFlush;
  const bool moves = line.command == Command::kRead || line.command == Command::kWrite;
  if (!flush && (line.length == 0 || line.length > UINT64_MAX - line.offset))
    return make_error(EINVAL, "{} bytes from byte {} are no range", line.length, line.offset);
  if (moves && line.length > kMaxStepBytes)
    return make_error(EINVAL, "{} bytes in one request: the most is {}", line.length, kMaxStepBytes);
  ReplayStep step;
  step.time_us = line.time_us;
  step.latency_us = line.latency_us;
  step.offset = flush ? 0 : line.offset;
  step.length = flush ? 0 : line.length;
  step.command = line.command;
  step.fua = line.fua;
  step.keep_allocated = line.keep_allocated;
  step.fast_zero = line.fast_zero;
  step.failed = line.status != "ok";
  trace.end_bytes = std::max(trace.end_bytes, step.offset + step.length);
  trace.unit_bits |= step.offset | step.length;
  trace.changes = trace.changes || is_change(step);
  trace.steps.push_back(step);
  return Ok{};
}

Result<Trace> read_trace(const std::string& path, const std::string& disk) {
  std::ifstream file;
  if (path != "-") {
    struct stat status{};
    if (::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) return make_error(EISDIR, "{} is a directory", path);
    file.open(path);
    if (!file) return make_error(errno, "cannot open {}: {}", path, errno_text(errno));
  }
  std::istream& from = path == "-" ? std::cin : file;
  Trace trace;
  std::set<std::string> disks;
  uint64_t number = 0;
  for (std::string text; std::getline(from, text);) {
    ++number;
    if (text.empty() || text.front() == '#') continue;
    // A line is written whole: what has no end was cut, and its last number may be another one.
    if (from.eof()) return make_error(EINVAL, "{}: line {} is torn: it has no end", path, number);
    auto line = store::parse_trace(text);
    if (!line) return make_error(EINVAL, "{}: line {}: {}", path, number, line.error().message);
    if (!disk.empty() && line.value().disk != disk) continue;
    disks.insert(line.value().disk);
    if (disks.size() > 1)
      return make_error(EINVAL, "{} is of several disks, '{}' and '{}' among them: choose one with --disk", path,
                        *disks.begin(), *std::next(disks.begin()));
    if (auto added = add_line(trace, line.value()); !added)
      return make_error(EINVAL, "{}: line {}: {}", path, number, added.error().message);
  }
  if (from.bad()) return make_error(EIO, "cannot read {}", path);
  if (trace.steps.empty())
    return make_error(EINVAL, "{} has no request{}", path, disk.empty() ? std::string() : fmt::format(" of disk '{}'", disk));
  std::stable_sort(trace.steps.begin(), trace.steps.end(),
                   [](const ReplayStep& a, const ReplayStep& b) { return a.time_us < b.time_us; });
  return trace;
}

class Replaying {
 public:
  Replaying(const ReplayArguments& arguments, Trace trace, io::Backend& backend, io::Loop& loop)
      : arguments_(arguments), trace_(std::move(trace)), backend_(backend), loop_(loop) {}

  coro::Task<void> run();
  const Status& outcome() const { return outcome_; }
  bool ran() const { return ran_; }
  std::string text() const;
  std::string json() const;

 private:
  coro::Task<Result<CopyEnd>> open();
  Status fits() const;
  coro::Task<Status> replay();
  uint64_t count(Command command) const {
    const auto found = result_.ended.find(command);
    return found == result_.ended.end() ? 0 : found->second;
  }

  const ReplayArguments& arguments_;
  Trace trace_;
  io::Backend& backend_;
  io::Loop& loop_;
  CopyEnd target_;
  ReplayResult result_;
  size_t steps_ = 0;
  unsigned in_flight_ = 0;
  double trace_seconds_ = 0;
  bool ran_ = false;
  Status outcome_ = Ok{};
};

coro::Task<void> Replaying::run() {
  auto opened = co_await open();
  if (!opened) {
    outcome_ = std::move(opened).error();
    co_return;
  }
  target_ = std::move(opened).value();
  outcome_ = fits();
  if (outcome_) outcome_ = co_await replay();
  co_await target_.close();
}

coro::Task<Result<CopyEnd>> Replaying::open() {
  EndOptions options;
  options.connections = arguments_.connections;
  options.timeout_ms = kTimeoutMs;
  if (!looks_like_uri(arguments_.target)) {
    // Nothing is made or sized here: the disk is there, or it is a mistake.
    struct stat status{};
    if (::stat(arguments_.target.c_str(), &status) != 0)
      co_return make_error(errno, "cannot open {}: {}", arguments_.target, errno_text(errno));
    if (!S_ISBLK(status.st_mode) && (!S_ISREG(status.st_mode) || status.st_size == 0))
      co_return make_error(ENOTBLK, "{} is neither a block device, nor a file with a size, nor a URI", arguments_.target);
  }
  if (!trace_.changes) {
    auto end = co_await open_source(backend_, loop_, arguments_.target, options);
    co_return std::move(end);
  }
  const CopyEnd nothing;
  auto end = co_await open_target(backend_, loop_, arguments_.target, nothing, options);
  co_return std::move(end);
}

Status Replaying::fits() const {
  const uint64_t size = target_.device()->size_bytes();
  if (trace_.end_bytes > size)
    return make_error(ENOSPC, "the trace needs a disk of {} bytes, and {} has {}", trace_.end_bytes, target_.name, size);
  if (trace_.unit_bits % target_.block_bytes != 0)
    return make_error(EINVAL, "{} has blocks of {} bytes, and the trace has requests that are not multiples of it",
                      target_.name, target_.block_bytes);
  return Ok{};
}

coro::Task<Status> Replaying::replay() {
  block::Device& device = *target_.device();
  if (trace_.changes && !arguments_.yes) {
    const uint32_t block_bytes = std::max<uint32_t>(target_.block_bytes, 512);
    const std::string act = "the replay of " + arguments_.trace;
    Status empty = co_await refuse_data(loop_, device, block_bytes, target_.name, act);
    if (!empty) co_return empty;
  }
  steps_ = trace_.steps.size();
  in_flight_ = concurrency_of(trace_.steps);
  trace_seconds_ = static_cast<double>(trace_.steps.back().time_us - trace_.steps.front().time_us) / 1e6;
  ReplayPlan plan;
  plan.steps = std::move(trace_.steps);
  plan.speed = arguments_.as_fast_as_possible ? 0 : arguments_.speed;
  bool stopped = false;
  {
    StatusLine line;
    plan.on_tick = [&](uint64_t ended) {
      line.show(fmt::format("{} of {} requests", ended, steps_));
      stopped = interrupted();
      return stopped;
    };
    Replay replay(loop_, device, std::move(plan));
    co_await replay.run();
    result_ = replay.result();
  }
  ran_ = true;
  const std::string reason = target_.served ? target_.served->reason() : "";
  if (result_.errors > 0)
    co_return make_error(result_.first_error, "{} of {} requests failed: {}{}", result_.errors,
                         result_.errors + result_.requests(), errno_text(result_.first_error),
                         reason.empty() ? "" : " (" + reason + ")");
  if (stopped) co_return make_error(EINTR, "interrupted after {} of {} requests", result_.requests(), steps_);
  co_return Ok{};
}

double rounded(double value, double parts) { return std::round(value * parts) / parts; }
double microseconds(uint64_t ns) { return static_cast<double>((ns + 50) / 100) / 10; }

std::string Replaying::text() const {
  const Histogram& latency = result_.latency_ns;
  const auto seconds = std::max(result_.seconds, 1e-9);
  std::string lines = fmt::format("{:<11} {} on {}, {} in flight at most, {:.2f} s ({:.2f} s in the trace)\n", "replay",
                                  arguments_.trace, arguments_.target, in_flight_, result_.seconds, trace_seconds_);
  lines += fmt::format("{:<11} {} of {}: {} read, {} write, {} flush, {} trim, {} write-zeroes, {} other\n", "requests",
                       result_.requests(), steps_, count(Command::kRead), count(Command::kWrite), count(Command::kFlush),
                       count(Command::kTrim), count(Command::kWriteZeroes),
                       count(Command::kCache) + count(Command::kBlockStatus));
  lines += fmt::format("{:<11} {:.0f} requests/s, {:.1f} MiB/s\n", "rate", static_cast<double>(result_.requests()) / seconds,
                       static_cast<double>(result_.read_bytes + result_.write_bytes) / seconds / (1u << 20));
  lines += fmt::format("{:<11} p50 {:.1f} us, p99 {:.1f} us, p99.9 {:.1f} us, max {:.1f} us\n", "latency",
                       microseconds(latency.at(0.5)), microseconds(latency.at(0.99)), microseconds(latency.at(0.999)),
                       microseconds(latency.max()));
  return lines + fmt::format("{:<11} {}; {} ended otherwise than in the trace", "errors", result_.errors, result_.differ);
}

std::string Replaying::json() const {
  const Histogram& latency = result_.latency_ns;
  const auto seconds = std::max(result_.seconds, 1e-9);
  const ordered_json object = {
      {"trace", arguments_.trace},
      {"target", arguments_.target},
      {"requests", result_.requests()},
      {"reads", count(Command::kRead)},
      {"writes", count(Command::kWrite)},
      {"flushes", count(Command::kFlush)},
      {"trims", count(Command::kTrim)},
      {"write_zeroes", count(Command::kWriteZeroes)},
      {"caches", count(Command::kCache)},
      {"block_statuses", count(Command::kBlockStatus)},
      {"read_bytes", result_.read_bytes},
      {"write_bytes", result_.write_bytes},
      {"in_flight", in_flight_},
      {"seconds", rounded(result_.seconds, 1000)},
      {"trace_seconds", rounded(trace_seconds_, 1000)},
      {"late_ms", result_.late_ms},
      {"iops", rounded(static_cast<double>(result_.requests()) / seconds, 10)},
      {"mib_per_s", rounded(static_cast<double>(result_.read_bytes + result_.write_bytes) / seconds / (1u << 20), 100)},
      {"p50_us", microseconds(latency.at(0.5))},
      {"p99_us", microseconds(latency.at(0.99))},
      {"p999_us", microseconds(latency.at(0.999))},
      {"max_us", microseconds(latency.max())},
      {"errors", result_.errors},
      {"differ", result_.differ}};
  return object.dump(2, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace

int run_replay(const ReplayArguments& arguments) {
  if (looks_like_uri(arguments.target)) {
    if (const auto uri = parse_server_uri(arguments.target); !uri) return fail(kMalformed, uri.error().message);
  } else if (arguments.connections != 1) {
    return fail(kMalformed, fmt::format("--connections {}: only a server has connections", arguments.connections));
  }
  catch_interrupts();
  set_log_level(LogLevel::kOff);
  auto trace = read_trace(arguments.trace, arguments.disk);
  if (!trace) return fail(kFailed, trace.error().message);
  auto backend = make_backend();
  if (!backend) return fail(kFailed, backend.error().message);
  const io::SteadyClock clock;
  auto loop = backend.value()->make_loop(clock);
  if (!loop) return fail(kFailed, loop.error().message);
  Replaying replaying(arguments, std::move(trace).value(), *backend.value(), *loop.value());
  loop.value()->run(replaying.run());
  if (replaying.ran()) {
    const int printed = print(arguments.json ? replaying.json() : replaying.text());
    if (printed != 0) return printed;
  }
  return replaying.outcome() ? 0 : fail(kFailed, replaying.outcome().error().message);
}

}  // namespace netblk::tools
