// SPDX-License-Identifier: GPL-2.0-only
// The server's half of NBD's handshake on the wire, without I/O: options in, their replies out.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "protocol/nbd_wire.h"

namespace netblk::proto {

// What the server says first.
std::array<std::byte, NBD_GREETING_SIZE> nbd_greeting();

struct NbdOption {
  uint32_t type = 0;  // any: see enum nbd_opt
  uint32_t length = 0;
};

// Of NBD_OPTION_SIZE bytes. Null, or why the connection must close.
const char* decode_nbd_option(const std::byte* header, NbdOption& option);

// Every string of the protocol: NBD_MAX_STRING bytes at most, without a zero byte.
bool is_nbd_string(std::string_view text);

// NBD_OPT_INFO and NBD_OPT_GO.
struct NbdGo {
  std::string name;
  bool wants_name = false;
  bool wants_description = false;
  bool wants_block_size = false;
};

// Any bytes are legal input of both. Null, or what is wrong, for NBD_REP_ERR_INVALID.
const char* decode_nbd_go(std::span<const std::byte> data, NbdGo& go);

// NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. The queries are views of the data.
struct NbdContextQuery {
  std::string name;
  std::vector<std::string_view> queries;
};
const char* decode_nbd_context_query(std::span<const std::byte> data, NbdContextQuery& query);

// The replies to one option, one after another, until they are taken to be sent.
class NbdOptionReplies {
 public:
  void start(uint32_t option) { option_ = option; }

  void ack() { header(NBD_REP_ACK, 0); }
  // type: NBD_REP_ERR_*; the text is cut to what a string may have.
  void error(uint32_t type, std::string_view text);
  void server(std::string_view name, std::string_view description);
  void info_export(uint64_t size_bytes, uint16_t flags);
  void info_text(nbd_info info, std::string_view text);
  void info_block_size(uint32_t minimum, uint32_t preferred, uint32_t maximum);
  void context(uint32_t id, std::string_view name);
  // Not a reply as the others are: the answer to NBD_OPT_EXPORT_NAME.
  void export_reply(uint64_t size_bytes, uint16_t flags, bool zeroes);

  std::span<std::byte> bytes() { return bytes_; }
  void clear() { bytes_.clear(); }

 private:
  template <class T>
  void number(T value);
  void text(std::string_view value);
  void header(uint32_t type, size_t length);

  uint32_t option_ = 0;
  std::vector<std::byte> bytes_;
};

// "NBD_OPT_GO", or "option 99", for the log.
std::string nbd_option_text(uint32_t type);

}  // namespace netblk::proto
