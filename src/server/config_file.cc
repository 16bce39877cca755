// SPDX-License-Identifier: GPL-2.0-only
#include <cerrno>
#include <algorithm>
#include <fstream>
#include <sstream>

#include <toml++/toml.h>

#include "base/limits.h"
#include "server/config.h"

namespace netblk::server {
namespace {

// "FILE:LINE: message".
template <class... Args>
Error at(const std::string& path, const toml::source_region& where, fmt::format_string<Args...> format,
         Args&&... args) {
  return make_error(EINVAL, "{}:{}: {}", path, where.begin.line, fmt::format(format, std::forward<Args>(args)...));
}

// `value`: a string, or a list of strings.
Result<std::vector<std::string>> strings(const std::string& path, std::string_view key, const toml::node& value) {
  std::vector<std::string> found;
  if (const auto* one = value.as_string()) {
    found.push_back(one->get());
  } else if (const auto* list = value.as_array()) {
    for (const toml::node& element : *list) {
      const auto* text = element.as_string();
      if (text == nullptr) return at(path, element.source(), "{} takes strings", key);
      found.push_back(text->get());
    }
  } else {
    return at(path, value.source(), "{} takes a string or a list of strings", key);
  }
  return found;
}

Result<ExportConfig> parse_export_table(const std::string& path, std::string_view name, const toml::table& table) {
  ExportConfig config;
  bool has_store = false;
  for (const auto& [key, value] : table) {
    if (key == "store") {
      const auto* text = value.as_string();
      if (text == nullptr) return at(path, value.source(), "export '{}': store takes a string", name);
      // The store may carry export options of its own, as on the command line.
      auto result = parse_export("=" + text->get());
      if (!result) return at(path, value.source(), "export '{}': {}", name, result.error().message);
      const ExportConfig parsed = std::move(result).value();
      config.store = parsed.store;
      config.read_only |= parsed.read_only;
      if (config.description.empty()) config.description = parsed.description;
      if (config.max_connections == 0) config.max_connections = parsed.max_connections;
      config.allow.insert(config.allow.end(), parsed.allow.begin(), parsed.allow.end());
      has_store = true;
    } else if (key == "description") {
      const auto* text = value.as_string();
      if (text == nullptr) return at(path, value.source(), "export '{}': description takes a string", name);
      if (auto good = check_description(name, text->get()); !good)
        return at(path, value.source(), "{}", good.error().message);
      config.description = text->get();
    } else if (key == "ro") {
      const auto* flag = value.as_boolean();
      if (flag == nullptr) return at(path, value.source(), "export '{}': ro takes true or false", name);
      config.read_only |= flag->get();
    } else if (key == "allow") {
      size_t given = 0;
      auto list = strings(path, "allow", value);
      if (!list) return std::move(list).error();
      for (const std::string& entry : list.value()) {
        std::istringstream parts(entry);
        for (std::string part; std::getline(parts, part, ',');) {
          auto cidr = parse_cidr(part);
          if (!cidr) return at(path, value.source(), "export '{}': {}", name, cidr.error().message);
          config.allow.push_back(cidr.value());
          ++given;
        }
      }
      if (given == 0)
        return at(path, value.source(), "export '{}': allow is empty: name an address range, or leave allow out", name);
    } else if (key == "max-conns") {
      const auto* number = value.as_integer();
      if (number == nullptr || number->get() < 1 || number->get() > limits::kMaxConnections)
        return at(path, value.source(), "export '{}': max-conns takes a number from 1 to {}", name,
                  limits::kMaxConnections);
      config.max_connections = static_cast<uint32_t>(number->get());
    } else {
      return at(path, key.source(), "export '{}': unknown key '{}'; known are store, description, ro, allow, max-conns", name,
                key.str());
    }
  }
  config.name = name;
  if (!has_store)
    return at(path, table.source(), "export '{}' has no store: add store = \"file:PATH?size=10G\"", name);
  return config;
}

std::optional<uint32_t>* connection_limit(Settings& settings, std::string_view key) {
  if (key == "max-connections") return &settings.max_connections;
  if (key == "max-connections-per-address") return &settings.max_connections_per_address;
  return nullptr;
}

std::optional<uint64_t>* timeout(Settings& settings, std::string_view key) {
  if (key == "handshake-timeout") return &settings.handshake_timeout_ms;
  if (key == "request-timeout") return &settings.request_timeout_ms;
  if (key == "send-timeout") return &settings.send_timeout_ms;
  return nullptr;
}

}  // namespace

Result<Config> parse_config(std::string_view text, const std::string& path) {
  toml::table parsed;
  try {
    parsed = toml::parse(text, path);
  } catch (const toml::parse_error& error) {
    return make_error(EINVAL, "{}:{}: {}", path, error.source().begin.line, error.description());
  }
  Config config;
  // toml++ sorts its tables; netblk/1 means the first export as a person reads the file.
  std::vector<std::pair<toml::source_position, ExportConfig>> ordered;
  for (const auto& [key, value] : parsed) {
    if (key == "listen") {
      auto list = strings(path, "listen", value);
      if (!list) return std::move(list).error();
      for (const std::string& uri : list.value()) {
        auto listen = parse_listen(uri);
        if (!listen) return at(path, value.source(), "{}", listen.error().message);
        config.listens.push_back(std::move(listen).value());
      }
    } else if (key == "state-dir") {
      const auto* folder = value.as_string();
      if (folder == nullptr || folder->get().empty())
        return at(path, value.source(), "state-dir takes a string, the path of a folder");
      config.state_dir = folder->get();
    } else if (key == "export") {
      const auto* exports = value.as_table();
      if (exports == nullptr) return at(path, value.source(), "export is a table: write [export.NAME]");
      for (const auto& [name, table] : *exports) {
        if (!table.is_table()) return at(path, name.source(), "export '{}' is a table: write [export.{}]", name.str(), name.str());
        if (name.str().size() > limits::kMaxExportNameBytes)
          return at(path, name.source(), "an export name of {} bytes: the limit is {}", name.str().size(),
                    limits::kMaxExportNameBytes);
        auto made = parse_export_table(path, name.str(), *table.as_table());
        if (!made) return std::move(made).error();
        ordered.emplace_back(name.source().begin, std::move(made).value());
      }
    } else if (auto* const count = connection_limit(config.settings, key.str()); count != nullptr) {
      const auto* number = value.as_integer();
      if (number == nullptr || number->get() < 1 || number->get() > limits::kMaxConnections)
        return at(path, value.source(), "{} takes a number from 1 to {}", key.str(), limits::kMaxConnections);
      *count = static_cast<uint32_t>(number->get());
    } else if (auto* const timeout_ms = timeout(config.settings, key.str()); timeout_ms != nullptr) {
      const auto seconds = value.value<double>();
      if (!seconds || !(*seconds >= limits::kMinTimeoutSeconds) || *seconds > limits::kMaxTimeoutSeconds)
        return at(path, value.source(), "{} takes seconds, from {} to {}", key.str(), limits::kMinTimeoutSeconds,
                  limits::kMaxTimeoutSeconds);
      *timeout_ms = static_cast<uint64_t>(*seconds * 1000);
    } else if (key == "busy-poll") {
      const auto* number = value.as_integer();
      if (number == nullptr || number->get() < 0 || number->get() > limits::kMaxBusyPollUs)
        return at(path, value.source(), "busy-poll takes microseconds, from 0 to {}", limits::kMaxBusyPollUs);
      config.settings.busy_poll_us = static_cast<uint32_t>(number->get());
    } else {
      return at(path, key.source(),
                "unknown key '{}'; known are listen, state-dir, max-connections, max-connections-per-address, "
                "handshake-timeout, request-timeout, send-timeout, busy-poll and [export.NAME]",
                key.str());
    }
  }
  std::sort(ordered.begin(), ordered.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  for (auto& [position, made] : ordered) config.exports.push_back(std::move(made));
  if (config.exports.empty())
    return make_error(EINVAL, "{}: no export; add [export.NAME] with store = \"file:PATH?size=10G\"", path);
  if (config.exports.size() > limits::kMaxExports)
    return make_error(EINVAL, "{}: {} exports; the limit is {}", path, config.exports.size(), limits::kMaxExports);
  return config;
}

Result<Config> read_config(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return make_error(errno, "cannot open configuration file {}: {}", path, errno_text(errno));
  std::ostringstream text;
  text << file.rdbuf();
  if (!file || (text.str().empty() && file.bad()))
    return make_error(EIO, "cannot read configuration file {}", path);
  if (text.str().size() > limits::kMaxConfigFileBytes)
    return make_error(EFBIG, "{} has {} bytes; the limit is {}", path, text.str().size(), limits::kMaxConfigFileBytes);
  return parse_config(text.str(), path);
}

}  // namespace netblk::server
