// SPDX-License-Identifier: GPL-2.0-only
#include <array>
#include <cerrno>
#include <charconv>
#include <utility>

#include "base/parse.h"
#include "server/config.h"

namespace netblk::server {
namespace {

constexpr uint16_t kDefaultPort = 10809;
constexpr uint32_t kSocketMode = 0600;
constexpr std::string_view kForms = "use netblk://HOST:PORT, nbd://HOST:PORT or nbd+unix:///PATH";

struct Scheme {
  std::string_view text;
  Protocol protocol;
  ListenKind kind;
};
constexpr std::array<Scheme, 4> kSchemes{{{"netblk://", Protocol::kNetblk, ListenKind::kTcp},
                                          {"nbd://", Protocol::kNbd, ListenKind::kTcp},
                                          {"netblk+unix://", Protocol::kNetblk, ListenKind::kUnix},
                                          {"nbd+unix://", Protocol::kNbd, ListenKind::kUnix}}};

Status parse_path(std::string_view text, std::string_view rest, ListenConfig& listen) {
  listen.mode = kSocketMode;
  const size_t question = rest.find('?');
  if (question != std::string_view::npos) {
    const std::string_view option = rest.substr(question + 1);
    if (option.starts_with("socket="))
      return make_error(EINVAL, "bad listen address '{}': ?socket= is how clients name a socket; a listener has its path "
                                "itself: nbd+unix:///PATH", text);
    const std::string_view digits = option.starts_with("mode=") ? option.substr(5) : "";
    const char* const end = digits.data() + digits.size();
    const auto [stopped, error] = std::from_chars(digits.data(), end, listen.mode, 8);
    if (error != std::errc{} || stopped != end || listen.mode > 0777)
      return make_error(EINVAL, "bad option '{}' in '{}': use ?mode= with up to three octal digits, as in ?mode=660", option,
                        text);
    rest = rest.substr(0, question);
  }
  if (rest.empty() || rest[0] != '/')
    return make_error(EINVAL, "bad listen address '{}': a socket's path begins with the third slash: nbd+unix:///PATH", text);
  auto path = percent_decoded(rest);
  if (!path || path->back() == '/' || path->find('\0') != std::string::npos)
    return make_error(EINVAL, "bad socket path in '{}': use nbd+unix:///PATH, and %25 for a %", text);
  // "nbd+unix:///" in front of an absolute path has a slash too many: it is the same path.
  listen.path = path->substr(path->find_first_not_of('/') - 1);
  return Ok{};
}

Status parse_host(std::string_view text, std::string_view rest, ListenConfig& listen) {
  if (rest.ends_with('/')) rest.remove_suffix(1);
  const size_t colon = rest.rfind(':');
  const size_t bracket = rest.rfind(']');
  std::string_view host = rest;
  listen.port = kDefaultPort;
  if (colon != std::string_view::npos && (bracket == std::string_view::npos || colon > bracket)) {
    host = rest.substr(0, colon);
    const std::string_view port = rest.substr(colon + 1);
    const auto number = parse_unsigned(port, 0, 65535);
    if (!number) return make_error(EINVAL, "bad port '{}' in '{}': use a number from 0 to 65535", port, text);
    listen.port = static_cast<uint16_t>(*number);
  }
  if (host.starts_with('[') && host.ends_with(']') && host.size() > 2) {
    host = host.substr(1, host.size() - 2);
  } else if (host.find_first_of("[]/:@?") != std::string_view::npos) {
    return make_error(EINVAL, "bad host '{}' in '{}': use {}HOST:PORT, and [brackets] around IPv6", host, text,
                      listen.protocol == Protocol::kNbd ? "nbd://" : "netblk://");
  }
  listen.host = host;
  return Ok{};
}

}  // namespace

Result<ListenConfig> parse_listen(std::string_view text) {
  for (const Scheme& scheme : kSchemes) {
    if (!text.starts_with(scheme.text)) continue;
    ListenConfig listen;
    listen.uri = text;
    listen.protocol = scheme.protocol;
    listen.kind = scheme.kind;
    const std::string_view rest = text.substr(scheme.text.size());
    auto parsed = scheme.kind == ListenKind::kUnix ? parse_path(text, rest, listen) : parse_host(text, rest, listen);
    if (!parsed) return std::move(parsed).error();
    return listen;
  }
  const size_t end = text.find("://");
  if (end == std::string_view::npos) return make_error(EINVAL, "bad listen address '{}': {}", text, kForms);
  return make_error(EINVAL, "'{}': this version does not serve {}; {}", text, text.substr(0, end + 3), kForms);
}

std::vector<ListenConfig> default_listens() {
  std::vector<ListenConfig> listens;
  for (const char* uri : {"netblk://127.0.0.1:10809", "netblk://[::1]:10809", "nbd://127.0.0.1:10810", "nbd://[::1]:10810"}) {
    listens.push_back(parse_listen(uri).value());
    listens.back().optional = listens.back().host == "::1";
  }
  return listens;
}

}  // namespace netblk::server
