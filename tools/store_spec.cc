// SPDX-License-Identifier: GPL-2.0-only
#include "store_spec.h"

#include <signal.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string_view>
#include <thread>
#include <utility>

#include "base/limits.h"
#include "base/parse.h"
#include "block_await.h"
#include "store/file_store.h"
#include "store/filter/filter.h"
#include "store/memory_store.h"
#include "store/partition.h"
#include "volume_store.h"

namespace netblk::tools {
namespace {

using Options = std::map<std::string, std::string, std::less<>>;

coro::Task<void> read_once(io::Loop& loop, block::Device& device, uint64_t offset, std::span<std::byte> into, int& error) {
  const int result = co_await Asked(device, loop, block::Command::kRead, offset, into.size(), into.data());
  error = result;
}

// A % that begins no %XX stands for itself.
std::string path_of(std::string_view text) { return percent_decoded_loosely(text); }

// A path as PATH and FILE have it, from the root on.
std::string whole_path_text(std::string_view text) {
  std::error_code error;
  const std::string path = std::filesystem::absolute(path_of(text), error).string();
  return error ? std::string(text) : store_path_text(path);
}

bool is_relative(std::string_view text) { return !text.empty() && path_of(text).front() != '/'; }

Options parse_options(std::string_view query) {
  Options options;
  while (!query.empty()) {
    const std::string_view part = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(part.size() + 1, query.size()));
    const size_t equals = part.find('=');
    options[std::string(part.substr(0, equals))] =
        equals == std::string_view::npos ? "1" : std::string(part.substr(equals + 1));
  }
  return options;
}

// Takes `key` out of the options, so that what is left at the end is unknown.
std::optional<std::string> take(Options& options, std::string_view key) {
  const auto found = options.find(key);
  if (found == options.end()) return std::nullopt;
  std::string value = std::move(found->second);
  options.erase(found);
  return value;
}

Result<uint64_t> take_number(Options& options, std::string_view key, uint64_t fallback, uint64_t minimum,
                             uint64_t maximum) {
  const auto text = take(options, key);
  if (!text) return fallback;
  const auto number = parse_unsigned(*text, minimum, maximum);
  if (!number) return make_error(EINVAL, "bad {}={}: use a number from {} to {}", key, *text, minimum, maximum);
  return *number;
}

Result<bool> take_flag(Options& options, std::string_view key) {
  const auto text = take(options, key);
  if (!text || *text == "0" || *text == "false") return false;
  if (*text == "1" || *text == "true") return true;
  return make_error(EINVAL, "bad {}={}: use {}=1 or {}=0", key, *text, key, key);
}

// On a loop and a thread of its own: the caller's may be turning.
Status read_at_once(io::Backend& backend, block::Device& device, uint64_t offset, std::span<std::byte> into) {
  const io::SteadyClock clock;
  auto loop = backend.make_loop(clock);
  if (!loop) return std::move(loop).error();
  int error = 0;
  std::thread([&] { loop.value()->run(read_once(*loop.value(), device, offset, into, error)); }).join();
  if (error != 0) return make_error(error, "cannot read its partition table: {}", errno_text(error));
  return Ok{};
}

Result<uint64_t> device_size(std::string_view text, const std::string& store) {
  const auto size = parse_size(text);
  if (!size || *size < limits::kSectorBytes || *size % limits::kSectorBytes != 0)
    return make_error(EINVAL, "bad size '{}' in '{}': use bytes or K, M, G, T, a multiple of 512", text, store);
  return *size;
}

enum class Kind : uint8_t { kFile, kMemory, kNull, kVolume };

// A STORE that was read: nothing was opened or looked at.
struct Spec {
  std::string text;
  Kind kind = Kind::kFile;
  uint64_t size_bytes = 0;  // of a file: what it is created or grown to
  std::string path;         // these are of files
  std::string overlay;      // empty: none
  bool direct = false;
  VolumeName volume;
  KeyFiles keys;  // these are of volumes
  uint64_t memory_bytes = store::volume::kDefaultMemoryBytes;  // for the index
  // What stands in the query for any of them.
  std::optional<uint64_t> offset_bytes;
  uint64_t part_bytes = 0;  // of the part that offset_bytes begins; 0: the rest
  uint64_t partition = 0;   // 0: none
  store::DelayOptions delay;
  std::optional<store::FaultOptions> fault;
  store::LimitOptions limit;
  std::string trace;
  bool read_only = false;
};

Result<store::FaultOptions> fault_of(const std::string& commands) {
  store::FaultOptions fault;
  std::string_view left = commands;
  while (!left.empty()) {
    const std::string_view word = left.substr(0, left.find('+'));
    left.remove_prefix(std::min(word.size() + 1, left.size()));
    if (word == "read") fault.reads = true;
    else if (word == "write") fault.writes = true;
    else if (word == "flush") fault.flushes = true;
    else if (word == "trim") fault.trims = true;
    else if (word == "status") fault.statuses = true;
    else return make_error(EINVAL, "bad fault={}: use read, write, flush, trim, status, joined by +", commands);
  }
  return fault;
}

Result<uint64_t> take_size(Options& options, std::string_view key, uint64_t fallback) {
  const auto text = take(options, key);
  if (!text) return fallback;
  const auto size = parse_size(*text);
  if (!size || *size == 0) return make_error(EINVAL, "bad {}={}: use bytes, or K, M, G, T", key, *text);
  return *size;
}

Status take_part(Options& options, Spec& spec) {
  const auto partition = take_number(options, "partition", 0, 1, 1024);
  if (!partition) return partition.error();
  spec.partition = partition.value();
  const auto offset = take(options, "offset");
  if (!offset) return Ok{};
  if (spec.partition != 0) return make_error(EINVAL, "'{}' has offset= and partition=: one of them says where", spec.text);
  spec.offset_bytes = parse_size(*offset);
  if (!spec.offset_bytes || *spec.offset_bytes % limits::kSectorBytes != 0)
    return make_error(EINVAL, "bad offset={}: use bytes or K, M, G, T, a multiple of 512", *offset);
  if (const auto size = take(options, "size")) {
    auto bytes = device_size(*size, spec.text);
    if (!bytes) return std::move(bytes).error();
    spec.part_bytes = bytes.value();
  }
  return Ok{};
}

Status take_delays(Options& options, store::DelayOptions& delay) {
  constexpr uint64_t kMost = 600'000;
  const auto all = take_number(options, "delay-ms", 0, 0, kMost);
  if (!all) return all.error();
  for (const auto& [key, field] : {std::pair("delay-read-ms", &delay.read_ms), std::pair("delay-write-ms", &delay.write_ms),
                                   std::pair("delay-flush-ms", &delay.flush_ms), std::pair("delay-trim-ms", &delay.trim_ms)}) {
    const auto one = take_number(options, key, all.value(), 0, kMost);
    if (!one) return one.error();
    *field = one.value();
  }
  return Ok{};
}

Status take_fault(Options& options, std::optional<store::FaultOptions>& fault) {
  const bool details =
      options.contains("fault-one-in") || options.contains("fault-seed") || options.contains("fault-count");
  const auto commands = take(options, "fault");
  if (!commands && details)
    return make_error(EINVAL, "fault-one-in, fault-seed and fault-count go with fault=read+write+flush+trim+status");
  if (!commands) return Ok{};
  auto wanted = fault_of(*commands);
  if (!wanted) return std::move(wanted).error();
  const auto one_in = take_number(options, "fault-one-in", 1, 1, UINT32_MAX);
  if (!one_in) return one_in.error();
  const auto seed = take_number(options, "fault-seed", 1, 0, UINT64_MAX);
  if (!seed) return seed.error();
  const auto count = take_number(options, "fault-count", 0, 1, UINT64_MAX);
  if (!count) return count.error();
  fault = wanted.value();
  fault->one_in = static_cast<uint32_t>(one_in.value());
  fault->seed = seed.value();
  fault->count = count.value();
  return Ok{};
}

Status take_limit(Options& options, store::LimitOptions& limit) {
  const auto rate = take_size(options, "rate", 0);
  if (!rate) return rate.error();
  const auto burst = take_size(options, "burst", 0);
  if (!burst) return burst.error();
  const auto iops = take_number(options, "iops", 0, 1, 1'000'000'000);
  if (!iops) return iops.error();
  const auto iops_burst = take_number(options, "iops-burst", 0, 1, 1'000'000'000);
  if (!iops_burst) return iops_burst.error();
  limit = {rate.value(), iops.value(), burst.value(), iops_burst.value()};
  if (limit.burst_bytes != 0 && limit.bytes_per_second == 0) return make_error(EINVAL, "burst= goes with rate=");
  if (limit.burst_requests != 0 && limit.requests_per_second == 0) return make_error(EINVAL, "iops-burst= goes with iops=");
  return Ok{};
}

Status take_filters(Options& options, Spec& spec) {
  if (auto taken = take_part(options, spec); !taken) return taken;
  if (auto taken = take_delays(options, spec.delay); !taken) return taken;
  if (auto taken = take_fault(options, spec.fault); !taken) return taken;
  if (auto taken = take_limit(options, spec.limit); !taken) return taken;
  spec.trace = path_of(take(options, "trace").value_or(""));
  auto read_only = take_flag(options, "readonly");
  if (!read_only) return std::move(read_only).error();
  spec.read_only = read_only.value();
  return Ok{};
}

Status take_file(Options& options, std::string_view body, Spec& spec) {
  if (body.empty()) return make_error(EINVAL, "bad store '{}': the path is missing", spec.text);
  spec.path = path_of(body);
  if (const auto size_text = take(options, "size")) {
    auto size = device_size(*size_text, spec.text);
    if (!size) return std::move(size).error();
    spec.size_bytes = size.value();
  }
  auto direct = take_flag(options, "direct");
  if (!direct) return std::move(direct).error();
  spec.direct = direct.value();
  spec.overlay = path_of(take(options, "overlay").value_or(""));
  if (!spec.overlay.empty() && (spec.size_bytes != 0 || spec.direct))
    return make_error(EINVAL, "'{}': an image under an overlay stays as it is: without size= (but with offset=) and direct=",
                      spec.text);
  return Ok{};
}

Status take_volume(Options& options, std::string_view body, Spec& spec) {
  auto name = parse_volume_name(body);
  if (!name) return std::move(name).error();
  spec.volume = std::move(name).value();
  spec.keys.key_file = path_of(take(options, "key-file").value_or(""));
  spec.keys.passphrase_file = path_of(take(options, "passphrase-file").value_or(""));
  if (!spec.keys.key_file.empty() && !spec.keys.passphrase_file.empty())
    return make_error(EINVAL, "'{}': key-file= or passphrase-file=, not both", spec.text);
  const auto memory = take(options, "cache");
  if (!memory) return Ok{};
  const auto bytes = parse_size(*memory);
  if (!bytes || *bytes < store::volume::kLeastMemoryBytes || *bytes > store::volume::kMostMemoryBytes)
    return make_error(EINVAL, "bad cache={} in '{}': the memory for the volume's index is {} to {}, in bytes or K, M, G", *memory,
                      spec.text, size_text(store::volume::kLeastMemoryBytes), size_text(store::volume::kMostMemoryBytes));
  spec.memory_bytes = *bytes;
  return Ok{};
}

Result<Spec> parse(const std::string& text) {
  const std::string_view whole = text;
  const size_t colon = whole.find(':');
  const std::string_view scheme = whole.substr(0, colon);
  if (colon == std::string_view::npos)
    return make_error(EINVAL, "bad store '{}': use file:PATH?size=10G, vol:PATH, mem:SIZE or null:SIZE", text);
  const size_t query = whole.find('?');
  const std::string_view body = whole.substr(colon + 1, query == std::string_view::npos ? query : query - colon - 1);
  Options options = parse_options(query == std::string_view::npos ? "" : whole.substr(query + 1));
  Spec spec;
  spec.text = text;
  if (auto taken = take_filters(options, spec); !taken) return std::move(taken).error();
  if (scheme == "file") {
    if (auto taken = take_file(options, body, spec); !taken) return std::move(taken).error();
  } else if (scheme == "mem" || scheme == "null") {
    spec.kind = scheme == "mem" ? Kind::kMemory : Kind::kNull;
    auto size = device_size(body, text);
    if (!size) return std::move(size).error();
    spec.size_bytes = size.value();
  } else if (scheme == "vol") {
    spec.kind = Kind::kVolume;
    if (auto taken = take_volume(options, body, spec); !taken) return std::move(taken).error();
  } else {
    return make_error(EINVAL, "unknown store '{}:' in '{}': use file:PATH?size=10G, vol:PATH, mem:SIZE or null:SIZE", scheme, text);
  }
  if (!options.empty()) return make_error(EINVAL, "unknown option '{}' in '{}'", options.begin()->first, text);
  return spec;
}

void say_wait(const std::string& words) {
  std::printf("%s\n", words.c_str());
  std::fflush(stdout);
}

bool shall_stop() {
  sigset_t pending;
  return ::sigpending(&pending) == 0 && (::sigismember(&pending, SIGTERM) == 1 || ::sigismember(&pending, SIGINT) == 1);
}

Result<std::unique_ptr<block::Device>> open_file(io::Backend& backend, const Spec& spec, bool read_only,
                                                 const Surroundings& surroundings) {
  store::FileOptions file;
  file.path = spec.path;
  file.size_bytes = spec.size_bytes;
  file.direct = spec.direct;
  file.read_only = read_only;
  file.keep_identity = true;
  file.state_folder = surroundings.state_folder;
  file.lock_wait_ms = surroundings.lock_wait_ms;
  file.on_wait = say_wait;
  file.stop_waiting = shall_stop;
  return spec.overlay.empty() ? store::open_file_store(backend, file)
                              : store::open_overlay_store(backend, file, spec.overlay);
}

Result<std::unique_ptr<block::Device>> open_volume(io::Backend& backend, const Spec& spec, bool read_only,
                                                   const Surroundings& surroundings, const std::string& name) {
  const VolumeOpening opening{.read_only = read_only, .user = name,
                              .keys = spec.keys,
                              .memory_bytes = spec.memory_bytes,
                              .lock_wait_ms = surroundings.lock_wait_ms,
                              .on_wait = say_wait,
                              .stop_waiting = shall_stop};
  return surroundings.volumes->open(backend, spec.volume, opening);
}

Result<std::unique_ptr<block::Device>> part_of(std::unique_ptr<block::Device> device, const Spec& spec, io::Backend& backend) {
  store::Partition part{spec.offset_bytes.value_or(0), spec.part_bytes};
  const uint64_t whole = device->size_bytes();
  if (spec.partition != 0) {
    auto found = store::find_partition(
        [&](uint64_t offset, std::span<std::byte> into) { return read_at_once(backend, *device, offset, into); }, whole,
        spec.partition);
    if (!found) return make_error(found.error().code, "{}: {}", spec.text, found.error().message);
    part = found.value();
  } else if (!spec.offset_bytes) {
    return device;
  }
  if (part.offset_bytes >= whole || part.size_bytes > whole - part.offset_bytes)
    return make_error(ENOSPC, "{} has {}: the part from byte {} on is not inside it", spec.text, size_text(whole),
                      part.offset_bytes);
  return store::make_window_filter(std::move(device), part.offset_bytes, part.size_bytes);
}

// From the store up: the part, then what makes it slower or worse, then what is seen of it.
Result<std::unique_ptr<block::Device>> with_filters(std::unique_ptr<block::Device> device, const Spec& spec,
                                                    io::Backend& backend, const std::string& trace, const std::string& name) {
  auto part = part_of(std::move(device), spec, backend);
  if (!part) return part;
  device = std::move(part).value();
  if (spec.fault) device = store::make_fault_filter(std::move(device), *spec.fault);
  const store::DelayOptions& delay = spec.delay;
  if (delay.read_ms + delay.write_ms + delay.flush_ms + delay.trim_ms > 0)
    device = store::make_delay_filter(std::move(device), delay);
  if (spec.limit.bytes_per_second + spec.limit.requests_per_second > 0)
    device = store::make_limit_filter(std::move(device), spec.limit);
  if (spec.read_only) device = store::make_readonly_filter(std::move(device));
  for (const std::string& file : {spec.trace, trace}) {
    if (file.empty()) continue;
    auto traced = store::make_trace_filter(std::move(device), file, name);
    if (!traced) return traced;
    device = std::move(traced).value();
  }
  return device;
}

}  // namespace

std::string store_path_text(std::string_view path) {
  std::string text;
  for (const char c : path) {
    if (std::string_view("%?&,").find(c) != std::string_view::npos) {
      text += fmt::format("%{:02X}", static_cast<unsigned>(c));
    } else {
      text += c;
    }
  }
  return text;
}

std::string with_whole_paths(const std::string& text) {
  std::string_view left = text;
  const std::string_view place = left.substr(0, left.find('?'));
  left.remove_prefix(place.size());
  std::string whole(place);
  for (const std::string_view scheme : {"file:", "vol:"})
    if (place.starts_with(scheme) && is_relative(place.substr(scheme.size())))
      whole = std::string(scheme) + whole_path_text(place.substr(scheme.size()));
  while (!left.empty()) {
    whole += left.front();  // ? or &
    left.remove_prefix(1);
    const std::string_view option = left.substr(0, left.find('&'));
    left.remove_prefix(option.size());
    const std::string_view key = option.substr(0, option.find('='));
    const std::string_view value = option.substr(std::min(key.size() + 1, option.size()));
    // Words that are no paths.
    const bool path = key == "key-file" || key == "passphrase-file" || (key == "overlay" && value != store::kDiscardedOverlay) || (key == "trace" && value != store::kTraceToStdout);
    whole += path && is_relative(value) ? fmt::format("{}={}", key, whole_path_text(value)) : std::string(option);
  }
  return whole;
}

bool has_discarded_overlay(const std::string& text) {
  const auto spec = parse(text);
  return spec && spec.value().overlay == store::kDiscardedOverlay;
}

Status check_store(const std::string& text) {
  const auto spec = parse(text);
  if (!spec) return spec.error();
  return Ok{};
}

Result<std::unique_ptr<block::Device>> open_store(io::Backend& backend, const std::string& text, bool read_only,
                                                  const Surroundings& surroundings, const std::string& name) {
  auto parsed = parse(text);
  if (!parsed) return std::move(parsed).error();
  const Spec& spec = parsed.value();
  auto opened = [&]() -> Result<std::unique_ptr<block::Device>> {
    switch (spec.kind) {
      case Kind::kMemory: return store::make_memory_store(spec.size_bytes);
      case Kind::kNull: return store::make_null_store(spec.size_bytes);
      case Kind::kVolume: return open_volume(backend, spec, read_only, surroundings, name);
      default: return open_file(backend, spec, read_only, surroundings);
    }
  }();
  if (!opened) return opened;
  auto device = std::move(opened).value();
  if (read_only && spec.kind != Kind::kFile) device = store::make_readonly_filter(std::move(device));
  return with_filters(std::move(device), spec, backend, surroundings.trace, name);
}

}  // namespace netblk::tools
