// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_driver.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <netdb.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <sstream>
#include <thread>
#include <utility>

#include "attach/netblk_ko/netblk_ko.h"
#include "base/limits.h"
#include "base/parse.h"
#include "io/fd.h"
#include "netblk_greet.h"
#include "netblk_names.h"
#include "netblk_state.h"

namespace netblk::tools {
namespace {

namespace fs = std::filesystem;
using std::chrono::steady_clock;

constexpr const char* kDisks = "/sys/block";
constexpr uint32_t kMaxNumber = 1023;
constexpr uint64_t kMiB = 1u << 20;
constexpr uint64_t kAskTimeoutMs = 5000;
constexpr const char* kParameters = "/sys/module/net_block_driver/parameters/";
// Without an answer for so many times --timeout, requests fail; as by the other ways.
constexpr uint64_t kDeadTimes = 3;
constexpr const char* kForEver = "4294967295";  // as dead_time_ms has it
constexpr auto kBusyPatience = std::chrono::seconds(5);
constexpr auto kBusyPause = std::chrono::milliseconds(20);

std::string name_of(uint32_t number) { return number == 0 ? "netblk" : fmt::format("netblk-{}", number); }
std::string node_of(uint32_t number) { return "/dev/" + name_of(number); }
std::string attribute(uint32_t number, const char* name) {
  return fmt::format("{}/{}/{}", kDisks, name_of(number), name);
}
bool has_attribute(uint32_t number, const char* name) { return ::access(attribute(number, name).c_str(), F_OK) == 0; }

Status write_attribute(uint32_t number, const char* name, const std::string& value) {
  const std::string path = attribute(number, name);
  const io::UniqueFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file.valid()) return make_error(errno, "cannot open {}: {}", path, errno_text(errno));
  if (::write(file.get(), value.data(), value.size()) != static_cast<ssize_t>(value.size()))
    return make_error(errno, "writing {} to {} failed: {} (the kernel log says why)", value, path, errno_text(errno));
  return Ok{};
}

// The driver connects to IPv4 addresses only.
Result<std::string> ipv4_of(const std::string& host) {
  addrinfo wanted{};
  wanted.ai_family = AF_INET;
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int status = ::getaddrinfo(host.c_str(), nullptr, &wanted, &found);
  if (status != 0)
    return make_error(EHOSTUNREACH, "{} has no IPv4 address, which the driver needs: {}", host, ::gai_strerror(status));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  std::array<char, INET_ADDRSTRLEN> text{};
  ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(found->ai_addr)->sin_addr, text.data(), text.size());
  return std::string(text.data());
}

Status set_read_only(uint32_t number, bool read_only) {
  const std::string node = node_of(number);
  const io::UniqueFd file(::open(node.c_str(), O_RDONLY | O_CLOEXEC));
  const int value = read_only ? 1 : 0;
  if (!file.valid() || ::ioctl(file.get(), BLKROSET, &value) != 0)
    return make_error(errno, "cannot make {} {}: {}", node, read_only ? "read-only" : "writable", errno_text(errno));
  return Ok{};
}

// Lines of a word and a number.
std::map<std::string, uint64_t> words_of(const std::string& text) {
  std::map<std::string, uint64_t> words;
  std::istringstream lines(text);
  std::string word;
  uint64_t value = 0;
  while (lines >> word >> value) words[word] = value;
  return words;
}

client::Latency read_latency(uint32_t number, const std::string& kind) {
  auto sums = words_of(read_text(attribute(number, ("statistics/" + kind + "_split_ns").c_str())));
  return {.requests = parse_unsigned(read_text(attribute(number, ("statistics/" + kind + "_requests").c_str())), 0, UINT64_MAX)
                          .value_or(0),
          .queue_ns = sums["queue"],
          .trip_ns = sums["round_trip"],
          .told = sums["told"],
          .told_trip_ns = sums["told_round_trip"],
          .server_ns = sums["server"],
          .store_ns = sums["store"]};
}

DriverState read_disk(uint32_t number) {
  DriverState disk;
  disk.number = number;
  disk.node = node_of(number);
  const auto text = [&](const char* name) { return read_text(attribute(number, name)); };
  const auto value = [&](const char* name) { return parse_unsigned(text(name), 0, UINT64_MAX).value_or(0); };
  disk.state = text("state");
  disk.protocol = text("protocol");
  const std::string access = text("access");
  disk.access = access == "read_only" ? "read-only" : access == "takeover" ? "exclusive" : access;
  uint64_t port = value("server_port");
  const ServerUri uri{.host = text("server_ip"), .port = static_cast<uint16_t>(port), .export_name = text("export")};
  disk.server = uri.text();
  disk.size_bytes = value("size") * limits::kSectorBytes;
  disk.read_only = text("ro") == "1";
  // "no", or "yes: REASON"
  const std::string lost = text("lost");
  disk.lost = lost.starts_with("yes");
  if (disk.lost && lost.size() > 5) disk.lost_why = lost.substr(5);
  // "UUID COUNTER"
  const std::string generation = text("generation");
  disk.generation = parse_unsigned(generation.substr(generation.find(' ') + 1), 0, UINT64_MAX).value_or(0);
  disk.last_error = text("reason");
  disk.reconnects = value("statistics/reconnects");
  disk.connections = static_cast<unsigned>(std::max(value("connections"), uint64_t{1}));
  auto stats = words_of(text("stats"));
  disk.read_bytes = stats["read_bytes:"];
  disk.write_bytes = stats["write_bytes:"];
  disk.errors = stats["errors:"];
  if (has_attribute(number, "statistics/oldest_ms")) {
    disk.oldest_ms = value("statistics/oldest_ms");
    disk.latencies = {.reads = read_latency(number, "read"),
                      .writes = read_latency(number, "write"),
                      .flushes = read_latency(number, "flush")};
  }
  return disk;
}

// What the driver connects to, as its attributes will say it.
struct Target {
  std::string ip;
  std::string server;
  ServerUri uri;
};

Result<Target> target_of(const ServerUri& uri) {
  auto ip = ipv4_of(uri.host);
  if (!ip) return std::move(ip).error();
  ServerUri numbers = uri;
  numbers.host = ip.value();
  return Target{.ip = std::move(ip).value(), .server = numbers.text(), .uri = numbers};
}

const char* access_of(const DriverOptions& options) {
  return options.read_only ? "read_only" : options.takeover ? "takeover" : options.shared ? "shared" : "exclusive";
}

// The next who attaches the disk asked for no --timeout of ours.
void forget_deadlines(uint32_t number) {
  for (const char* name : {"io_timeout_ms", "connect_timeout_ms", "dead_time_ms"})
    (void)write_attribute(number, name, read_text(std::string(kParameters) + name));
}

Status try_to_connect(uint32_t number, const Target& target, const DriverOptions& options) {
  Status done = Ok{};
  if (options.timeout_ms) {
    done = write_attribute(number, "io_timeout_ms", std::to_string(*options.timeout_ms));
    if (done) done = write_attribute(number, "connect_timeout_ms", std::to_string(*options.timeout_ms));
    if (done) done = write_attribute(number, "dead_time_ms", std::to_string(kDeadTimes * *options.timeout_ms));
  }
  if (options.for_ever) done = write_attribute(number, "dead_time_ms", kForEver);
  if (done) done = write_attribute(number, "server_ip", target.ip);
  if (done) done = write_attribute(number, "server_port", std::to_string(target.uri.port));
  if (has_attribute(number, "export")) {
    if (done) done = write_attribute(number, "export", target.uri.export_name);
    if (done) done = write_attribute(number, "access", access_of(options));
    if (done) done = write_attribute(number, "client_id", id_text(client_id_of(node_of(number))));
  } else if (!target.uri.export_name.empty() || options.shared || options.takeover) {
    return make_error(EOPNOTSUPP, "the driver that is loaded speaks netblk/1 only, which has neither names of exports "
                                  "nor owners");
  }
  // Before the connection: no moment in which a read-only disk can be written.
  if (done && (read_text(attribute(number, "ro")) == "1") != options.read_only)
    done = set_read_only(number, options.read_only);
  if (done) done = write_attribute(number, "connect", "1");
  return done;
}

// Tells the disk where to connect, and connects it.
Status connect_disk(uint32_t number, const Target& target, const DriverOptions& options) {
  Status done = try_to_connect(number, target, options);
  if (!done) {
    if (options.timeout_ms || options.for_ever) forget_deadlines(number);
    return done;
  }
  // The first open looks for partitions; where no udev runs nobody else would.
  const io::UniqueFd opened(::open(node_of(number).c_str(), O_RDONLY | O_CLOEXEC));
  return Ok{};
}

// tells_size: the disk will have the size that the server tells.
bool fits(const DriverState& disk, const DriverOptions& options, bool tells_size) {
  if (disk.attached() || !uses_of(disk.node).empty() || is_in_use(disk.node)) return false;
  if (options.connections && *options.connections != disk.connections) return false;
  return tells_size || !options.size_bytes || *options.size_bytes == disk.size_bytes;
}

// What is attached already is the answer, unless something else was asked for.
Result<std::string> attached_already(const DriverState& disk, const DriverOptions& options) {
  if (options.number && *options.number != disk.number)
    return make_error(EBUSY, "{} is attached already, as {}: detach that first", disk.server, disk.node);
  if (options.read_only != disk.read_only)
    return make_error(EBUSY, "{} is attached already, {}: detach it first", disk.node,
                      disk.read_only ? "read-only" : "for writing");
  if (options.size_bytes && *options.size_bytes != disk.size_bytes)
    return make_error(EINVAL, "{} is attached already and has {} bytes, not {}", disk.node, disk.size_bytes,
                      *options.size_bytes);
  if (options.connections && *options.connections != disk.connections)
    return make_error(EBUSY, "{} is attached already, with {} connections at most, not {}: detach it first", disk.node,
                      disk.connections, *options.connections);
  const char* other = nullptr;
  if (options.timeout_ms && read_text(attribute(disk.number, "io_timeout_ms")) != std::to_string(*options.timeout_ms))
    other = "--timeout";
  if (options.for_ever && read_text(attribute(disk.number, "dead_time_ms")) != kForEver) other = "--timeout";
  // Who has the export already needs no --takeover.
  if (options.shared && disk.access != "shared") other = "--shared";
  if (options.takeover && disk.access == "shared") other = "--takeover";
  if (other != nullptr)
    return make_error(EBUSY, "{} is attached already, with another {}: leave it out, or detach it first", disk.node, other);
  return disk.node;
}

Result<uint32_t> make_disk(attach::NetblkKo& driver, const DriverOptions& options, bool tells_size) {
  std::string words;
  if (options.number) words += fmt::format("number={} ", *options.number);
  if (!options.size_bytes)
    return make_error(EINVAL, "one more disk needs --size: the server speaks netblk/1, which does not tell it");
  if (*options.size_bytes % kMiB != 0 && !tells_size)
    return make_error(EINVAL, "--size {}: the driver's disks of netblk/1 are whole MiB", *options.size_bytes);
  if (options.connections) words += fmt::format("connections={} ", *options.connections);
  words += fmt::format("size_mb={}", std::max(*options.size_bytes / kMiB, uint64_t{1}));
  return driver.add(words);
}

}  // namespace

bool driver_is_loaded() { return ::access("/sys/bus/netblk/add", F_OK) == 0; }

std::optional<uint32_t> driver_number(const std::string& node) {
  const std::string first = node_of(0);
  if (node == first) return 0;
  if (!node.starts_with(first + "-")) return std::nullopt;
  const auto number = parse_unsigned(node.substr(first.size() + 1), 1, kMaxNumber);
  if (!number || node_of(static_cast<uint32_t>(*number)) != node) return std::nullopt;
  return static_cast<uint32_t>(*number);
}

std::vector<DriverState> driver_disks() {
  std::vector<uint32_t> numbers;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(kDisks, error)) {
    const auto number = driver_number("/dev/" + entry.path().filename().string());
    if (number && has_attribute(*number, "connect")) numbers.push_back(*number);
  }
  std::sort(numbers.begin(), numbers.end());
  std::vector<DriverState> disks;
  for (const uint32_t number : numbers) disks.push_back(read_disk(number));
  return disks;
}

Result<std::string> driver_attach(const ServerUri& uri, const DriverOptions& options) {
  auto target = target_of(uri);
  if (!target) return std::move(target).error();
  auto attaching = lock_attachments();
  if (!attaching) return std::move(attaching).error();
  const std::vector<DriverState> disks = driver_disks();
  for (const DriverState& disk : disks)
    if (disk.attached() && disk.server == target.value().server) return attached_already(disk, options);

  // A netblk/2 server says what is wrong in its own words, and which size the disk has.
  auto info = ask_info(uri, options.timeout_ms.value_or(kAskTimeoutMs));
  if (!info) return std::move(info).error();
  const bool tells_size = info.value().welcome.has_value();
  if (!tells_size && options.connections.value_or(1) > 1)
    return make_error(EINVAL, "{} speaks netblk/1, which has one connection: leave --connections out", uri.text());
  if (tells_size && options.size_bytes && *options.size_bytes != info.value().welcome->size_bytes)
    return make_error(EINVAL, "{} has {} bytes, not {}", uri.text(), info.value().welcome->size_bytes,
                      *options.size_bytes);

  std::optional<uint32_t> number;
  for (const DriverState& disk : disks) {
    if (options.number && *options.number != disk.number) continue;
    if (fits(disk, options, tells_size && has_attribute(disk.number, "export"))) number = disk.number;
    if (number) break;
    if (options.number && options.connections && !disk.attached() && *options.connections != disk.connections)
      return make_error(EBUSY, "{} was made for {} connections, not {}: leave --device out, for one that is made for them",
                        disk.node, disk.connections, *options.connections);
    if (options.number)
      return make_error(EBUSY, "{} is {}, to {}: detach it first, or leave --device out", disk.node,
                        disk.attached() ? disk.state : "in use, or of another size", disk.server);
  }
  if (number) {
    Status connected = connect_disk(*number, target.value(), options);
    if (!connected) return std::move(connected).error();
    return node_of(*number);
  }

  auto driver = attach::NetblkKo::open();
  if (!driver) return std::move(driver).error();
  DriverOptions sized = options;
  if (tells_size) sized.size_bytes = info.value().welcome->size_bytes;
  auto made = make_disk(driver.value(), sized, tells_size);
  if (!made) return std::move(made).error();
  Status connected = connect_disk(made.value(), target.value(), options);
  if (!connected) {
    (void)driver.value().remove(made.value());
    return std::move(connected).error();
  }
  return node_of(made.value());
}

Result<bool> driver_detach(uint32_t number, bool force) {
  const std::string node = node_of(number);
  if (!has_attribute(number, "connect")) return false;
  const DriverState disk = read_disk(number);
  Status written = Ok{};
  if (!force && disk.state != "disconnected") {
    Status unused = check_unused(node);
    if (!unused) return std::move(unused).error();
    if (disk.attached()) {
      written = write_back(node);
      unused = check_still_unused(node, written);
      if (!unused) return std::move(unused).error();
    }
  }
  bool detached = disk.state != "disconnected";
  if (detached) {
    Status done = write_attribute(number, "disconnect", "1");
    if (!done) return std::move(done).error();
    forget_partitions(node);
  }
  forget_deadlines(number);  // also of one that was disconnected by sysfs
  forget_names_of(node);
  // The first is the driver's own and stays. One that is still open goes when the module does, or at the next detach.
  if (number != 0) {
    auto driver = attach::NetblkKo::open();
    if (!driver) return std::move(driver).error();
    Status removed = driver.value().remove(number);
    // udev looks at a disk whenever somebody who could write has closed it.
    for (auto until = steady_clock::now() + kBusyPatience;
         !removed && removed.error().code == EBUSY && !force && steady_clock::now() < until;
         removed = driver.value().remove(number))
      std::this_thread::sleep_for(kBusyPause);
    if (!removed && !(force && removed.error().code == EBUSY)) return std::move(removed).error();
    detached = true;
  }
  if (!written) return std::move(written).error();
  return detached;
}

Status driver_reset(uint32_t number) {
  if (!has_attribute(number, "connect")) return make_error(ENODEV, "{} is not attached", node_of(number));
  if (!read_disk(number).lost) return make_error(EINVAL, "{} has lost nothing", node_of(number));
  return write_attribute(number, "reset_lost", "1");
}

}  // namespace netblk::tools
