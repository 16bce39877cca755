// SPDX-License-Identifier: GPL-2.0-only
#include "store_spec.h"

#include <signal.h>

#include <cerrno>
#include <cctype>
#include <cstdio>
#include <map>
#include <optional>
#include <string_view>

#include "base/limits.h"
#include "base/parse.h"
#include "store/file_store.h"
#include "store/filter/filter.h"
#include "store/memory_store.h"

namespace netblk::tools {
namespace {

using Options = std::map<std::string, std::string, std::less<>>;

std::string percent_decoded(std::string_view text) {
  std::string decoded;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool escape = text[i] == '%' && i + 2 < text.size() &&
                        std::isxdigit(static_cast<unsigned char>(text[i + 1])) != 0 &&
                        std::isxdigit(static_cast<unsigned char>(text[i + 2])) != 0;
    if (escape) {
      decoded += static_cast<char>(std::stoi(std::string(text.substr(i + 1, 2)), nullptr, 16));
      i += 2;
    } else {
      decoded += text[i];
    }
  }
  return decoded;
}

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

Result<uint64_t> device_size(std::string_view text, const std::string& store) {
  const auto size = parse_size(text);
  if (!size || *size < limits::kSectorBytes || *size % limits::kSectorBytes != 0)
    return make_error(EINVAL, "bad size '{}' in '{}': use bytes or K, M, G, T, a multiple of 512", text, store);
  return *size;
}

Result<std::unique_ptr<block::Device>> with_filters(std::unique_ptr<block::Device> device, Options& options) {
  auto delay_ms = take_number(options, "delay-ms", 0, 0, 600'000);
  if (!delay_ms) return std::move(delay_ms).error();
  auto read_only = take_flag(options, "readonly");
  if (!read_only) return std::move(read_only).error();
  store::FaultOptions fault;
  const bool fault_details = options.contains("fault-one-in") || options.contains("fault-seed");
  auto one_in = take_number(options, "fault-one-in", 1, 1, UINT32_MAX);
  if (!one_in) return std::move(one_in).error();
  auto seed = take_number(options, "fault-seed", 1, 0, UINT64_MAX);
  if (!seed) return std::move(seed).error();
  fault.one_in = static_cast<uint32_t>(one_in.value());
  fault.seed = seed.value();
  if (const auto commands = take(options, "fault")) {
    std::string_view left = *commands;
    while (!left.empty()) {
      const std::string_view word = left.substr(0, left.find('+'));
      left.remove_prefix(std::min(word.size() + 1, left.size()));
      if (word == "read") fault.reads = true;
      else if (word == "write") fault.writes = true;
      else if (word == "flush") fault.flushes = true;
      else if (word == "trim") fault.trims = true;
      else return make_error(EINVAL, "bad fault={}: use read, write, flush, trim, joined by +", *commands);
    }
    device = store::make_fault_filter(std::move(device), fault);
  } else if (fault_details) {
    return make_error(EINVAL, "fault-one-in and fault-seed go with fault=read+write+flush+trim");
  }
  if (delay_ms.value() > 0) device = store::make_delay_filter(std::move(device), delay_ms.value());
  if (read_only.value()) device = store::make_readonly_filter(std::move(device));
  return device;
}

}  // namespace

Result<std::unique_ptr<block::Device>> open_store(io::Backend& backend, const std::string& text, bool read_only,
                                                  const std::string& state_folder, uint64_t lock_wait_ms) {
  const std::string_view whole = text;
  const size_t colon = whole.find(':');
  const std::string_view scheme = whole.substr(0, colon);
  if (colon == std::string_view::npos)
    return make_error(EINVAL, "bad store '{}': use file:PATH?size=10G, mem:SIZE or null:SIZE", text);
  const size_t query = whole.find('?');
  const std::string_view body =
      whole.substr(colon + 1, query == std::string_view::npos ? query : query - colon - 1);
  Options options = parse_options(query == std::string_view::npos ? "" : whole.substr(query + 1));

  std::unique_ptr<block::Device> device;
  if (scheme == "file") {
    if (body.empty()) return make_error(EINVAL, "bad store '{}': the path is missing", text);
    store::FileOptions file;
    file.path = percent_decoded(body);
    file.read_only = read_only;
    file.keep_identity = true;
    file.state_folder = state_folder;
    file.lock_wait_ms = lock_wait_ms;
    file.on_wait = [](const std::string& words) {
      std::printf("%s\n", words.c_str());
      std::fflush(stdout);
    };
    file.stop_waiting = [] {
      sigset_t pending;
      return ::sigpending(&pending) == 0 &&
             (::sigismember(&pending, SIGTERM) == 1 || ::sigismember(&pending, SIGINT) == 1);
    };
    if (const auto size_text = take(options, "size")) {
      auto size = device_size(*size_text, text);
      if (!size) return std::move(size).error();
      file.size_bytes = size.value();
    }
    auto direct = take_flag(options, "direct");
    if (!direct) return std::move(direct).error();
    file.direct = direct.value();
    // Unknown options are refused before a file is made.
    Options rest = options;
    for (const char* known : {"readonly", "delay-ms", "fault", "fault-one-in", "fault-seed"}) rest.erase(known);
    if (!rest.empty()) return make_error(EINVAL, "unknown option '{}' in '{}'", rest.begin()->first, text);
    auto opened = store::open_file_store(backend, file);
    if (!opened) return std::move(opened).error();
    device = std::move(opened).value();
  } else if (scheme == "mem" || scheme == "null") {
    auto size = device_size(body, text);
    if (!size) return std::move(size).error();
    if (scheme == "null") {
      device = store::make_null_store(size.value());
    } else {
      auto made = store::make_memory_store(size.value());
      if (!made) return std::move(made).error();
      device = std::move(made).value();
    }
    if (read_only) device = store::make_readonly_filter(std::move(device));
  } else {
    return make_error(EINVAL, "unknown store '{}:' in '{}': use file:PATH?size=10G, mem:SIZE or null:SIZE", scheme, text);
  }
  auto filtered = with_filters(std::move(device), options);
  if (!filtered) return filtered;
  if (!options.empty()) return make_error(EINVAL, "unknown option '{}' in '{}'", options.begin()->first, text);
  return filtered;
}

}  // namespace netblk::tools
