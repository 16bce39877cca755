// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_uri.h"

#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <string_view>

#include "base/parse.h"
#include "protocol/nbd_wire.h"
#include "protocol/netblk_wire.h"

namespace netblk::tools {
namespace {

constexpr std::string_view kNetblk = "netblk", kNbd = "nbd", kNbdUnix = "nbd+unix";
constexpr const char* kKnown = "netblk://HOST[:10809][/EXPORT], nbd://HOST[:10809][/EXPORT] or "
                               "nbd+unix:///EXPORT?socket=PATH";
constexpr size_t kMaxSocketPath = sizeof(sockaddr_un::sun_path) - 1;

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

// what: "an export's name", "the socket's path"
Result<std::string> decoded(const std::string& uri, std::string_view text, const char* what) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '?' || text[i] == '#')
      return make_error(EINVAL, "\"{}\": write %{:02X} for the {} in {}", uri, static_cast<unsigned>(text[i]), text[i], what);
    if (text[i] != '%') {
      plain += text[i];
      continue;
    }
    const auto high = i + 1 < text.size() ? hexadecimal(text[i + 1]) : std::nullopt;
    const auto low = i + 2 < text.size() ? hexadecimal(text[i + 2]) : std::nullopt;
    if (!high || !low)
      return make_error(EINVAL, "\"{}\": a % in {} has two hexadecimal digits behind it; a literal one is %25", uri, what);
    plain += static_cast<char>(*high * 16 + *low);
    i += 2;
  }
  return plain;
}

Status set_export(const std::string& uri, std::string_view text, size_t most, ServerUri& into) {
  auto name = decoded(uri, text, "an export's name");
  if (!name) return std::move(name).error();
  if (name.value().find('\0') != std::string::npos) return make_error(EINVAL, "\"{}\": a zero byte in the export's name", uri);
  if (name.value().size() > most)
    return make_error(EINVAL, "the export's name has {} bytes; {} at most", name.value().size(), most);
  into.export_name = std::move(name).value();
  return Ok{};
}

std::string encoded(std::string_view name, std::string_view plain) {
  std::string text;
  for (const char c : name) {
    if (is_alphanumeric(c) || plain.find(c) != std::string_view::npos) {
      text += c;
    } else {
      text += fmt::format("%{:02X}", static_cast<unsigned char>(c));
    }
  }
  return text;
}

std::string encoded_name(std::string_view name) { return encoded(name, "-._~/:@!$&'()*+,;="); }

// NBD's query: TLS comes later, and what is not known is said.
Status parse_query(const std::string& text, std::string_view query, bool wants_socket, ServerUri& uri) {
  bool has_socket = false;
  while (!query.empty()) {
    const size_t end = query.find('&');
    const std::string_view parameter = query.substr(0, end);
    query = end == std::string_view::npos ? std::string_view{} : query.substr(end + 1);
    if (parameter.empty()) continue;
    const std::string_view key = parameter.substr(0, parameter.find('='));
    if (key.starts_with("tls-"))
      return make_error(EINVAL, "\"{}\": {} needs TLS, which netblk does not speak yet", text, key);
    if (key != "socket" || !wants_socket) return make_error(EINVAL, "\"{}\": unknown parameter \"{}\"", text, key);
    if (has_socket) return make_error(EINVAL, "\"{}\": two sockets", text);
    has_socket = true;
    auto path = decoded(text, parameter.substr(std::min(key.size() + 1, parameter.size())), "the socket's path");
    if (!path) return std::move(path).error();
    uri.socket = std::move(path).value();
    if (uri.socket.empty() || uri.socket.size() > kMaxSocketPath)
      return make_error(EINVAL, "\"{}\": a socket's path has 1 to {} bytes", text, kMaxSocketPath);
    if (uri.socket.find('\0', 1) != std::string::npos)
      return make_error(EINVAL, "\"{}\": a zero byte in the socket's path", text);
  }
  if (wants_socket && !has_socket)
    return make_error(EINVAL, "\"{}\": which socket? Write nbd+unix:///EXPORT?socket=PATH", text);
  return Ok{};
}

Error refused_scheme(const std::string& text, const std::string& scheme) {
  if (scheme == "nbds" || scheme == "nbds+unix" || scheme == "nbds+vsock" || scheme == "netblks")
    return make_error(EINVAL, "\"{}\": {}:// is TLS, which netblk does not speak yet: it comes later", text, scheme);
  if (scheme == "nbd+vsock" || scheme == "nbd+ssh")
    return make_error(EINVAL, "\"{}\": {}:// is not supported; nbd:// and nbd+unix:// are", text, scheme);
  return make_error(EINVAL, "\"{}\": {}:// is not supported; expected {}", text, scheme, kKnown);
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
  if (!socket.empty()) return socket.front() == '\0' ? "@" + socket.substr(1) : socket;
  if (host.find(':') != std::string::npos) return fmt::format("[{}]:{}", host, port);
  return fmt::format("{}:{}", host, port);
}

std::string ServerUri::text() const {
  if (!socket.empty())
    return fmt::format("{}:///{}?socket={}", kNbdUnix, encoded_name(export_name), encoded(socket, "-._~/:@!$'()*,;="));
  return fmt::format("{}://{}{}{}", is_nbd() ? kNbd : kNetblk, address(), export_name.empty() ? "" : "/",
                     encoded_name(export_name));
}

bool looks_like_uri(const std::string& text) {
  const size_t colon = text.find("://");
  return colon != std::string::npos && legal_scheme(std::string_view(text).substr(0, colon));
}

Result<ServerUri> parse_server_uri(const std::string& text) {
  if (!looks_like_uri(text)) return make_error(EINVAL, "\"{}\" is no URI; expected {}", text, kKnown);
  const size_t colon = text.find("://");
  const std::string scheme = text.substr(0, colon);
  const bool has_socket = scheme == kNbdUnix;
  const bool nbd = has_socket || scheme == kNbd;
  if (!nbd && scheme != kNetblk) return refused_scheme(text, scheme);

  ServerUri uri;
  std::string_view rest = std::string_view(text).substr(colon + 3);
  if (nbd) {
    uri.protocol = ServerUri::Protocol::kNbd;
    const size_t query = rest.find('?');
    if (auto sound = parse_query(text, query == std::string_view::npos ? "" : rest.substr(query + 1), has_socket, uri); !sound)
      return std::move(sound).error();
    rest = rest.substr(0, query);
  }
  const size_t slash = rest.find('/');
  const std::string authority(rest.substr(0, slash));
  if (has_socket) {
    if (!authority.empty())
      return make_error(EINVAL, "\"{}\": a unix socket has no host: write nbd+unix:///EXPORT?socket=PATH", text);
  } else {
    uri.port = nbd ? NBD_DEFAULT_PORT : NETBLK_DEFAULT_PORT;
    if (authority.find('@') != std::string::npos)
      return make_error(EINVAL, "\"{}\": a user's name is for TLS, which netblk does not speak yet", text);
    if (auto sound = parse_authority(text, authority, uri); !sound) return std::move(sound).error();
  }
  if (slash == std::string_view::npos) return uri;
  auto named = set_export(text, rest.substr(slash + 1), nbd ? size_t{NBD_MAX_STRING} : size_t{NETBLK2_MAX_NAME}, uri);
  if (!named) return std::move(named).error();
  return uri;
}

}  // namespace netblk::tools
