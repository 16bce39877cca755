// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_uri.h"

#include <cerrno>
#include <optional>
#include <string_view>

#include "base/parse.h"
#include "protocol/netblk_wire.h"

namespace netblk::tools {
namespace {

constexpr std::string_view kScheme = "netblk";

bool is_alphanumeric(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

bool legal_scheme(std::string_view scheme) {
  for (const char c : scheme)
    if (!is_alphanumeric(c) && c != '+' && c != '-' && c != '.') return false;
  return !scheme.empty();
}

bool legal_host(std::string_view host) {
  for (const char c : host)
    if (!is_alphanumeric(c) && c != '.' && c != '-' && c != '_' && c != ':' && c != '%') return false;
  return !host.empty() && host.front() != '-';
}

std::optional<unsigned> hexadecimal(char c) {
  if (c >= '0' && c <= '9') return static_cast<unsigned>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<unsigned>(c - 'a' + 10);
  if (c >= 'A' && c <= 'F') return static_cast<unsigned>(c - 'A' + 10);
  return std::nullopt;
}

Result<std::string> decoded(const std::string& uri, std::string_view text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '?' || text[i] == '#')
      return make_error(EINVAL, "\"{}\": write %{:02X} for the {} in an export's name", uri,
                        static_cast<unsigned>(text[i]), text[i]);
    if (text[i] != '%') {
      plain += text[i];
      continue;
    }
    const auto high = i + 1 < text.size() ? hexadecimal(text[i + 1]) : std::nullopt;
    const auto low = i + 2 < text.size() ? hexadecimal(text[i + 2]) : std::nullopt;
    if (!high || !low)
      return make_error(EINVAL, "\"{}\": a % in an export's name has two hexadecimal digits behind it; a literal one "
                                "is %25", uri);
    plain += static_cast<char>(*high * 16 + *low);
    i += 2;
  }
  if (plain.find('\0') != std::string::npos) return make_error(EINVAL, "\"{}\": a zero byte in the export's name", uri);
  if (plain.size() > NETBLK2_MAX_NAME)
    return make_error(EINVAL, "the export's name has {} bytes; {} at most", plain.size(), NETBLK2_MAX_NAME);
  return plain;
}

std::string encoded(std::string_view name) {
  std::string text;
  for (const char c : name) {
    if (is_alphanumeric(c) || std::string_view("-._~/:@!$&'()*+,;=").find(c) != std::string_view::npos) {
      text += c;
    } else {
      text += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return text;
}

// HOST, HOST:PORT, [ADDRESS] or [ADDRESS]:PORT.
Status parse_authority(const std::string& text, const std::string& authority, ServerUri& uri) {
  std::string port;
  bool has_port = false;
  uri.host = authority;
  if (!authority.empty() && authority.front() == '[') {
    const size_t end = authority.find(']');
    const std::string after = end == std::string::npos ? "" : authority.substr(end + 1);
    if (end == std::string::npos || (!after.empty() && after.front() != ':'))
      return make_error(EINVAL, "\"{}\": an IPv6 address is written [ADDRESS], with :PORT behind it", text);
    uri.host = authority.substr(1, end - 1);
    if (uri.host.find(':') == std::string::npos)
      return make_error(EINVAL, "\"{}\": \"{}\" is no IPv6 address; leave the brackets out", text, uri.host);
    has_port = !after.empty();
    if (has_port) port = after.substr(1);
    // RFC 6874 writes the % before an interface's name as %25; the plain one is taken too.
    if (const size_t zone = uri.host.find("%25"); zone != std::string::npos) uri.host.erase(zone + 1, 2);
  } else if (const size_t at = authority.find(':'); at != std::string::npos) {
    if (authority.find(':', at + 1) != std::string::npos)
      return make_error(EINVAL, "\"{}\": an IPv6 address is written [ADDRESS], with :PORT behind it", text);
    uri.host = authority.substr(0, at);
    port = authority.substr(at + 1);
    has_port = true;
  }
  if (!legal_host(uri.host)) return make_error(EINVAL, "\"{}\": \"{}\" is no host name or address", text, uri.host);
  if (has_port) {
    const auto number = parse_unsigned(port, 1, 65535);
    if (!number) return make_error(EINVAL, "\"{}\": \"{}\" is no port; expected 1 to 65535", text, port);
    uri.port = static_cast<uint16_t>(*number);
  }
  return Ok{};
}

}  // namespace

std::string ServerUri::address() const {
  if (host.find(':') != std::string::npos) return fmt::format("[{}]:{}", host, port);
  return fmt::format("{}:{}", host, port);
}

std::string ServerUri::text() const {
  return fmt::format("{}://{}{}{}", kScheme, address(), export_name.empty() ? "" : "/", encoded(export_name));
}

bool looks_like_uri(const std::string& text) {
  const size_t colon = text.find("://");
  return colon != std::string::npos && legal_scheme(std::string_view(text).substr(0, colon));
}

Result<ServerUri> parse_server_uri(const std::string& text) {
  if (!looks_like_uri(text))
    return make_error(EINVAL, "\"{}\" is no URI; expected netblk://HOST[:{}][/EXPORT]", text, NETBLK_DEFAULT_PORT);
  const size_t colon = text.find("://");
  const std::string scheme = text.substr(0, colon);
  if (scheme != kScheme)
    return make_error(EINVAL, "\"{}\": {}:// is not supported; only netblk:// is", text, scheme);
  const std::string rest = text.substr(colon + 3);
  const size_t slash = rest.find('/');

  ServerUri uri{.host = {}, .port = NETBLK_DEFAULT_PORT, .export_name = {}};
  if (auto sound = parse_authority(text, rest.substr(0, slash), uri); !sound) return std::move(sound).error();
  if (slash != std::string::npos) {
    auto name = decoded(text, std::string_view(rest).substr(slash + 1));
    if (!name) return std::move(name).error();
    uri.export_name = std::move(name).value();
  }
  return uri;
}

}  // namespace netblk::tools
