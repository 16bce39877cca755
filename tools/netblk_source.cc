// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_source.h"

#include <cctype>
#include <cerrno>
#include <filesystem>
#include <string_view>
#include <utility>

namespace netblk::tools {
namespace {

// SCHEME:REST, and no URI.
bool looks_like_store(const std::string& text) {
  size_t letters = 0;
  while (letters < text.size() && std::isalpha(static_cast<unsigned char>(text[letters])) != 0) ++letters;
  return letters > 1 && letters < text.size() && text[letters] == ':' && !looks_like_uri(text);
}

// The helper has a working directory of its own, and so may the command that asks for the same disk again.
Result<std::string> with_whole_path(const std::string& store) {
  constexpr std::string_view kFile = "file:";
  if (!store.starts_with(kFile) || store.size() == kFile.size() || store[kFile.size()] == '/') return store;
  std::error_code error;
  const std::string here = std::filesystem::current_path(error).string();
  if (error || here.find_first_of("%?,&") != std::string::npos)
    return make_error(EINVAL, "{}: write the whole path", store);
  return fmt::format("{}{}/{}", kFile, here, store.substr(kFile.size()));
}

}  // namespace

Result<Source> parse_source(const std::string& text) {
  if (looks_like_store(text)) {
    auto store = with_whole_path(text);
    if (!store) return std::move(store).error();
    return Source{.text = std::move(store).value(), .uri = std::nullopt};
  }
  auto uri = parse_server_uri(text);
  if (!uri) return std::move(uri).error();
  return Source{.text = uri.value().text(), .uri = uri.value()};
}

}  // namespace netblk::tools
