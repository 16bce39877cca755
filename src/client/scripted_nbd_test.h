// SPDX-License-Identifier: GPL-2.0-only
// An NBD server whose every connection follows a script.
#pragma once

#include <string_view>

#include "base/endian.h"
#include "client/nbd_client.h"
#include "client/scripted_server2_test.h"
#include "protocol/nbd_wire.h"

namespace netblk::client::testing {

// Bytes as they go onto the wire: integers big-endian.
struct Words : std::vector<std::byte> {
  Words() = default;
  explicit Words(std::vector<std::byte> bytes) : vector(std::move(bytes)) {}
  template <class T>
  Words& put(T value) {
    resize(size() + sizeof value);
    store_be(data() + size() - sizeof value, value);
    return *this;
  }
  Words& u16(uint64_t value) { return put(static_cast<uint16_t>(value)); }
  Words& u32(uint64_t value) { return put(static_cast<uint32_t>(value)); }
  Words& u64(uint64_t value) { return put(value); }
  Words& text(std::string_view words) { return more(std::as_bytes(std::span(words))); }
  Words& more(std::span<const std::byte> bytes) {
    insert(end(), bytes.begin(), bytes.end());
    return *this;
  }
  Words& fill(size_t count, uint8_t value) {
    insert(end(), count, std::byte{value});
    return *this;
  }
};

enum class Headers : uint8_t { kSimple, kStructured, kExtended };

struct NbdAsked {
  uint16_t flags = 0, type = 0;
  uint64_t cookie = 0, offset = 0, length = 0;
  std::vector<std::byte> data;
};

inline constexpr uint16_t kUsualFlags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM |
                                        NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_CACHE | NBD_FLAG_CAN_MULTI_CONN;

// What a server says of its export. A script may change it for its own connection.
struct NbdTold {
  uint64_t size_bytes = 1u << 20;
  uint16_t flags = kUsualFlags;
  Headers headers = Headers::kExtended;  // the most that it agrees to
  std::optional<uint32_t> allocation_id = 7;
  uint32_t least = 1, preferred = 4096, most = 1u << 20;
};

// The server's end of one connection.
class NbdPeer : public Peer {
 public:
  explicit NbdPeer(Peer&& peer) : Peer(std::move(peer)) {}

  bool say(const Words& words) { return send(words.data(), words.size()); }

  bool say_hello() {
    return say(Words().u64(NBD_INIT_PASSWD).u64(NBD_OPTS_MAGIC).u16(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES));
  }
  bool say_option(uint32_t option, uint32_t type, const Words& data = {}) {
    return say(Words().u64(NBD_OPT_REPLY_MAGIC).u32(option).u32(type).u32(data.size()).more(data));
  }
  // Up to the transmission phase. False: the client has gone.
  bool greet(const NbdTold& told) {
    std::byte flags[NBD_CLIENT_FLAGS_SIZE];
    if (!say_hello() || !receive(flags, sizeof flags)) return false;
    for (;;) {
      std::byte header[NBD_OPTION_SIZE];
      if (!receive(header, sizeof header)) return false;
      EXPECT_EQ(load_be<uint64_t>(header), NBD_OPTS_MAGIC);
      const auto option = load_be<uint32_t>(header + 8);
      std::vector<std::byte> data(load_be<uint32_t>(header + 12));
      if (!receive(data.data(), data.size())) return false;
      if (!answer_option(option, told)) return false;
      if (option == NBD_OPT_GO) return true;
    }
  }

  // The next request.
  std::optional<NbdAsked> request() {
    auto asked = header();
    if (asked && asked->type == NBD_CMD_WRITE) {
      asked->data.resize(asked->length);
      if (!receive(asked->data.data(), asked->data.size())) return std::nullopt;
    }
    return asked;
  }
  std::optional<NbdAsked> header() {
    const bool wide = headers == Headers::kExtended;
    std::byte bytes[NBD_EXTENDED_REQUEST_SIZE];
    if (!receive(bytes, wide ? NBD_EXTENDED_REQUEST_SIZE : NBD_REQUEST_SIZE)) return std::nullopt;
    EXPECT_EQ(load_be<uint32_t>(bytes), wide ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC);
    NbdAsked asked;
    asked.flags = load_be<uint16_t>(bytes + 4);
    asked.type = load_be<uint16_t>(bytes + 6);
    asked.cookie = load_be<uint64_t>(bytes + 8);
    asked.offset = load_be<uint64_t>(bytes + 16);
    asked.length = wide ? load_be<uint64_t>(bytes + 24) : load_be<uint32_t>(bytes + 24);
    if (wide) {
      EXPECT_EQ((asked.flags & NBD_CMD_FLAG_PAYLOAD_LEN) != 0, asked.type == NBD_CMD_WRITE);
      asked.flags = static_cast<uint16_t>(asked.flags & ~NBD_CMD_FLAG_PAYLOAD_LEN);
    }
    return asked;
  }

  static Words simple(uint64_t cookie, uint32_t error = 0, const std::vector<std::byte>& data = {}) {
    return Words().u32(NBD_SIMPLE_REPLY_MAGIC).u32(error).u64(cookie).more(data);
  }
  Words chunk(const NbdAsked& asked, uint16_t type, const Words& payload = {}, uint16_t flags = NBD_REPLY_FLAG_DONE) const {
    if (headers == Headers::kExtended)
      return Words().u32(NBD_EXTENDED_REPLY_MAGIC).u16(flags).u16(type).u64(asked.cookie).u64(asked.offset).u64(payload.size())
          .more(payload);
    return Words().u32(NBD_STRUCTURED_REPLY_MAGIC).u16(flags).u16(type).u64(asked.cookie).u32(payload.size()).more(payload);
  }
  static Words data_at(uint64_t offset, std::span<const std::byte> data) { return Words().u64(offset).more(data); }
  static Words hole_at(uint64_t offset, uint32_t length) { return Words().u64(offset).u32(length); }
  static Words error_of(uint32_t error, std::string_view words = {}) {
    return Words().u32(error).u16(words.size()).text(words);
  }
  using Extents = std::vector<std::pair<uint64_t, uint32_t>>;
  Words status_of(const Extents& extents, uint32_t id = 7) const {
    Words words;
    words.u32(id);
    if (headers == Headers::kExtended) words.u32(extents.size());
    for (const auto& [length, status] : extents) {
      if (headers == Headers::kExtended)
        words.u64(length).u64(status);
      else
        words.u32(length).u32(status);
    }
    return words;
  }
  uint16_t status_type() const {
    return headers == Headers::kExtended ? NBD_REPLY_TYPE_BLOCK_STATUS_EXT : NBD_REPLY_TYPE_BLOCK_STATUS;
  }

  // As an honest server says it.
  Words reply(const NbdAsked& asked, uint32_t error = 0, const std::vector<std::byte>& data = {}) const {
    if (headers == Headers::kSimple) return simple(asked.cookie, error, data);
    if (error != 0) return chunk(asked, NBD_REPLY_TYPE_ERROR, error_of(error, "words"));
    if (asked.type == NBD_CMD_READ) return chunk(asked, NBD_REPLY_TYPE_OFFSET_DATA, data_at(asked.offset, data));
    if (asked.type == NBD_CMD_BLOCK_STATUS) return chunk(asked, status_type(), status_of({{asked.length, 0}}));
    return headers == Headers::kStructured ? simple(asked.cookie) : chunk(asked, NBD_REPLY_TYPE_NONE);
  }

  Headers headers = Headers::kSimple;  // that were agreed on

 private:
  bool answer_option(uint32_t option, const NbdTold& told) {
    const bool agreed = (option == NBD_OPT_EXTENDED_HEADERS && told.headers == Headers::kExtended) ||
                        (option == NBD_OPT_STRUCTURED_REPLY && told.headers != Headers::kSimple);
    if (agreed) headers = option == NBD_OPT_EXTENDED_HEADERS ? Headers::kExtended : Headers::kStructured;
    if (agreed) return say_option(option, NBD_REP_ACK);
    if (option == NBD_OPT_SET_META_CONTEXT && told.allocation_id)
      return say_option(option, NBD_REP_META_CONTEXT, Words().u32(*told.allocation_id).text(NBD_CONTEXT_BASE_ALLOCATION)) &&
             say_option(option, NBD_REP_ACK);
    if (option != NBD_OPT_GO) return say_option(option, NBD_REP_ERR_UNSUP);
    return say_option(option, NBD_REP_INFO, Words().u16(NBD_INFO_EXPORT).u64(told.size_bytes).u16(told.flags)) &&
           say_option(option, NBD_REP_INFO,
                      Words().u16(NBD_INFO_BLOCK_SIZE).u32(told.least).u32(told.preferred).u32(told.most)) &&
           say_option(option, NBD_REP_ACK);
  }
};

using NbdScript = std::function<void(NbdPeer&)>;

// Each connection runs the next script; when they are used up, the last again and again.
class NbdServer {
 public:
  explicit NbdServer(const std::vector<NbdScript>& scripts) : server_(plain(scripts)) {}
  std::unique_ptr<io::Dialer> dialer() { return std::make_unique<ScriptedServer2::Dialer>(server_); }
  void settle() { server_.settle(); }
  size_t connections() const { return server_.connections; }
  void refuse(bool on) { server_.refusing = on; }

 private:
  static std::vector<Script> plain(const std::vector<NbdScript>& scripts) {
    std::vector<Script> all;
    for (const NbdScript& script : scripts)
      all.push_back([script](Peer& peer) {
        NbdPeer one{std::move(peer)};
        script(one);
      });
    return all;
  }
  ScriptedServer server_;
};

// What several connections of an honest server share: the disk, and what was seen.
struct NbdDisk {
  explicit NbdDisk(size_t size = 1u << 20) : bytes(size) { told.size_bytes = size; }

  std::mutex mutex;
  std::vector<std::byte> bytes;
  NbdTold told;
  std::vector<NbdAsked> seen;  // without data
  size_t goodbyes = 0;

  Words apply(const NbdPeer& peer, const NbdAsked& asked) {
    const std::lock_guard lock(mutex);
    seen.push_back(asked);
    seen.back().data.clear();
    if (asked.type == NBD_CMD_FLUSH || asked.type == NBD_CMD_CACHE || asked.type == NBD_CMD_BLOCK_STATUS) return peer.reply(asked);
    if (asked.offset > bytes.size() || asked.length > bytes.size() - asked.offset) return peer.reply(asked, NBD_EINVAL);
    const auto at = bytes.begin() + static_cast<std::ptrdiff_t>(asked.offset);
    const auto end = at + static_cast<std::ptrdiff_t>(asked.length);
    if (asked.type == NBD_CMD_READ) return peer.reply(asked, 0, std::vector<std::byte>(at, end));
    if (asked.type == NBD_CMD_WRITE)
      std::copy(asked.data.begin(), asked.data.end(), at);
    else
      std::fill(at, end, std::byte{0});
    return peer.reply(asked);
  }
  bool all(size_t from, size_t to, uint8_t value) {
    const std::lock_guard lock(mutex);
    return std::all_of(bytes.begin() + static_cast<std::ptrdiff_t>(from), bytes.begin() + static_cast<std::ptrdiff_t>(to),
                       [value](std::byte byte) { return byte == std::byte{value}; });
  }
  size_t count(uint16_t type) {
    const std::lock_guard lock(mutex);
    return static_cast<size_t>(std::count_if(seen.begin(), seen.end(), [&](const NbdAsked& one) { return one.type == type; }));
  }
  std::vector<NbdAsked> of(uint16_t type) {
    const std::lock_guard lock(mutex);
    std::vector<NbdAsked> some;
    std::copy_if(seen.begin(), seen.end(), std::back_inserter(some), [&](const NbdAsked& one) { return one.type == type; });
    return some;
  }
};

// Answers `count` requests (all, when negative). False: the client has gone, or said goodbye.
inline bool serve(NbdPeer& peer, NbdDisk& disk, int count = -1) {
  for (; count != 0; --count) {
    const auto asked = peer.request();
    if (!asked) return false;
    if (asked->type == NBD_CMD_DISC) {
      const std::lock_guard lock(disk.mutex);
      ++disk.goodbyes;
      return false;
    }
    if (!peer.say(disk.apply(peer, *asked))) return false;
  }
  return true;
}
inline NbdScript honest(NbdDisk& disk) {
  return [&disk](NbdPeer& peer) {
    if (peer.greet(disk.told)) serve(peer, disk);
  };
}
// Greets, answers `count` requests, then goes on with the script.
inline NbdScript after(NbdDisk& disk, int count, NbdScript script) {
  return [&disk, count, script](NbdPeer& peer) {
    if (peer.greet(disk.told) && serve(peer, disk, count)) script(peer);
  };
}
inline void go_away(NbdPeer&) {}

class NbdTest : public ClientTest {
 protected:
  // Short times where a test waits for them; where they must not pass, long ones.
  static NbdOptions nbd_options() {
    NbdOptions options;
    options.name = "test";
    options.request_timeout_ms = 0;
    options.handshake_timeout_ms = 60'000;
    options.min_backoff_ms = 2;
    options.max_backoff_ms = 20;
    options.dead_time_ms = 60'000;
    options.close_timeout_ms = 5'000;
    return options;
  }
  std::unique_ptr<NbdClient> open_nbd(NbdServer& server, const NbdOptions& with = nbd_options()) {
    auto opened = NbdClient::open(*backend_, clock_, server.dialer(), with);
    EXPECT_TRUE(opened.ok()) << opened.error().message;
    return opened ? std::move(opened).value() : nullptr;
  }
  Error refused_nbd(NbdServer& server, const NbdOptions& with = nbd_options()) {
    auto opened = NbdClient::open(*backend_, clock_, server.dialer(), with);
    EXPECT_FALSE(opened.ok());
    return opened ? Error{0, ""} : opened.error();
  }
  // Waits for what must come; the bound only ends hopeless waits.
  template <class Condition>
  static bool comes(Condition condition) {
    for (int waited_ms = 0; waited_ms < 60'000; ++waited_ms) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }
  static int flush_of(block::Device& device) { return run_one(device, Ask::of(block::Command::kFlush)); }

  NbdDisk disk_;
};

}  // namespace netblk::client::testing
