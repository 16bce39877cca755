// SPDX-License-Identifier: GPL-2.0-only
// A netblk/2 server whose every connection follows a script.
#pragma once

#include "base/crc32c.h"
#include "client/blocking.h"
#include "client/netblk2_client.h"
#include "client/scripted_server_test.h"
#include "proto/netblk/codec2.h"

namespace netblk::client::testing {

inline constexpr uint32_t kPayload = NETBLK2_MIN_MAX_PAYLOAD;

struct Asked2 {
  proto::Request2 header;
  std::vector<std::byte> data;  // as on the wire
};

inline Id id_of(uint8_t value) {
  Id id;
  id.bytes.fill(value);
  return id;
}

inline proto::Welcome2 refusing(uint32_t status, std::string text) {
  proto::Welcome2 welcome;
  welcome.status = status;
  welcome.body = std::move(text);
  return welcome;
}

// The server's end of one connection.
class Peer2 : public Peer {
 public:
  explicit Peer2(Peer&& peer) : Peer(std::move(peer)) {}

  std::optional<proto::Hello2> read_hello() {
    std::vector<std::byte> bytes(proto::kGreetingPrefix);
    if (!receive(bytes.data(), bytes.size())) return std::nullopt;
    const auto length = proto::hello_length(bytes);
    EXPECT_TRUE(length.ok()) << length.error().message;
    bytes.resize(length.value());
    if (!receive(bytes.data() + proto::kGreetingPrefix, bytes.size() - proto::kGreetingPrefix)) return std::nullopt;
    auto decoded = proto::decode_hello(bytes);
    EXPECT_TRUE(decoded.ok()) << decoded.error().message;
    hello = decoded.value();
    framing.crc = proto::find_feature(hello.features, NETBLK2_FEATURE_CRC32C) != nullptr;
    return hello;
  }
  bool say(const proto::Welcome2& welcome) {
    framing.crc = proto::find_feature(welcome.features, NETBLK2_FEATURE_CRC32C) != nullptr;
    framing.lz4 = proto::find_feature(welcome.features, NETBLK2_FEATURE_LZ4) != nullptr;
    framing.zstd = proto::find_feature(welcome.features, NETBLK2_FEATURE_ZSTD) != nullptr;
    framing.times = proto::find_feature(welcome.features, NETBLK2_FEATURE_TIMES) != nullptr;
    framing.max_payload_bytes = welcome.max_payload_bytes;
    const auto bytes = proto::encode_welcome(welcome);
    return send(bytes.data(), bytes.size());
  }
  // The next request; heartbeats are counted and passed over.
  std::optional<Asked2> request() {
    for (;;) {
      std::byte bytes[NETBLK2_REQUEST_SIZE];
      if (!receive(bytes, sizeof bytes)) return std::nullopt;
      Asked2 asked;
      const char* const wrong = proto::decode_request(bytes, framing, asked.header);
      EXPECT_EQ(wrong, nullptr) << wrong;
      if (wrong != nullptr) return std::nullopt;
      if (asked.header.type == NETBLK2_HEARTBEAT) {
        ++heartbeats;
        continue;
      }
      asked.data.resize(asked.header.payload_length);
      if (!receive(asked.data.data(), asked.data.size())) return std::nullopt;
      if (framing.crc && !asked.data.empty()) {
        EXPECT_EQ(asked.header.payload_crc, crc32c(asked.data)) << "a payload's checksum";
      }
      return asked;
    }
  }
  proto::Reply2 reply_to(const Asked2& asked, uint32_t status = NETBLK2_OK) const {
    return {.type = asked.header.type,
            .slot = asked.header.slot,
            .sequence = asked.header.sequence,
            .cookie = asked.header.cookie,
            .status = status};
  }
  bool say(proto::Reply2 reply, const std::vector<std::byte>& data = {}, bool right_crc = true) {
    std::byte bytes[NETBLK2_REPLY_SIZE];
    reply.payload_length = static_cast<uint32_t>(data.size());
    if (framing.crc && !data.empty()) reply.payload_crc = crc32c(data) ^ (right_crc ? 0u : 1u);
    proto::encode_reply(reply, framing.crc, bytes);
    return send(bytes, sizeof bytes) && send(data.data(), data.size());
  }

  proto::Hello2 hello;
  proto::Framing2 framing;
  size_t heartbeats = 0;
};

using Script2 = std::function<void(Peer2&)>;

// Each connection runs the next script; when they are used up, the last again and again.
class ScriptedServer2 {
 public:
  explicit ScriptedServer2(std::vector<Script2> scripts) {
    std::vector<Script> plain;
    for (Script2& script : scripts)
      plain.push_back([script](Peer& peer) {
        Peer2 two{std::move(peer)};
        script(two);
      });
    server_ = std::make_unique<ScriptedServer>(std::move(plain));
  }

  class Dialer final : public io::Dialer {
   public:
    explicit Dialer(ScriptedServer& server) : server_(server) {}
    coro::Task<Result<std::unique_ptr<io::Stream>>> dial(io::Loop& loop, uint64_t) override {
      auto fd = server_.connect();
      if (!fd) co_return std::move(fd).error();
      co_return loop.make_stream(std::move(fd).value());
    }
    std::string peer() const override { return "script"; }

   private:
    ScriptedServer& server_;
  };

  std::unique_ptr<io::Dialer> dialer() { return std::make_unique<Dialer>(*server_); }
  ScriptedServer& plain() { return *server_; }
  void settle() { server_->settle(); }
  size_t connections() const { return server_->connections; }

 private:
  std::unique_ptr<ScriptedServer> server_;
};

// What several connections of an honest server share: the disk, the sessions' ledgers, and what was seen.
struct World {
  explicit World(size_t size) : bytes(size) {}

  struct Done {
    uint32_t sequence = 0;
    uint32_t status = 0;
  };

  std::mutex mutex;
  std::vector<std::byte> bytes;
  Id uuid = id_of(7);
  uint64_t generation = 1;
  Id session;                      // of now; zero: none is known
  std::vector<std::optional<Done>> ledger = std::vector<std::optional<Done>>(NETBLK2_MAX_SLOTS);
  uint32_t slots = 64;
  uint16_t max_connections = 4;
  uint32_t max_payload = kPayload;
  uint16_t flags = NETBLK2_WELCOME_TRIM;
  std::vector<uint16_t> agreed = {NETBLK2_FEATURE_CRC32C, NETBLK2_FEATURE_HEARTBEAT, NETBLK2_FEATURE_RESIZE};
  uint32_t heartbeat_ms = 0;  // 0: as the client asks

  std::vector<proto::Hello2> hellos;
  std::vector<Asked2> applied;   // changes that took effect, without data
  size_t repeats = 0;            // requests answered from the ledger
  size_t flushes = 0;
  size_t goodbyes = 0;

  // What a server says to this hello, and remembers of it.
  proto::Welcome2 welcome(const proto::Hello2& hello) {
    const std::lock_guard lock(mutex);
    hellos.push_back(hello);
    proto::Welcome2 welcome;
    welcome.flags = flags;
    welcome.max_connections = max_connections;
    welcome.store_uuid = uuid;
    welcome.generation = generation;
    welcome.size_bytes = bytes.size();
    welcome.max_payload_bytes = max_payload;
    welcome.slots = slots;
    for (const uint16_t number : agreed)
      if (const auto* offered = proto::find_feature(hello.features, number)) {
        welcome.features.push_back(*offered);
        welcome.features.back().mandatory = false;
        if (number == NETBLK2_FEATURE_HEARTBEAT && heartbeat_ms != 0) welcome.features.back().value = heartbeat_ms;
      }
    EXPECT_FALSE(hello.session_id.is_zero());
    if (hello.session_id != session) {
      const bool begins = (hello.flags & NETBLK2_HELLO_BEGIN) != 0;
      if (!begins && hello.store_uuid != uuid) return refusing(NETBLK2_ESTALE, "this is another store");
      ledger.assign(ledger.size(), std::nullopt);
      session = hello.session_id;
      welcome.flags |= begins ? NETBLK2_WELCOME_NEW : NETBLK2_WELCOME_ADOPTED;
    }
    welcome.session_id = session;
    return welcome;
  }

  // Carries a request out as the ledger has it; nullopt: the connection must be closed.
  std::optional<uint32_t> apply(const Asked2& asked, std::vector<std::byte>& out) {
    const std::lock_guard lock(mutex);
    const proto::Request2& header = asked.header;
    auto& done = ledger[header.slot];
    const bool again = done && done->sequence == header.sequence;
    EXPECT_TRUE(!done || again || done->sequence + 1 == header.sequence)
        << "slot " << header.slot << ": " << header.sequence << " after " << done->sequence;
    if (again && header.type != NETBLK2_READ) {
      ++repeats;
      return done->status;
    }
    uint32_t status = NETBLK2_OK;
    if (header.offset + header.length > bytes.size()) status = NETBLK2_EINVAL;
    const auto at = bytes.begin() + static_cast<std::ptrdiff_t>(header.offset);
    if (status == NETBLK2_OK) {
      switch (header.type) {
        case NETBLK2_READ: out.assign(at, at + header.length); break;
        case NETBLK2_WRITE: std::copy(asked.data.begin(), asked.data.end(), at); break;
        case NETBLK2_TRIM:
        case NETBLK2_WRITE_ZEROES: std::fill(at, at + header.length, std::byte{0}); break;
        case NETBLK2_FLUSH: ++flushes; break;
        default: break;
      }
      if (header.type == NETBLK2_WRITE || header.type == NETBLK2_TRIM || header.type == NETBLK2_WRITE_ZEROES)
        applied.push_back({header, {}});
    }
    done = Done{header.sequence, status};
    return status;
  }
  // As a server that is a new process, or another host: no session is known.
  void forget() {
    const std::lock_guard lock(mutex);
    session = {};
  }
  void move_generation() {
    const std::lock_guard lock(mutex);
    session = {};
    ++generation;
  }
  bool all(size_t from, size_t to, uint8_t value) {
    const std::lock_guard lock(mutex);
    return std::all_of(bytes.begin() + static_cast<std::ptrdiff_t>(from),
                       bytes.begin() + static_cast<std::ptrdiff_t>(to),
                       [value](std::byte byte) { return byte == std::byte{value}; });
  }
  template <class Seen>
  auto see(Seen seen) {
    const std::lock_guard lock(mutex);
    return seen();
  }
};

inline bool greet(Peer2& peer, World& world) {
  const auto hello = peer.read_hello();
  return hello && peer.say(world.welcome(*hello));
}

// Answers `count` requests (all, when negative). False: the client has gone, or said goodbye.
inline bool serve(Peer2& peer, World& world, int count = -1) {
  for (; count != 0; --count) {
    const auto asked = peer.request();
    if (!asked) return false;
    if (asked->header.type == NETBLK2_GOODBYE) {
      {
        const std::lock_guard lock(world.mutex);
        ++world.goodbyes;
      }
      peer.say(peer.reply_to(*asked));
      return false;
    }
    std::vector<std::byte> data;
    const auto status = world.apply(*asked, data);
    if (!status) return false;
    if (!peer.say(peer.reply_to(*asked, *status), data)) return false;
  }
  return true;
}

inline Script2 honest(World& world) {
  return [&world](Peer2& peer) {
    if (greet(peer, world)) serve(peer, world);
  };
}
// Greets, answers `count` requests, then goes on with the script.
inline Script2 after(World& world, int count, Script2 script) {
  return [&world, count, script](Peer2& peer) {
    if (greet(peer, world) && serve(peer, world, count)) script(peer);
  };
}
inline void hang_up(Peer2&) {}

class Client2Test : public ClientTest {
 protected:
  // A machine that stands still must not look like a server that does.
  Options2 options2() const {
    Options2 options;
    options.name = "test";
    options.client_id = id_of(0xc1);
    options.heartbeat_ms = 0;
    options.request_timeout_ms = 0;
    options.welcome_timeout_ms = 60'000;
    options.min_backoff_ms = 2;
    options.max_backoff_ms = 20;
    options.dead_time_ms = 60'000;
    options.close_timeout_ms = 2'000;
    return options;
  }
  std::unique_ptr<Netblk2Client> open2(ScriptedServer2& server, const Options2& with) {
    auto opened = Netblk2Client::open(*backend_, clock_, server.dialer(), with);
    EXPECT_TRUE(opened.ok()) << opened.error().message;
    return opened ? std::move(opened).value() : nullptr;
  }
  std::unique_ptr<Netblk2Client> open2(ScriptedServer2& server) { return open2(server, options2()); }
  Error refused2(ScriptedServer2& server, const Options2& with) {
    auto opened = Netblk2Client::open(*backend_, clock_, server.dialer(), with);
    EXPECT_FALSE(opened.ok());
    return opened ? Error{0, ""} : opened.error();
  }

  World world_{1u << 20};
};

}  // namespace netblk::client::testing
