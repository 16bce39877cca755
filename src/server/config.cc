// SPDX-License-Identifier: GPL-2.0-only
#include "server/config.h"

#include <arpa/inet.h>

#include <algorithm>
#include <cerrno>
#include <optional>

#include "base/limits.h"
#include "base/parse.h"

namespace netblk::server {
namespace {

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const size_t at = text.find(separator);
    parts.push_back(text.substr(0, at));
    if (at == std::string_view::npos) return parts;
    text.remove_prefix(at + 1);
  }
}

// True when `option` is one of an export's own (and not of its store's).
bool is_export_option(std::string_view option) {
  return option == "ro" || option.starts_with("ro=") || option.starts_with("allow=") || option == "allow" ||
         option.starts_with("max-conns=") || option == "max-conns" || option.starts_with("description=") ||
         option == "description";
}

Status set_option(ExportConfig& config, std::string_view option) {
  const size_t equals = option.find('=');
  const std::string_view key = option.substr(0, equals);
  const std::string_view value = equals == std::string_view::npos ? "" : option.substr(equals + 1);
  if (key == "ro") {
    if (equals == std::string_view::npos || value == "1" || value == "true") {
      config.read_only = true;
    } else if (value == "0" || value == "false") {
      config.read_only = false;
    } else {
      return make_error(EINVAL, "export '{}': bad ro={}: use ro, ro=1 or ro=0", config.name, value);
    }
  } else if (key == "max-conns") {
    const auto number = parse_unsigned(value, 1, limits::kMaxConnections);
    if (!number)
      return make_error(EINVAL, "export '{}': bad max-conns={}: use a number from 1 to {}", config.name, value,
                        limits::kMaxConnections);
    config.max_connections = static_cast<uint32_t>(*number);
  } else if (key == "description") {
    auto plain = percent_decoded(value);
    if (!plain)
      return make_error(EINVAL, "export '{}': bad description={}: a % has two hexadecimal digits behind it; a literal one "
                                "is %25", config.name, value);
    if (auto good = check_description(config.name, *plain); !good) return good;
    config.description = std::move(*plain);
  } else if (key != "allow") {
    return make_error(EINVAL, "export '{}': unknown option '{}'; known are ro, allow=, max-conns=, description=", config.name,
                      option);
  } else {
    for (const std::string_view part : split(value, ',')) {
      auto cidr = parse_cidr(part);
      if (!cidr) return make_error(EINVAL, "export '{}': {}", config.name, cidr.error().message);
      config.allow.push_back(cidr.value());
    }
  }
  return Ok{};
}

// Where the options that follow a store with a comma begin.
size_t find_comma_options(std::string_view store) {
  for (size_t at = store.find(','); at != std::string_view::npos; at = store.find(',', at + 1)) {
    const std::string_view rest = store.substr(at + 1);
    if (is_export_option(rest.substr(0, rest.find(',')))) {
      // Inside a query, a comma belongs to the list that `allow=` begins, unless an option's name follows it.
      return at;
    }
  }
  return std::string_view::npos;
}

}  // namespace

Status check_description(std::string_view name, std::string_view text) {
  if (text.size() > limits::kMaxDescriptionBytes)
    return make_error(EINVAL, "export '{}': a description of {} bytes: the limit is {}", name, text.size(),
                      limits::kMaxDescriptionBytes);
  if (text.find('\0') != std::string_view::npos)
    return make_error(EINVAL, "export '{}': a zero byte in the description", name);
  return Ok{};
}

bool Cidr::contains(const io::Address& address) const {
  for (unsigned bit = 0; bit < prefix_bits; bit += 8) {
    const unsigned bits = std::min(8u, prefix_bits - bit);
    const auto mask = static_cast<uint8_t>(0xff00u >> bits);
    if ((network[bit / 8] & mask) != (address.ip[bit / 8] & mask)) return false;
  }
  return true;
}

Result<Cidr> parse_cidr(std::string_view text) {
  const auto bad = [&] {
    return make_error(EINVAL, "bad address range '{}': use 192.0.2.0/24, 2001:db8::/32 or one address", text);
  };
  const size_t slash = text.find('/');
  const std::string host(text.substr(0, slash));
  Cidr cidr;
  unsigned family_bits;
  if (::inet_pton(AF_INET, host.c_str(), cidr.network.data() + 12) == 1) {
    cidr.network[10] = cidr.network[11] = 0xff;
    family_bits = 32;
  } else if (::inet_pton(AF_INET6, host.c_str(), cidr.network.data()) == 1) {
    family_bits = 128;
  } else {
    return bad();
  }
  if (slash != std::string_view::npos) {
    const auto prefix = parse_unsigned(text.substr(slash + 1), 0, family_bits);
    if (!prefix) return bad();
    cidr.prefix_bits = static_cast<unsigned>(*prefix) + 128 - family_bits;
  }
  return cidr;
}

Result<ExportConfig> parse_export(std::string_view text) {
  const size_t equals = text.find('=');
  const size_t colon = text.find(':');
  if (equals == std::string_view::npos || (colon != std::string_view::npos && colon < equals))
    return make_error(EINVAL, "bad export '{}': use NAME=STORE, as in disk=file:/srv/disk.img?size=10G", text);
  ExportConfig config;
  config.name = text.substr(0, equals);
  if (config.name.size() > limits::kMaxExportNameBytes)
    return make_error(EINVAL, "an export name of {} bytes: the limit is {}", config.name.size(),
                      limits::kMaxExportNameBytes);
  std::string_view store = text.substr(equals + 1);
  const size_t comma = find_comma_options(store);
  const std::string_view tail = comma == std::string_view::npos ? "" : store.substr(comma + 1);
  store = store.substr(0, comma);

  std::string kept(store.substr(0, store.find('?')));
  char separator = '?';
  if (const size_t query = store.find('?'); query != std::string_view::npos) {
    for (const std::string_view option : split(store.substr(query + 1), '&')) {
      if (is_export_option(option)) {
        if (auto set = set_option(config, option); !set) return std::move(set).error();
      } else {
        kept += separator;
        kept += option;
        separator = '&';
      }
    }
  }
  if (kept.empty()) return make_error(EINVAL, "bad export '{}': the store is missing", text);
  config.store = kept;

  // "ro,allow=A,B,max-conns=4": a part that is no option's name goes on with the list before it.
  std::string option;
  for (const std::string_view part : tail.empty() ? std::vector<std::string_view>{} : split(tail, ',')) {
    if (is_export_option(part) || option.empty()) {
      if (!option.empty())
        if (auto set = set_option(config, option); !set) return std::move(set).error();
      option = part;
    } else {
      option += ',';
      option += part;
    }
  }
  if (!option.empty())
    if (auto set = set_option(config, option); !set) return std::move(set).error();
  return config;
}

SizedStore split_size(std::string_view store) {
  SizedStore found{.rest = std::string(store.substr(0, store.find('?'))), .size_bytes = 0};
  if (const size_t query = store.find('?'); query != std::string_view::npos) {
    char separator = '?';
    for (const std::string_view option : split(store.substr(query + 1), '&')) {
      // Then the size is that of a part, which does not grow.
      if (option.starts_with("offset=")) return {std::string(store), 0};
      if (option.starts_with("size=")) {
        const auto size = parse_size(option.substr(5));
        // Whoever opens it says what is wrong.
        if (!size || *size == 0 || *size % limits::kSectorBytes != 0) return {std::string(store), 0};
        found.size_bytes = *size;
        continue;
      }
      found.rest += separator;
      found.rest += option;
      separator = '&';
    }
  }
  return found;
}

Settings Settings::over(const Settings& other) const {
  const auto first = [](const auto& mine, const auto& theirs) { return mine ? mine : theirs; };
  return {.max_connections = first(max_connections, other.max_connections),
          .max_connections_per_address = first(max_connections_per_address, other.max_connections_per_address),
          .handshake_timeout_ms = first(handshake_timeout_ms, other.handshake_timeout_ms),
          .request_timeout_ms = first(request_timeout_ms, other.request_timeout_ms),
          .send_timeout_ms = first(send_timeout_ms, other.send_timeout_ms),
          .busy_poll_us = first(busy_poll_us, other.busy_poll_us)};
}

std::vector<std::string> listen_uris(const Config& config) {
  std::vector<std::string> uris;
  for (const ListenConfig& listen : config.listens) uris.push_back(listen.uri);
  return uris;
}

}  // namespace netblk::server
