// SPDX-License-Identifier: GPL-2.0-only
// A bare pwrite + fdatasync loop over blocks of one file: what a durable write costs when nothing else is in the way.
// With several threads, each has the loop for itself: the file system's own gain from concurrent syncs.
#include <getopt.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <atomic>
#include <thread>
#include <vector>

#include "common.h"

namespace {

using namespace bench;

struct Options {
  std::string path;
  uint64_t span_bytes = 64u << 20;
  uint32_t block_bytes = 4096;
  unsigned threads = 1;
  double seconds = 2;
};

struct Worker {
  Histogram latency;
  uint64_t writes = 0;
  uint64_t errors = 0;
};

void loop(int fd, const Options& o, unsigned number, const std::atomic<bool>& stop, Worker& worker) {
  std::vector<uint8_t> block(o.block_bytes, static_cast<uint8_t>(number + 1));
  Random random(number + 1);
  const uint64_t blocks = o.span_bytes / o.block_bytes;
  // One at the least: a machine that stands still may let the time go by before a thread's turn comes.
  do {
    const auto offset = static_cast<off_t>(random.below(blocks) * o.block_bytes);
    const uint64_t start = now_ns();
    const bool ok = pwrite(fd, block.data(), block.size(), offset) == static_cast<ssize_t>(block.size()) && fdatasync(fd) == 0;
    worker.latency.add(now_ns() - start);
    ++worker.writes;
    if (!ok) ++worker.errors;
  } while (!stop.load(std::memory_order_relaxed));
}

// Overwrites of blocks that are already on the disk: no allocation, no size change.
void prepare(int fd, const Options& o) {
  struct stat st {};
  if (fstat(fd, &st) != 0) die("%s: %s", o.path.c_str(), std::strerror(errno));
  if (static_cast<uint64_t>(st.st_size) >= o.span_bytes && static_cast<uint64_t>(st.st_blocks) * 512 >= o.span_bytes) return;
  std::vector<uint8_t> chunk(1 << 20, 0x5a);
  for (uint64_t at = 0; at < o.span_bytes; at += chunk.size())
    if (pwrite(fd, chunk.data(), chunk.size(), static_cast<off_t>(at)) != static_cast<ssize_t>(chunk.size()))
      die("%s: %s", o.path.c_str(), std::strerror(errno));
  if (fsync(fd) != 0) die("%s: %s", o.path.c_str(), std::strerror(errno));
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  static const option kOptions[] = {{"path", required_argument, nullptr, 'f'},    {"span", required_argument, nullptr, 'w'},
                                    {"bs", required_argument, nullptr, 'b'},      {"threads", required_argument, nullptr, 't'},
                                    {"seconds", required_argument, nullptr, 's'}, {nullptr, 0, nullptr, 0}};
  for (int c; (c = getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    switch (c) {
      case 'f': o.path = optarg; break;
      case 'w': o.span_bytes = parse_size(optarg); break;
      case 'b': o.block_bytes = static_cast<uint32_t>(parse_size(optarg)); break;
      case 't': o.threads = static_cast<unsigned>(parse_size(optarg)); break;
      case 's': o.seconds = parse_seconds(optarg); break;
      default: o.path.clear(); optind = argc; c = -1; break;
    }
    if (c == -1) break;
  }
  if (o.path.empty() || optind != argc || o.block_bytes == 0 || o.threads == 0 || o.threads > 1024 ||
      o.span_bytes < o.block_bytes) {
    std::fputs("usage: sync_loop --path FILE [--span 64M] [--bs 4K] [--threads 1] [--seconds 2]\n", stderr);
    return 2;
  }
  const int fd = open(o.path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) die("%s: %s", o.path.c_str(), std::strerror(errno));
  prepare(fd, o);

  std::vector<Worker> workers(o.threads);
  std::vector<std::thread> threads;
  std::atomic<bool> stop{false};
  const uint64_t cpu_start = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
  const uint64_t start = now_ns();
  for (unsigned i = 0; i < o.threads; ++i)
    threads.emplace_back([fd, &o, i, &stop, &workers] { loop(fd, o, i, stop, workers[i]); });
  std::this_thread::sleep_for(std::chrono::duration<double>(o.seconds));
  stop = true;
  for (std::thread& t : threads) t.join();
  const double elapsed = static_cast<double>(now_ns() - start) / 1e9;
  const double cpu_us = static_cast<double>(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_start) / 1e3;

  Worker sum;
  for (const Worker& w : workers) {
    sum.latency.merge(w.latency);
    sum.writes += w.writes;
    sum.errors += w.errors;
  }
  const auto writes = static_cast<double>(sum.writes);
  std::printf(
      "{\"iops\": %.1f, \"mib_per_s\": %.2f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"errors\": %llu, \"requests\": %llu, "
      "\"seconds\": %.3f, \"threads\": %u, \"block_bytes\": %u, \"cpu_us_per_request\": %.2f}\n",
      writes / elapsed, writes * o.block_bytes / elapsed / (1 << 20), sum.latency.percentile_us(0.5),
      sum.latency.percentile_us(0.99), static_cast<unsigned long long>(sum.errors),
      static_cast<unsigned long long>(sum.writes), elapsed, o.threads, o.block_bytes,
      sum.writes == 0 ? 0 : cpu_us / writes);
  return sum.errors == 0 ? 0 : 1;
}
