// SPDX-License-Identifier: GPL-2.0-only
#include "proto/nbd/server_options.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/endian.h"

namespace netblk::proto {
namespace {

// Reads an option's data from its start; `failed` once something was not there.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> data) : data_(data) {}

  template <class T>
  T number() {
    const std::byte* const at = take(sizeof(T));
    return at == nullptr ? T{} : load_be<T>(at);
  }
  std::string_view text(size_t length) {
    const std::byte* const at = take(length);
    return at == nullptr ? std::string_view() : std::string_view(reinterpret_cast<const char*>(at), length);
  }
  size_t left() const { return data_.size(); }
  bool failed() const { return failed_; }

 private:
  const std::byte* take(size_t bytes) {
    if (bytes > data_.size()) {
      failed_ = true;
      data_ = {};
      return nullptr;
    }
    const std::byte* const at = data_.data();
    data_ = data_.subspan(bytes);
    return at;
  }
  std::span<const std::byte> data_;
  bool failed_ = false;
};

constexpr const char* kBadName = "a name that is longer than 4096 bytes, has a zero byte in it or is not UTF-8";
constexpr const char* kCutShort = "lengths that go beyond the option's data";

// By the table of Unicode: no overlong forms, no surrogates, nothing beyond U+10FFFF.
bool is_utf8(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const auto lead = static_cast<unsigned char>(text[at++]);
    if (lead < 0x80) continue;
    if (lead < 0xc2 || lead > 0xf4) return false;
    const size_t following = lead < 0xe0 ? 1 : lead < 0xf0 ? 2 : 3;
    if (text.size() - at < following) return false;
    for (size_t i = 0; i < following; ++i) {
      const auto byte = static_cast<unsigned char>(text[at++]);
      if ((byte & 0xc0) != 0x80) return false;
      if (i > 0) continue;
      if ((lead == 0xe0 && byte < 0xa0) || (lead == 0xed && byte > 0x9f) || (lead == 0xf0 && byte < 0x90) ||
          (lead == 0xf4 && byte > 0x8f))
        return false;
    }
  }
  return true;
}

}  // namespace

bool is_nbd_string(std::string_view text) {
  return text.size() <= NBD_MAX_STRING && text.find('\0') == std::string_view::npos && is_utf8(text);
}

std::array<std::byte, NBD_GREETING_SIZE> nbd_greeting() {
  std::array<std::byte, NBD_GREETING_SIZE> bytes;
  store_be<uint64_t>(&bytes[offsetof(struct nbd_greeting, passwd)], NBD_INIT_PASSWD);
  store_be<uint64_t>(&bytes[offsetof(struct nbd_greeting, magic)], NBD_OPTS_MAGIC);
  store_be<uint16_t>(&bytes[offsetof(struct nbd_greeting, flags)], NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
  return bytes;
}

const char* decode_nbd_option(const std::byte* header, NbdOption& option) {
  if (load_be<uint64_t>(header + offsetof(nbd_option, magic)) != NBD_OPTS_MAGIC)
    return "an option without its magic number";
  option.type = load_be<uint32_t>(header + offsetof(nbd_option, option));
  option.length = load_be<uint32_t>(header + offsetof(nbd_option, length));
  return nullptr;
}

const char* decode_nbd_go(std::span<const std::byte> data, NbdGo& go) {
  Reader reader(data);
  const std::string_view name = reader.text(reader.number<uint32_t>());
  const auto count = reader.number<uint16_t>();
  if (reader.failed()) return kCutShort;
  if (!is_nbd_string(name)) return kBadName;
  if (reader.left() != size_t{count} * sizeof(uint16_t)) return "a number of information requests that is not theirs";
  go.name = name;
  for (uint16_t i = 0; i < count; ++i) {
    switch (reader.number<uint16_t>()) {
      case NBD_INFO_NAME: go.wants_name = true; break;
      case NBD_INFO_DESCRIPTION: go.wants_description = true; break;
      case NBD_INFO_BLOCK_SIZE: go.wants_block_size = true; break;
      default: break;  // "MUST ignore any information requests it does not understand"
    }
  }
  return nullptr;
}

const char* decode_nbd_context_query(std::span<const std::byte> data, NbdContextQuery& query) {
  Reader reader(data);
  const std::string_view name = reader.text(reader.number<uint32_t>());
  const auto count = reader.number<uint32_t>();
  if (reader.failed()) return kCutShort;
  if (!is_nbd_string(name)) return kBadName;
  // Each has a length at least: a count beyond that is refused before anything is kept for it.
  if (count > reader.left() / sizeof(uint32_t)) return kCutShort;
  query.name = name;
  query.queries.reserve(count);
  for (uint32_t i = 0; i < count; ++i) {
    const std::string_view text = reader.text(reader.number<uint32_t>());
    if (reader.failed()) return kCutShort;
    if (!is_nbd_string(text)) return "a query that is longer than 4096 bytes, has a zero byte in it or is not UTF-8";
    query.queries.push_back(text);
  }
  return reader.left() == 0 ? nullptr : "bytes behind the last query";
}

template <class T>
void NbdOptionReplies::number(T value) {
  bytes_.resize(bytes_.size() + sizeof value);
  store_be<T>(bytes_.data() + bytes_.size() - sizeof value, value);
}

void NbdOptionReplies::text(std::string_view value) {
  const auto* const from = reinterpret_cast<const std::byte*>(value.data());
  bytes_.insert(bytes_.end(), from, from + value.size());
}

void NbdOptionReplies::header(uint32_t type, size_t length) {
  number<uint64_t>(NBD_OPT_REPLY_MAGIC);
  number<uint32_t>(option_);
  number<uint32_t>(type);
  number<uint32_t>(static_cast<uint32_t>(length));
}

void NbdOptionReplies::error(uint32_t type, std::string_view words) {
  words = words.substr(0, NBD_MAX_STRING);
  header(type, words.size());
  text(words);
}

void NbdOptionReplies::server(std::string_view name, std::string_view description) {
  header(NBD_REP_SERVER, sizeof(uint32_t) + name.size() + description.size());
  number<uint32_t>(static_cast<uint32_t>(name.size()));
  text(name);
  text(description);
}

void NbdOptionReplies::info_export(uint64_t size_bytes, uint16_t flags) {
  header(NBD_REP_INFO, NBD_INFO_EXPORT_SIZE);
  number<uint16_t>(NBD_INFO_EXPORT);
  number<uint64_t>(size_bytes);
  number<uint16_t>(flags);
}

void NbdOptionReplies::info_text(nbd_info info, std::string_view words) {
  header(NBD_REP_INFO, sizeof(uint16_t) + words.size());
  number<uint16_t>(static_cast<uint16_t>(info));
  text(words);
}

void NbdOptionReplies::info_block_size(uint32_t minimum, uint32_t preferred, uint32_t maximum) {
  header(NBD_REP_INFO, NBD_INFO_BLOCK_SIZE_SIZE);
  number<uint16_t>(NBD_INFO_BLOCK_SIZE);
  number<uint32_t>(minimum);
  number<uint32_t>(preferred);
  number<uint32_t>(maximum);
}

void NbdOptionReplies::context(uint32_t id, std::string_view name) {
  header(NBD_REP_META_CONTEXT, sizeof id + name.size());
  number<uint32_t>(id);
  text(name);
}

void NbdOptionReplies::export_reply(uint64_t size_bytes, uint16_t flags, bool zeroes) {
  number<uint64_t>(size_bytes);
  number<uint16_t>(flags);
  if (zeroes) bytes_.resize(bytes_.size() + NBD_EXPORT_ZEROES);
}

std::string nbd_option_text(uint32_t type) {
  static constexpr const char* kNames[] = {"",           "EXPORT_NAME", "ABORT",           "LIST",
                                           "PEEK_EXPORT", "STARTTLS",    "INFO",            "GO",
                                           "STRUCTURED_REPLY", "LIST_META_CONTEXT", "SET_META_CONTEXT",
                                           "EXTENDED_HEADERS"};
  if (type == 0 || type >= std::size(kNames)) return fmt::format("option {}", type);
  return fmt::format("NBD_OPT_{}", kNames[type]);
}

}  // namespace netblk::proto
