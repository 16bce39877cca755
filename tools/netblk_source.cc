// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_source.h"

#include <cctype>
#include <utility>

namespace netblk::tools {
namespace {

// SCHEME:REST, and no URI.
bool looks_like_store(const std::string& text) {
  size_t letters = 0;
  while (letters < text.size() && std::isalpha(static_cast<unsigned char>(text[letters])) != 0) ++letters;
  return letters > 1 && letters < text.size() && text[letters] == ':' && !looks_like_uri(text);
}

}  // namespace

Result<Source> parse_source(const std::string& text) {
  if (looks_like_store(text)) {
    Status checked = check_store(text);
    if (!checked) return std::move(checked).error();
    // The helper has a working directory of its own, and so may the command that asks for the same disk again.
    return Source{.text = with_whole_paths(text), .uri = std::nullopt};
  }
  auto uri = parse_server_uri(text);
  if (!uri) return std::move(uri).error();
  return Source{.text = uri.value().text(), .uri = uri.value()};
}

}  // namespace netblk::tools
