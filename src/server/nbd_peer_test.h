// SPDX-License-Identifier: GPL-2.0-only
// A client of NBD for tests, which says whatever bytes it likes, and a server's session at the other end of its socket.
#pragma once

#include <netinet/tcp.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/endian.h"
#include "io/backends_test.h"
#include "server/nbd_session.h"

namespace netblk::server {

using Bytes = std::vector<std::byte>;

// Bytes of a message, in order.
class Wire {
 public:
  template <class T>
  Wire& put(T value) {
    bytes_.resize(bytes_.size() + sizeof value);
    store_be<T>(bytes_.data() + bytes_.size() - sizeof value, value);
    return *this;
  }
  Wire& u16(uint16_t value) { return put(value); }
  Wire& u32(uint32_t value) { return put(value); }
  Wire& u64(uint64_t value) { return put(value); }
  Wire& text(std::string_view value) { return add(std::as_bytes(std::span(value.data(), value.size()))); }
  Wire& add(std::span<const std::byte> value) {
    bytes_.insert(bytes_.end(), value.begin(), value.end());
    return *this;
  }
  Wire& fill(size_t count, uint8_t value) {
    bytes_.insert(bytes_.end(), count, std::byte{value});
    return *this;
  }
  const Bytes& bytes() const { return bytes_; }

 private:
  Bytes bytes_;
};

inline Wire option(uint32_t type, const Wire& data = {}) {
  Wire wire;
  wire.u64(NBD_OPTS_MAGIC).u32(type).u32(static_cast<uint32_t>(data.bytes().size())).add(data.bytes());
  return wire;
}

inline Wire go_data(std::string_view name, const std::vector<uint16_t>& infos = {}) {
  Wire wire;
  wire.u32(static_cast<uint32_t>(name.size())).text(name).u16(static_cast<uint16_t>(infos.size()));
  for (const uint16_t info : infos) wire.u16(info);
  return wire;
}

inline Wire context_data(std::string_view name, const std::vector<std::string_view>& queries) {
  Wire wire;
  wire.u32(static_cast<uint32_t>(name.size())).text(name).u32(static_cast<uint32_t>(queries.size()));
  for (const std::string_view query : queries) wire.u32(static_cast<uint32_t>(query.size())).text(query);
  return wire;
}

inline Wire request(uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset, uint32_t length) {
  Wire wire;
  wire.u32(NBD_REQUEST_MAGIC).u16(flags).u16(type).u64(cookie).u64(offset).u32(length);
  return wire;
}

inline Wire extended(uint16_t type, uint16_t flags, uint64_t cookie, uint64_t offset, uint64_t length) {
  Wire wire;
  wire.u32(NBD_EXTENDED_REQUEST_MAGIC).u16(flags).u16(type).u64(cookie).u64(offset).u64(length);
  return wire;
}

// Bytes in memory. Holds back what it is told to hold, fails what it is told to fail, and knows which blocks of 4096
// bytes were never written.
struct FakeBase final : block::Base {
  explicit FakeBase(std::set<uint64_t> changed) : blocks(std::move(changed)) {}
  std::set<uint64_t> blocks;
};

class FakeDevice final : public block::Device {
 public:
  static constexpr uint64_t kBlock = 4096;
  explicit FakeDevice(const block::Geometry& geometry) : Device(geometry), bytes(geometry.size_bytes) {}

  Bytes bytes;
  std::map<uint64_t, bool> written;  // by number of the block
  std::map<std::string, std::set<uint64_t>, std::less<>> changed;  // blocks since moments

  std::vector<std::string> bases() const override {
    std::vector<std::string> names;
    for (const auto& [name, blocks] : changed) names.push_back(name);
    return names;
  }
  std::shared_ptr<const block::Base> base(std::string_view name) override {
    const auto found = changed.find(name);
    return found == changed.end() ? nullptr : std::make_shared<const FakeBase>(found->second);
  }
  int fail_with = 0;
  bool hold = false;
  std::deque<std::pair<block::Request*, block::Completion>> held;
  std::vector<block::Command> seen;
  bool last_fua = false;
  bool last_keep_allocated = false;

  void let_go() {
    hold = false;
    while (!held.empty()) {
      auto [request, completion] = std::move(held.front());
      held.pop_front();
      run(*request, std::move(completion));
    }
  }

 protected:
  void start(block::Request& request, block::Completion completion) override {
    seen.push_back(request.command);
    last_fua = request.fua;
    last_keep_allocated = request.keep_allocated;
    if (hold) {
      held.emplace_back(&request, std::move(completion));
    } else {
      run(request, std::move(completion));
    }
  }

 private:
  void run(block::Request& request, block::Completion completion) {
    const auto at = bytes.begin() + static_cast<ptrdiff_t>(request.offset);
    const auto length = static_cast<ptrdiff_t>(request.length);
    if (fail_with != 0) return std::move(completion).finish(fail_with);
    const uint64_t first = request.offset / kBlock;
    const uint64_t last = (request.offset + request.length + kBlock - 1) / kBlock;
    switch (request.command) {
      case block::Command::kRead: std::copy(at, at + length, request.data); break;
      case block::Command::kWrite:
        std::copy(request.data, request.data + length, at);
        for (uint64_t i = first; i < last; ++i) written[i] = true;
        break;
      case block::Command::kTrim:
      case block::Command::kWriteZeroes: std::fill(at, at + length, std::byte{0}); break;
      case block::Command::kBlockStatus:
        for (uint64_t i = first; i < last; ++i) {
          const uint64_t from = std::max(request.offset, i * kBlock);
          const uint64_t to = std::min(request.offset + request.length, (i + 1) * kBlock);
          const bool is_changed =
              request.since != nullptr && static_cast<const FakeBase&>(*request.since).blocks.contains(i);
          if (!request.add_extent(to - from, !written[i], !written[i], is_changed)) break;
        }
        break;
      default: break;
    }
    std::move(completion).finish(0);
  }
};

class NbdTest : public test::BackendTest {
 public:
  static constexpr uint64_t kSize = 1u << 20;

  void SetUp() override {
    BackendTest::SetUp();
    if (IsSkipped()) return;
    context = std::unique_ptr<SessionContext>(new SessionContext{loop(), {}, {}});
    device = serve({.size_bytes = kSize, .can_trim = true, .can_fast_zero = true, .can_block_status = true},
                   "disk", "a disk for tests");
  }
  // One more export, behind those that are there.
  FakeDevice* serve(const block::Geometry& geometry, const std::string& name, const std::string& description = {}) {
    auto made = std::make_shared<FakeDevice>(geometry);
    ExportConfig config;
    config.name = name;
    config.description = description;
    auto all = exports.all();
    all.push_back(std::make_shared<Export>(config, made));
    exports.replace(std::move(all));
    return made.get();
  }

  // The client's end of a connection, and the session at the other.
  class Peer {
   public:
    explicit Peer(NbdTest& test) {
      test::FdPair pair = test::tcp_pair();
      // Each message goes out as it is said.
      const int on = 1;
      for (const int fd : {pair.ours.get(), pair.peer.get()})
        EXPECT_EQ(::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), 0);
      link = std::make_unique<Link>(*test.context, test.loop().make_stream(std::move(pair.ours)), "a client");
      session = std::make_unique<NbdSession>(*link, test.exports, address_);
      fd_ = pair.peer.get();
      stream = test.loop().make_stream(std::move(pair.peer));
      scope_.spawn(run());
    }
    // All that the server still sends, up to its end.
    coro::Task<Bytes> rest() {
      Bytes all;
      for (;;) {
        std::byte piece[4096];
        const int32_t got = co_await io::recv(*stream, piece);
        if (got <= 0) break;
        all.insert(all.end(), piece, piece + got);
      }
      co_return all;
    }
    // At once: what a test says in one go fits into a socket. (A message that is built among the arguments of what is
    // awaited is destroyed twice by g++ 12, so this awaits nothing.)
    void say(const Wire& wire) {
      const Bytes& bytes = wire.bytes();
      EXPECT_EQ(::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT), static_cast<ssize_t>(bytes.size()));
    }
    // Something has come that was not heard yet.
    bool has_unheard() const {
      char byte;
      return ::recv(fd_, &byte, 1, MSG_PEEK | MSG_DONTWAIT) > 0;
    }
    // So much that the server must take some of it first. False: it would not.
    coro::Task<bool> push(const Bytes& bytes) {
      size_t sent = 0;
      while (sent < bytes.size()) {
        const iovec part{const_cast<std::byte*>(bytes.data() + sent), bytes.size() - sent};
        const int32_t result = co_await io::send(*stream, {&part, 1});
        if (result <= 0) co_return false;
        sent += static_cast<size_t>(result);
      }
      co_return true;
    }
    // That many bytes; fewer at the end of the stream.
    coro::Task<Bytes> hear(size_t count) {
      Bytes bytes(count);
      size_t got = 0;
      while (got < count) {
        const int32_t result = co_await io::recv(*stream, std::span(bytes).subspan(got));
        if (result <= 0) break;
        got += static_cast<size_t>(result);
      }
      bytes.resize(got);
      co_return bytes;
    }
    // The greeting, and the flags that answer it.
    coro::Task<void> greet(uint32_t client_flags = NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES) {
      const Bytes greeting = co_await hear(NBD_GREETING_SIZE);
      EXPECT_EQ(greeting.size(), size_t{NBD_GREETING_SIZE});
      say(Wire().u32(client_flags));
    }
    struct Reply {
      uint32_t type = 0;
      Bytes data;
    };
    // One reply to an option.
    coro::Task<Reply> reply(uint32_t to_option) {
      Reply reply;
      const Bytes header = co_await hear(NBD_OPTION_REPLY_SIZE);
      if (header.size() < NBD_OPTION_REPLY_SIZE) co_return reply;
      EXPECT_EQ(load_be<uint64_t>(&header[0]), NBD_OPT_REPLY_MAGIC);
      EXPECT_EQ(load_be<uint32_t>(&header[8]), to_option);
      reply.type = load_be<uint32_t>(&header[12]);
      reply.data = co_await hear(load_be<uint32_t>(&header[16]));
      co_return reply;
    }
    // What kind of reply an option has.
    coro::Task<uint32_t> verdict(uint32_t to_option) {
      const Reply heard = co_await reply(to_option);
      co_return heard.type;
    }
    // Up to the first request.
    coro::Task<void> go(proto::NbdHeaders headers, bool contexts = false, bool block_size = false) {
      co_await greet();
      if (headers != proto::NbdHeaders::kSimple) {
        const bool structured = headers == proto::NbdHeaders::kStructured;
        const uint32_t how = structured ? NBD_OPT_STRUCTURED_REPLY : NBD_OPT_EXTENDED_HEADERS;
        say(option(how));
        const uint32_t got = co_await verdict(how);
        EXPECT_EQ(got, uint32_t{NBD_REP_ACK});
      }
      if (contexts) {
        say(option(NBD_OPT_SET_META_CONTEXT, context_data("disk", {NBD_CONTEXT_BASE_ALLOCATION})));
        const Reply context = co_await reply(NBD_OPT_SET_META_CONTEXT);
        EXPECT_EQ(context.type, uint32_t{NBD_REP_META_CONTEXT});
        const uint32_t end = co_await verdict(NBD_OPT_SET_META_CONTEXT);
        EXPECT_EQ(end, uint32_t{NBD_REP_ACK});
      }
      say(option(NBD_OPT_GO, block_size ? go_data("disk", {NBD_INFO_BLOCK_SIZE}) : go_data("disk")));
      for (;;) {
        const Reply heard = co_await reply(NBD_OPT_GO);
        if (heard.type != NBD_REP_INFO) {
          EXPECT_EQ(heard.type, uint32_t{NBD_REP_ACK});
          co_return;
        }
        if (load_be<uint16_t>(heard.data.data()) == NBD_INFO_EXPORT) flags = load_be<uint16_t>(&heard.data[10]);
      }
    }
    // A simple reply without data: its error. 0xffffffff: there was none.
    coro::Task<uint32_t> simple(uint64_t cookie) {
      const Bytes bytes = co_await hear(NBD_SIMPLE_REPLY_SIZE);
      if (bytes.size() < NBD_SIMPLE_REPLY_SIZE) co_return 0xffffffffu;
      EXPECT_EQ(load_be<uint32_t>(&bytes[0]), NBD_SIMPLE_REPLY_MAGIC);
      EXPECT_EQ(load_be<uint64_t>(&bytes[8]), cookie);
      co_return load_be<uint32_t>(&bytes[4]);
    }
    struct Chunk {
      bool last = false;
      uint16_t type = 0xffff;
      uint64_t cookie = 0;
      uint64_t offset = 0;  // extended headers'
      Bytes payload;
      template <class T>
      T at(size_t where) const {
        return where + sizeof(T) <= payload.size() ? load_be<T>(&payload[where]) : T{};
      }
    };
    coro::Task<Chunk> chunk(bool is_extended) {
      Chunk chunk;
      const size_t size = is_extended ? NBD_EXTENDED_REPLY_SIZE : NBD_STRUCTURED_REPLY_SIZE;
      const Bytes bytes = co_await hear(size);
      if (bytes.size() < size) co_return chunk;
      EXPECT_EQ(load_be<uint32_t>(&bytes[0]), is_extended ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC);
      chunk.last = (load_be<uint16_t>(&bytes[4]) & NBD_REPLY_FLAG_DONE) != 0;
      chunk.type = load_be<uint16_t>(&bytes[6]);
      chunk.cookie = load_be<uint64_t>(&bytes[8]);
      if (is_extended) chunk.offset = load_be<uint64_t>(&bytes[16]);
      const uint64_t length = is_extended ? load_be<uint64_t>(&bytes[24]) : load_be<uint32_t>(&bytes[16]);
      chunk.payload = co_await hear(length);
      co_return chunk;
    }
    coro::Task<void> leave() {
      stream->shutdown();
      co_await scope_.join();
    }
    // The server closes by itself, and says nothing more.
    coro::Task<void> is_left() {
      const Bytes nothing = co_await rest();
      EXPECT_TRUE(nothing.empty()) << nothing.size() << " bytes more";
      co_await leave();
    }

    std::unique_ptr<Link> link;
    std::unique_ptr<NbdSession> session;
    std::unique_ptr<io::Stream> stream;
    uint16_t flags = 0;

   private:
    coro::Task<void> run() {
      co_await session->run();
      co_await link->finish();
      link->stream().shutdown();
    }
    int fd_ = -1;
    io::Address address_{};
    coro::Scope scope_;
  };

  std::unique_ptr<SessionContext> context;
  ExportTable exports;
  FakeDevice* device = nullptr;
};

}  // namespace netblk::server
