// SPDX-License-Identifier: GPL-2.0-only
// A netblk/1 load generator that does less per request than any server can: N connections on C threads, D requests in
// flight on each, one clock reading per received batch. Prints one line of JSON.
#include <getopt.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <thread>

#include "load.h"
#include "server_process.h"

namespace {

using namespace bench;

constexpr uint64_t kDrainNs = 10'000'000'000;
// For a first reply within the window.
constexpr uint64_t kSilenceNs = 60'000'000'000;
constexpr double kLookSeconds = 0.1;

enum class Phase : int { kWarmup, kMeasure, kDrain };

std::atomic<Phase> phase{Phase::kWarmup};

struct alignas(64) Worker {
  std::atomic<uint64_t> answered{0};  // read by the main thread at the window's ends
  std::atomic<bool> measured{false};  // something of it was within the window
  std::atomic<bool> over{false};
  Histogram latency;                  // of replies received inside the window
  std::deque<Connection> connections;
  std::thread thread;
};

Histogram* window(Worker& worker, Phase now) { return now == Phase::kMeasure ? &worker.latency : nullptr; }

void publish(Worker& worker, uint64_t answered, Phase now) {
  if (answered == worker.answered.load(std::memory_order_relaxed)) return;
  worker.answered.store(answered, std::memory_order_relaxed);
  if (now == Phase::kMeasure) worker.measured.store(true, std::memory_order_release);
}

// One connection: a blocking recv is the cheapest wait there is.
void drive_one(Worker& worker) {
  Connection& c = worker.connections.front();
  const timeval second{1, 0};
  setsockopt(c.fd(), SOL_SOCKET, SO_RCVTIMEO, &second, sizeof second);
  c.issue(now_ns());
  uint64_t give_up = 0;
  while (c.open()) {
    const Phase now = phase.load(std::memory_order_relaxed);
    if (now == Phase::kDrain) {
      if (c.outstanding() == 0) break;
      if (give_up == 0) give_up = now_ns() + kDrainNs;
      if (now_ns() > give_up) break;
    }
    if (!c.flush()) break;
    if (c.unsent()) {
      pollfd p{c.fd(), POLLIN | POLLOUT, 0};
      poll(&p, 1, 1000);
      if ((p.revents & ~POLLOUT) == 0) continue;
    }
    if (!c.receive(c.unsent() ? MSG_DONTWAIT : 0, now != Phase::kDrain, window(worker, now))) break;
    publish(worker, c.totals().answered, now);
  }
  publish(worker, c.totals().answered, Phase::kDrain);
}

void drive_many(Worker& worker) {
  const int poller = epoll_create1(EPOLL_CLOEXEC);
  if (poller < 0) die("epoll_create1: %s", std::strerror(errno));
  std::vector<char> waits_to_send(worker.connections.size(), 0);
  const auto arm = [&](size_t i, int operation) {
    epoll_event event{};
    event.events = EPOLLIN | (waits_to_send[i] ? static_cast<uint32_t>(EPOLLOUT) : 0);
    event.data.u64 = i;
    if (epoll_ctl(poller, operation, worker.connections[i].fd(), &event) != 0) die("epoll_ctl: %s", std::strerror(errno));
  };
  size_t open = worker.connections.size();
  uint64_t answered = 0;
  for (size_t i = 0; i < worker.connections.size(); ++i) arm(i, EPOLL_CTL_ADD);
  const auto pump = [&](size_t i) {
    Connection& c = worker.connections[i];
    if (!c.flush()) {
      --open;
    } else if (c.unsent() != (waits_to_send[i] != 0)) {
      waits_to_send[i] = c.unsent();
      arm(i, EPOLL_CTL_MOD);
    }
  };
  const uint64_t start = now_ns();
  for (size_t i = 0; i < worker.connections.size(); ++i) {
    worker.connections[i].issue(start);
    pump(i);
  }
  uint64_t give_up = 0;
  epoll_event events[256];
  while (open != 0) {
    const Phase now = phase.load(std::memory_order_relaxed);
    if (now == Phase::kDrain) {
      const uint64_t t = now_ns();
      if (give_up == 0) give_up = t + kDrainNs;
      uint64_t left = 0;
      for (const Connection& c : worker.connections) left += c.open() ? c.outstanding() : 0;
      if (left == 0 || t > give_up) break;
    }
    const int n = epoll_wait(poller, events, 256, 1000);
    for (int e = 0; e < n; ++e) {
      const size_t i = events[e].data.u64;
      Connection& c = worker.connections[i];
      const uint64_t before = c.totals().answered;
      if ((events[e].events & ~static_cast<uint32_t>(EPOLLOUT)) != 0 &&
          !c.receive(MSG_DONTWAIT, now != Phase::kDrain, window(worker, now))) {
        --open;
      } else {
        pump(i);
      }
      answered += c.totals().answered - before;
    }
    publish(worker, answered, now);
  }
  close(poller);
}

// One request and its whole reply, blocking.
bool round_trip(int fd, uint8_t command, uint64_t offset, uint8_t* block, uint32_t length) {
  uint8_t request[kRequestBytes];
  put_request(request, command, offset / kSectorBytes, length);
  const auto send_all = [fd](const uint8_t* from, size_t bytes) {
    for (size_t at = 0; at < bytes;) {
      const ssize_t n = send(fd, from + at, bytes - at, MSG_NOSIGNAL);
      if (n <= 0) return false;
      at += static_cast<size_t>(n);
    }
    return true;
  };
  if (!send_all(request, sizeof request) || (command == kWrite && !send_all(block, length))) return false;
  uint8_t status = kError;
  if (recv(fd, &status, 1, MSG_WAITALL) != 1 || status != kOk) return false;
  return command == kWrite || recv(fd, block, length, MSG_WAITALL) == static_cast<ssize_t>(length);
}

// Memory that was never written reads as one shared page of zeroes, and a sparse file has no blocks: neither is a store.
void fill(const LoadOptions& o) {
  const int fd = connect_to(o);
  std::vector<uint8_t> chunk(1 << 20);
  Random random(1);
  for (uint8_t& byte : chunk) byte = static_cast<uint8_t>(random.next() >> 56);
  for (uint64_t at = 0; at < o.span_bytes;) {
    const auto length = static_cast<uint32_t>(std::min<uint64_t>(chunk.size(), o.span_bytes - at));
    if (o.check) put_pattern(chunk.data(), at, length);
    if (!round_trip(fd, kWrite, at, chunk.data(), length)) die("the server refused to be filled at %llu", static_cast<unsigned long long>(at));
    at += length;
  }
  close(fd);
}

// Sends a burst of requests in one go, then takes their replies.
bool burst(int fd, const LoadOptions& o) {
  const size_t request_bytes = kRequestBytes + (o.idle_writes ? o.idle_block_bytes : 0);
  const size_t reply_bytes = 1 + (o.idle_writes ? size_t{0} : o.idle_block_bytes);
  std::vector<uint8_t> requests(request_bytes * o.idle_burst, 0x5a);
  for (unsigned i = 0; i < o.idle_burst; ++i)
    put_request(requests.data() + i * request_bytes, o.idle_writes ? kWrite : kRead, 0, o.idle_block_bytes);
  for (size_t at = 0; at < requests.size();) {
    const ssize_t n = send(fd, requests.data() + at, requests.size() - at, MSG_NOSIGNAL);
    if (n <= 0) return false;
    at += static_cast<size_t>(n);
  }
  std::vector<uint8_t> reply(reply_bytes);
  for (unsigned i = 0; i < o.idle_burst; ++i)
    if (recv(fd, reply.data(), reply_bytes, MSG_WAITALL) != static_cast<ssize_t>(reply_bytes) || reply[0] != kOk) return false;
  return true;
}

// An idle connection that never did anything costs little; these have done a burst of READs or WRITEs.
std::vector<int> open_idle(const LoadOptions& o) {
  std::vector<int> idle;
  for (unsigned i = 0; i < o.idle; ++i) {
    idle.push_back(connect_to(o));
    if (!burst(idle.back(), o)) die("idle connection %u was refused", i);
  }
  return idle;
}

[[noreturn]] void usage() {
  std::fputs(
      "usage: load --port P [--host 127.0.0.1] [--connections 1] [--threads 1] [--depth 1] [--bs 4K]\n"
      "            [--rw read|write|randread|randwrite|randrw] [--read-percent 50] [--span 64M] [--seconds 2]\n"
      "            [--warmup 0.2] [--fill] [--check] [--idle 0] [--idle-bs 4K] [--idle-rw read|write]\n"
      "            [--idle-burst 1] [--server-pid PID]\n"
      "  --fill    write the whole span first, with a pattern if --check is there too\n"
      "  --check   write the pattern only, and compare every READ with it\n"
      "  --idle N  N more connections that sent a burst of READs or WRITEs, and then nothing\n"
      "read and write are sequential, the rand* forms are not.\n",
      stderr);
  std::exit(2);
}

uint64_t bounded(const char* text, uint64_t least, uint64_t most) {
  const uint64_t value = parse_size(text);
  if (value < least || value > most)
    die("%s is not between %llu and %llu", text, static_cast<unsigned long long>(least), static_cast<unsigned long long>(most));
  return value;
}

LoadOptions parse(int argc, char** argv) {
  LoadOptions o;
  static const option kOptions[] = {
      {"host", required_argument, nullptr, 'h'},    {"port", required_argument, nullptr, 'p'},
      {"connections", required_argument, nullptr, 'n'}, {"threads", required_argument, nullptr, 't'},
      {"depth", required_argument, nullptr, 'd'},   {"bs", required_argument, nullptr, 'b'},
      {"rw", required_argument, nullptr, 'm'},      {"read-percent", required_argument, nullptr, 'r'},
      {"span", required_argument, nullptr, 'w'},    {"seconds", required_argument, nullptr, 's'},
      {"warmup", required_argument, nullptr, 'u'},  {"fill", no_argument, nullptr, 'f'},
      {"check", no_argument, nullptr, 'c'},         {"idle", required_argument, nullptr, 'i'},
      {"idle-bs", required_argument, nullptr, 'j'}, {"server-pid", required_argument, nullptr, 'P'},
      {"idle-rw", required_argument, nullptr, 'k'}, {"idle-burst", required_argument, nullptr, 'l'},
      {nullptr, 0, nullptr, 0}};
  std::string rw = "randread";
  for (int c; (c = getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    switch (c) {
      case 'h': o.host = optarg; break;
      case 'p': o.port = static_cast<uint16_t>(bounded(optarg, 1, 65535)); break;
      case 'n': o.connections = static_cast<unsigned>(bounded(optarg, 1, 65536)); break;
      case 't': o.threads = static_cast<unsigned>(bounded(optarg, 1, 1024)); break;
      case 'd': o.depth = static_cast<unsigned>(bounded(optarg, 1, 4096)); break;
      case 'b': o.block_bytes = static_cast<uint32_t>(bounded(optarg, kSectorBytes, kMaxLengthBytes)); break;
      case 'm': rw = optarg; break;
      case 'r': o.read_percent = static_cast<unsigned>(bounded(optarg, 0, 100)); break;
      case 'w': o.span_bytes = bounded(optarg, kSectorBytes, uint64_t{1} << 50); break;
      case 's': o.seconds = parse_seconds(optarg); break;
      case 'u': o.warmup_seconds = parse_seconds(optarg); break;
      case 'f': o.fill = true; break;
      case 'c': o.check = true; break;
      case 'i': o.idle = static_cast<unsigned>(bounded(optarg, 0, 65536)); break;
      case 'j': o.idle_block_bytes = static_cast<uint32_t>(bounded(optarg, kSectorBytes, kMaxLengthBytes)); break;
      case 'l': o.idle_burst = static_cast<unsigned>(bounded(optarg, 1, 1024)); break;
      case 'k':
        o.idle_writes = std::string(optarg) == "write";
        if (!o.idle_writes && std::string(optarg) != "read") usage();
        break;
      case 'P': o.server_pid = static_cast<pid_t>(bounded(optarg, 1, INT32_MAX)); break;
      default: usage();
    }
  }
  o.sequential = rw == "read" || rw == "write";
  if (rw == "read" || rw == "randread") o.mix = Mix::kReads;
  else if (rw == "write" || rw == "randwrite") o.mix = Mix::kWrites;
  else if (rw == "randrw") o.mix = Mix::kBoth;
  else usage();
  if (optind != argc || o.port == 0) usage();
  if (o.block_bytes % kSectorBytes != 0 || o.idle_block_bytes % kSectorBytes != 0 || o.span_bytes % kSectorBytes != 0)
    die("sizes are multiples of %u", kSectorBytes);
  if (o.span_bytes < o.block_bytes) die("the span is smaller than a block");
  o.threads = std::min(o.threads, o.connections);
  return o;
}

uint64_t answered(const std::deque<Worker>& workers) {
  uint64_t sum = 0;
  for (const Worker& w : workers) sum += w.answered.load(std::memory_order_relaxed);
  return sum;
}

void pause_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

}  // namespace

int main(int argc, char** argv) {
  const LoadOptions o = parse(argc, argv);
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  const ServerProcess server(o.server_pid);
  if (o.fill) fill(o);
  const uint64_t rss_start = server.rss_bytes();
  const std::vector<int> idle = open_idle(o);
  const uint64_t rss_idle = server.rss_bytes();

  std::deque<Worker> workers(o.threads);
  for (unsigned i = 0; i < o.connections; ++i)
    workers[i % o.threads].connections.emplace_back(o, connect_to(o), i + 1);
  for (Worker& w : workers)
    w.thread = std::thread([&w] {
      if (w.connections.size() == 1) drive_one(w);
      else drive_many(w);
      w.over = true;
    });
  pause_for(o.warmup_seconds);

  const uint64_t server_cpu_start = server.cpu_ns();
  const uint64_t client_cpu_start = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
  const uint64_t answered_start = answered(workers);
  const uint64_t start = now_ns();
  phase = Phase::kMeasure;
  // A window in which nothing was answered, on a machine that stood still, says nothing: it goes on until something is. One
  // without connections is over.
  const auto all_over = [&workers] {
    return std::all_of(workers.begin(), workers.end(), [](const Worker& w) { return w.over.load(); });
  };
  const auto any_measured = [&workers] {
    return std::any_of(workers.begin(), workers.end(), [](const Worker& w) { return w.measured.load(std::memory_order_acquire); });
  };
  const uint64_t end = start + static_cast<uint64_t>(o.seconds * 1e9);
  for (uint64_t now = start; now < end && !all_over(); now = now_ns())
    pause_for(std::min(kLookSeconds, static_cast<double>(end - now) / 1e9));
  while (!any_measured() && !all_over() && now_ns() < end + kSilenceNs) pause_for(0.001);
  phase = Phase::kDrain;
  const uint64_t answered_end = answered(workers);
  const double elapsed = static_cast<double>(now_ns() - start) / 1e9;
  const double server_us = static_cast<double>(server.cpu_ns() - server_cpu_start) / 1e3;
  const double client_us = static_cast<double>(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - client_cpu_start) / 1e3;
  const uint64_t rss_end = server.rss_bytes();
  for (Worker& w : workers) w.thread.join();

  Totals totals;
  Histogram latency;
  for (Worker& w : workers) {
    latency.merge(w.latency);
    for (Connection& c : w.connections) {
      c.finish();
      totals.sent += c.totals().sent;
      totals.answered += c.totals().answered;
      totals.errors += c.totals().errors;
      totals.miscompares += c.totals().miscompares;
      totals.checked += c.totals().checked;
    }
  }
  for (const int fd : idle) close(fd);

  const auto u = [](uint64_t value) { return static_cast<unsigned long long>(value); };
  const uint64_t requests = answered_end - answered_start;
  const auto count = static_cast<double>(std::max<uint64_t>(requests, 1));
  const uint64_t unanswered = totals.sent - totals.answered;
  const char* mix = o.mix == Mix::kReads ? "read" : o.mix == Mix::kWrites ? "write" : "mixed";
  std::printf(
      "{\"iops\": %.1f, \"mib_per_s\": %.2f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"max_us\": %.1f, \"errors\": %llu, "
      "\"miscompares\": %llu, \"checked\": %llu, \"sent\": %llu, \"answered\": %llu, \"unanswered\": %llu, "
      "\"requests\": %llu, \"seconds\": %.3f, \"mix\": \"%s\", \"connections\": %u, \"threads\": %u, \"depth\": %u, "
      "\"block_bytes\": %u, \"client_cpu_us_per_request\": %.3f",
      static_cast<double>(requests) / elapsed, static_cast<double>(requests) * o.block_bytes / elapsed / (1 << 20),
      latency.percentile_us(0.5), latency.percentile_us(0.99), latency.max_us(), u(totals.errors), u(totals.miscompares),
      u(totals.checked), u(totals.sent), u(totals.answered), u(unanswered), u(requests), elapsed, mix, o.connections,
      o.threads, o.depth, o.block_bytes, client_us / count);
  if (o.server_pid != 0) {
    const double growth = rss_idle > rss_start ? static_cast<double>(rss_idle - rss_start) : 0;
    std::printf(
        ", \"server_cpu_us_per_request\": %.3f, \"server_cores_used\": %.3f, \"rss_start_bytes\": %llu, "
        "\"rss_idle_bytes\": %llu, \"rss_end_bytes\": %llu, \"idle_connections\": %u, \"bytes_per_idle_connection\": %.0f",
        server_us / count, server_us / 1e6 / elapsed, u(rss_start), u(rss_idle), u(rss_end), o.idle,
        o.idle == 0 ? 0 : growth / o.idle);
  }
  std::puts("}");
  return totals.errors == 0 && unanswered == 0 && totals.answered != 0 ? 0 : 1;
}
