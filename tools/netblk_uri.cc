// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_uri.h"

#include <cerrno>
#include <string_view>

#include "base/parse.h"
#include "protocol/netblk_wire.h"

namespace netblk::tools {
namespace {

constexpr std::string_view kScheme = "netblk";

bool legal_host(std::string_view host) {
  for (const char c : host) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
                       c == '-' || c == '_' || c == ':' || c == '%';
    if (!plain) return false;
  }
  return !host.empty() && host.front() != '-';
}

}  // namespace

std::string ServerUri::address() const {
  if (host.find(':') != std::string::npos) return fmt::format("[{}]:{}", host, port);
  return fmt::format("{}:{}", host, port);
}

std::string ServerUri::text() const { return fmt::format("{}://{}", kScheme, address()); }

Result<ServerUri> parse_server_uri(const std::string& text) {
  const size_t colon = text.find("://");
  if (colon == std::string::npos || colon == 0)
    return make_error(EINVAL, "\"{}\" is no URI; expected netblk://HOST[:{}]", text, NETBLK_DEFAULT_PORT);
  const std::string scheme = text.substr(0, colon);
  if (scheme != kScheme)
    return make_error(EINVAL, "\"{}\": {}:// is not supported; only netblk:// is", text, scheme);
  const std::string rest = text.substr(colon + 3);
  const size_t slash = rest.find('/');
  const std::string authority = rest.substr(0, slash);
  if (slash != std::string::npos && slash + 1 < rest.size())
    return make_error(EINVAL,
                      "\"{}\": netblk/1 cannot name an export, it serves the server's first; leave \"{}\" out", text,
                      rest.substr(slash));

  ServerUri uri{.host = authority, .port = NETBLK_DEFAULT_PORT};
  std::string port;
  bool has_port = false;
  if (!authority.empty() && authority.front() == '[') {
    const size_t end = authority.find(']');
    const std::string after = end == std::string::npos ? "" : authority.substr(end + 1);
    if (end == std::string::npos || (!after.empty() && after.front() != ':'))
      return make_error(EINVAL, "\"{}\": an IPv6 address is written [ADDRESS], with :PORT behind it", text);
    uri.host = authority.substr(1, end - 1);
    has_port = !after.empty();
    if (has_port) port = after.substr(1);
  } else if (const size_t at = authority.find(':'); at != std::string::npos) {
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
  return uri;
}

}  // namespace netblk::tools
