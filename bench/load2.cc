// SPDX-License-Identifier: GPL-2.0-only
// The netblk/2 load generator: the client library as a program uses it that wants it fast, its requests made on the
// library's own loop. Keeps a depth in flight for each connection with the engine of `netblk bench`, and accounts for
// the server. Prints one line of JSON with the keys of bench_load.
#include <getopt.h>

#include <algorithm>
#include <cinttypes>
#include <deque>
#include <memory>
#include <thread>

#include "base/log.h"
#include "bench_engine.h"
#include "block_await.h"
#include "client/netblk2_client.h"
#include "common.h"
#include "io/clock.h"
#include "io/epoll/epoll_backend.h"
#include "io/uring/uring_backend.h"
#include "protocol/netblk_wire.h"
#include "server_process.h"
#include "transport/tcp_dialer.h"

namespace {

using namespace bench;
using namespace netblk;

struct Options {
  uint16_t port = 0;
  unsigned connections = 1;
  unsigned threads = 1;
  unsigned depth = 32;
  std::string rw = "randread";
  uint32_t block_bytes = 4096;
  double seconds = 2;
  double warmup_seconds = 0.2;
  bool crc = true;
  bool lz4 = false;
  bool fill = false;
  bool epoll = false;
  unsigned idle_ms = 0;
  pid_t server_pid = 0;
};

// What was used and done when a window began, and at the last look.
struct Sample {
  uint64_t server_ns = 0;
  uint64_t client_ns = 0;
};

// One thread: a loop, a session with its share of the connections, and an engine.
class Worker {
 public:
  Worker(const Options& options, unsigned number, const ServerProcess& server)
      : options_(options),
        server_(server),
        first_(number == 0),
        seed_(number + 1),
        connections_(options.connections / options.threads + (number < options.connections % options.threads ? 1 : 0)),
        dialer_("127.0.0.1", options.port) {}

  void start(io::Backend& backend) {
    auto loop = backend.make_loop(clock_);
    if (!loop) die("%s", loop.error().message.c_str());
    loop_ = std::move(loop).value();
    thread_ = std::thread([this] { loop_->run(run()); });
  }
  void join() { thread_.join(); }

  const tools::BenchResult& result() const { return result_; }
  const client::Session2Info& info() const { return info_; }
  const Sample& begin() const { return begin_; }
  const Sample& end() const { return end_; }
  uint64_t rss_start() const { return rss_start_; }
  uint64_t rss_idle() const { return rss_idle_; }
  uint64_t rss_busy() const { return rss_busy_; }

 private:
  Sample now() const { return {server_.cpu_ns(), clock_ns(CLOCK_PROCESS_CPUTIME_ID)}; }

  coro::Task<void> fill(block::Device& device) {
    std::vector<std::byte> chunk(1 << 20);
    Random random(1);
    for (std::byte& byte : chunk) byte = static_cast<std::byte>(random.next() >> 56);
    for (uint64_t at = 0; at < device.size_bytes(); at += chunk.size()) {
      const uint64_t bytes = std::min<uint64_t>(chunk.size(), device.size_bytes() - at);
      const int error = co_await tools::Asked(device, *loop_, block::Command::kWrite, at, bytes, chunk.data());
      if (error != 0) die("the server refused to be filled at %" PRIu64 ": %s", at, std::strerror(error));
    }
  }

  coro::Task<void> run() {
    rss_start_ = server_.rss_bytes();
    client::Options2 wanted;
    wanted.connections = connections_;
    wanted.slots = std::clamp<uint32_t>(options_.depth * connections_, NETBLK2_MIN_SLOTS, NETBLK2_MAX_SLOTS);
    wanted.crc32c = options_.crc;
    wanted.lz4 = options_.lz4;
    wanted.shared = options_.threads > 1;
    wanted.read_only = !options_.fill && options_.rw.find("read") != std::string::npos;
    auto opened = co_await client::Netblk2Client::open_on(*loop_, dialer_, wanted);
    if (!opened) die("cannot connect: %s", opened.error().message.c_str());
    auto client = std::move(opened).value();
    while (client->status().connections < connections_ && client->state() == client::State::kConnected)
      co_await io::SleepUntil(*loop_, loop_->now_ms() + 1);
    info_ = client->info();
    if (info_.slots < options_.depth * connections_) die("the server grants %u slots", info_.slots);
    if (options_.fill && first_) co_await fill(*client);
    if (options_.idle_ms != 0) {
      co_await io::SleepUntil(*loop_, loop_->now_ms() + options_.idle_ms);
      rss_idle_ = server_.rss_bytes();
    }
    tools::BenchPlan plan;
    plan.random = options_.rw.starts_with("rand");
    plan.access = options_.rw.ends_with("rw")     ? tools::Access::kMixed
                  : options_.rw.ends_with("read") ? tools::Access::kRead
                                                  : tools::Access::kWrite;
    plan.block_bytes = options_.block_bytes;
    plan.in_flight = options_.depth * connections_;
    plan.warm_up_ms = static_cast<uint64_t>(options_.warmup_seconds * 1e3);
    plan.measure_ms = static_cast<uint64_t>(options_.seconds * 1e3);
    plan.seed = seed_;
    bool began = false;
    // The engine calls it when the window begins and when it ends, and some times between.
    plan.on_tick = [&](double seconds, uint64_t) {
      if (seconds <= 0) return false;
      end_ = now();
      if (!began) begin_ = end_;
      began = true;
      return false;
    };
    {
      tools::Bench bench(*loop_, *client, std::move(plan));
      co_await bench.run();
      result_ = bench.result();
    }
    rss_busy_ = server_.rss_bytes();
    co_await client->close();
  }

  const Options& options_;
  const ServerProcess& server_;
  const bool first_;
  const uint64_t seed_;
  const unsigned connections_;
  const io::SteadyClock clock_;
  transport::TcpDialer dialer_;
  std::unique_ptr<io::Loop> loop_;
  std::thread thread_;
  client::Session2Info info_;
  tools::BenchResult result_;
  Sample begin_, end_;
  uint64_t rss_start_ = 0, rss_idle_ = 0, rss_busy_ = 0;
};

[[noreturn]] void usage() {
  std::fputs(
      "usage: bench_load2 --port P [--connections 1] [--threads 1] [--depth 32] [--bs 4K] [--seconds 2] [--warmup 0.2]\n"
      "                   [--rw read|write|randread|randwrite|randrw] [--no-crc] [--lz4] [--fill] [--epoll]\n"
      "                   [--idle-ms 0] [--server-pid PID]\n"
      "  --depth    in flight for each connection; --threads shares the connections out, a session each\n"
      "  --fill     write the whole export first\n"
      "  --idle-ms  wait before the load, and look at the server's memory then\n",
      stderr);
  std::exit(2);
}

Options parse(int argc, char** argv) {
  static const option kOptions[] = {{"port", required_argument, nullptr, 'p'},
                                    {"connections", required_argument, nullptr, 'n'},
                                    {"threads", required_argument, nullptr, 't'},
                                    {"depth", required_argument, nullptr, 'd'},
                                    {"bs", required_argument, nullptr, 'b'},
                                    {"rw", required_argument, nullptr, 'm'},
                                    {"seconds", required_argument, nullptr, 's'},
                                    {"warmup", required_argument, nullptr, 'u'},
                                    {"no-crc", no_argument, nullptr, 'c'},
                                    {"lz4", no_argument, nullptr, 'l'},
                                    {"fill", no_argument, nullptr, 'f'},
                                    {"epoll", no_argument, nullptr, 'e'},
                                    {"idle-ms", required_argument, nullptr, 'i'},
                                    {"server-pid", required_argument, nullptr, 'P'},
                                    {nullptr, 0, nullptr, 0}};
  Options o;
  for (int c; (c = getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    switch (c) {
      case 'p': o.port = static_cast<uint16_t>(parse_size(optarg)); break;
      case 'n': o.connections = static_cast<unsigned>(parse_size(optarg)); break;
      case 't': o.threads = static_cast<unsigned>(parse_size(optarg)); break;
      case 'd': o.depth = static_cast<unsigned>(parse_size(optarg)); break;
      case 'b': o.block_bytes = static_cast<uint32_t>(parse_size(optarg)); break;
      case 'm': o.rw = optarg; break;
      case 's': o.seconds = parse_seconds(optarg); break;
      case 'u': o.warmup_seconds = parse_seconds(optarg); break;
      case 'c': o.crc = false; break;
      case 'l': o.lz4 = true; break;
      case 'f': o.fill = true; break;
      case 'e': o.epoll = true; break;
      case 'i': o.idle_ms = static_cast<unsigned>(parse_size(optarg)); break;
      case 'P': o.server_pid = static_cast<pid_t>(parse_size(optarg)); break;
      default: usage();
    }
  }
  const char* const modes[] = {"read", "write", "randread", "randwrite", "randrw"};
  if (optind != argc || o.port == 0 || std::find(std::begin(modes), std::end(modes), o.rw) == std::end(modes)) usage();
  if (o.threads < 1 || o.threads > o.connections || o.connections > NETBLK2_MAX_CONNECTIONS || o.depth < 1 ||
      o.block_bytes % kSectorBytes != 0 || o.block_bytes == 0 || o.block_bytes > kMaxLengthBytes)
    usage();
  return o;
}

}  // namespace

int main(int argc, char** argv) {
  const Options o = parse(argc, argv);
  set_log_level(LogLevel::kError);
  auto backend = o.epoll ? io::make_epoll_backend(1) : io::make_uring_backend();
  if (!backend) die("%s", backend.error().message.c_str());
  const ServerProcess server(o.server_pid);
  std::deque<Worker> workers;
  for (unsigned i = 0; i < o.threads; ++i) workers.emplace_back(o, i, server);
  for (Worker& worker : workers) worker.start(*backend.value());
  for (Worker& worker : workers) worker.join();

  double iops = 0;
  uint64_t requests = 0, errors = 0;
  double p50 = 0, p99 = 0;
  for (const Worker& worker : workers) {
    const tools::BenchResult& result = worker.result();
    requests += result.requests();
    errors += result.errors;
    if (result.seconds > 0) iops += static_cast<double>(result.requests()) / result.seconds;
    p50 = std::max(p50, static_cast<double>(result.latency_ns.at(0.5)) / 1e3);
    p99 = std::max(p99, static_cast<double>(result.latency_ns.at(0.99)) / 1e3);
  }
  const Worker& first = workers.front();
  const double count = static_cast<double>(std::max<uint64_t>(requests, 1));
  const double server_us = static_cast<double>(first.end().server_ns - first.begin().server_ns) / 1e3;
  const double client_us = static_cast<double>(first.end().client_ns - first.begin().client_ns) / 1e3;
  std::printf(
      "{\"iops\": %.1f, \"mib_per_s\": %.2f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"errors\": %" PRIu64
      ", \"requests\": %" PRIu64
      ", \"seconds\": %.3f, \"rw\": \"%s\", \"connections\": %u, \"threads\": %u, \"depth\": %u, \"block_bytes\": %u, "
      "\"crc32c\": %s, \"client_cpu_us_per_request\": %.3f",
      iops, iops * o.block_bytes / (1 << 20), p50, p99, errors, requests, first.result().seconds, o.rw.c_str(),
      o.connections, o.threads, o.depth, o.block_bytes, first.info().crc32c ? "true" : "false", client_us / count);
  if (o.server_pid != 0)
    std::printf(", \"server_cpu_us_per_request\": %.3f, \"rss_start_bytes\": %" PRIu64 ", \"rss_idle_bytes\": %" PRIu64
                ", \"rss_busy_bytes\": %" PRIu64,
                server_us / count, first.rss_start(), first.rss_idle(), first.rss_busy());
  std::puts("}");
  // A run in which nothing was answered measured nothing.
  return errors == 0 && requests > 0 ? 0 : 1;
}
