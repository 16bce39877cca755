// SPDX-License-Identifier: GPL-2.0-only
// A netblk/1 server whose every connection follows a script, and a user that asks a device from a loop of its own.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/netblk1_client.h"
#include "coro/event.h"
#include "coro/scope.h"
#include "io/epoll/epoll_backend.h"
#include "io/uring/uring_backend.h"
#include "proto/netblk/codec1.h"

namespace netblk::client::testing {

inline constexpr uint8_t kOk = NETBLK1_STATUS_OK;
inline constexpr uint8_t kError = NETBLK1_STATUS_ERROR;

struct Asked {
  netblk1_command command;
  uint64_t sector;
  uint32_t length;
  std::vector<std::byte> data;
};

// The server's end of one connection. Nothing here throws; a lost peer shows as nullopt or false.
class Peer {
 public:
  explicit Peer(io::UniqueFd fd) : fd_(std::move(fd)) {}

  bool receive(std::byte* to, size_t size) {
    while (size > 0) {
      const ssize_t got = ::recv(fd_.get(), to, size, 0);
      if (got <= 0) return false;
      to += got;
      size -= static_cast<size_t>(got);
    }
    return true;
  }
  std::optional<Asked> header() {
    std::byte bytes[NETBLK1_REQUEST_SIZE];
    if (!receive(bytes, sizeof bytes)) return std::nullopt;
    const proto::Decoded1 decoded = proto::decode_request1(bytes);
    EXPECT_EQ(decoded.outcome, proto::Decode1::kRequest) << "the client sent what no server understands";
    return Asked{decoded.request.command, decoded.request.sector, decoded.request.length_bytes, {}};
  }
  std::optional<Asked> request() {
    auto asked = header();
    if (asked && asked->command == NETBLK1_CMD_WRITE) {
      asked->data.resize(asked->length);
      if (!receive(asked->data.data(), asked->length)) return std::nullopt;
    }
    return asked;
  }
  bool send(const void* from, size_t size) {
    const auto* at = static_cast<const char*>(from);
    while (size > 0) {
      const ssize_t sent = ::send(fd_.get(), at, size, MSG_NOSIGNAL);
      if (sent <= 0) return false;
      at += sent;
      size -= static_cast<size_t>(sent);
    }
    return true;
  }
  bool send_byte(uint8_t byte) { return send(&byte, 1); }
  bool reply(uint8_t status, const std::vector<std::byte>& data = {}) {
    return send_byte(status) && send(data.data(), data.size());
  }
  // Until the client has gone.
  void wait_for_end() {
    std::byte byte;
    while (::recv(fd_.get(), &byte, 1, 0) > 0) {
    }
  }
  bool something_to_read(int wait_ms) {
    pollfd watched{fd_.get(), POLLIN, 0};
    return ::poll(&watched, 1, wait_ms) > 0;
  }
  int fd() const { return fd_.get(); }

 private:
  io::UniqueFd fd_;
};

using Script = std::function<void(Peer&)>;

// Each connection runs the next script; when they are used up, the last again and again.
class ScriptedServer {
 public:
  explicit ScriptedServer(std::vector<Script> scripts) : scripts_(std::move(scripts)) {}
  ~ScriptedServer() { settle(); }

  // Until every script has ended: the clients are gone.
  void settle() {
    const std::lock_guard lock(mutex_);
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  Connect connector() {
    return [this](uint64_t) -> Result<io::UniqueFd> { return connect(); };
  }
  Result<io::UniqueFd> connect() {
    if (refusing) return make_error(ECONNREFUSED, "cannot connect: Connection refused");
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return make_error(errno, "socketpair");
    const std::lock_guard lock(mutex_);
    const size_t number = connections++;
    const Script script = scripts_[std::min(number, scripts_.size() - 1)];
    threads_.emplace_back([script, fd = ends[1]] {
      Peer peer{io::UniqueFd(fd)};
      script(peer);
    });
    return io::UniqueFd(ends[0]);
  }

  std::atomic<bool> refusing{false};
  std::atomic<size_t> connections{0};

 private:
  std::vector<Script> scripts_;
  std::mutex mutex_;
  std::vector<std::thread> threads_;
};

// The honest server's disk, which several connections share.
struct Disk {
  explicit Disk(size_t size) : bytes(size) {}
  std::vector<std::byte> bytes;
  std::mutex mutex;
  std::vector<Asked> log;  // without data

  bool all(size_t from, size_t to, uint8_t value) {
    const std::lock_guard lock(mutex);
    return std::all_of(bytes.begin() + static_cast<std::ptrdiff_t>(from),
                       bytes.begin() + static_cast<std::ptrdiff_t>(to),
                       [value](std::byte byte) { return byte == std::byte{value}; });
  }
  std::vector<Asked> asked() {
    const std::lock_guard lock(mutex);
    return log;
  }
  std::pair<uint8_t, std::vector<std::byte>> apply(const Asked& asked) {
    const std::lock_guard lock(mutex);
    log.push_back({asked.command, asked.sector, asked.length, {}});
    const uint64_t at = asked.sector * 512;
    if (at + asked.length > bytes.size()) return {kError, {}};
    if (asked.command == NETBLK1_CMD_WRITE) {
      std::memcpy(bytes.data() + at, asked.data.data(), asked.length);
      return {kOk, {}};
    }
    return {kOk, std::vector<std::byte>(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                                        bytes.begin() + static_cast<std::ptrdiff_t>(at + asked.length))};
  }
};

// Serves `count` requests honestly (all, when negative).
inline bool serve(Peer& peer, Disk& disk, int count = -1) {
  for (; count != 0; --count) {
    const auto asked = peer.request();
    if (!asked || asked->command == NETBLK1_CMD_DISCONNECT) return false;
    const auto [status, data] = disk.apply(*asked);
    if (!peer.reply(status, data)) return false;
  }
  return true;
}
inline Script honest(Disk& disk) {
  return [&disk](Peer& peer) { serve(peer, disk); };
}
// Answers the probe of a new or recovering client, then goes on with the script.
inline Script after_probe(Disk& disk, Script script) {
  return [&disk, script](Peer& peer) {
    if (serve(peer, disk, 1)) script(peer);
  };
}

struct Ask : block::Request {
  Ask(block::Command what, uint64_t at, uint64_t size)
      : Request([](Request& request) {
          auto& self = static_cast<Ask&>(request);
          self.ended = true;
          self.done.set();
        }),
        memory(what == block::Command::kRead || what == block::Command::kWrite ? size : 0) {
    command = what;
    offset = at;
    length = size;
    data = memory.empty() ? nullptr : memory.data();
  }
  virtual ~Ask() = default;
  static std::unique_ptr<Ask> read(uint64_t at, uint64_t size) {
    return std::make_unique<Ask>(block::Command::kRead, at, size);
  }
  static std::unique_ptr<Ask> write(uint64_t at, uint64_t size, uint8_t fill) {
    auto ask = std::make_unique<Ask>(block::Command::kWrite, at, size);
    std::fill(ask->memory.begin(), ask->memory.end(), std::byte{fill});
    return ask;
  }
  static std::unique_ptr<Ask> of(block::Command what, uint64_t at = 0, uint64_t size = 0) {
    return std::make_unique<Ask>(what, at, size);
  }
  bool all(uint8_t value) const {
    return std::all_of(memory.begin(), memory.end(), [value](std::byte byte) { return byte == std::byte{value}; });
  }

  std::vector<std::byte> memory;
  coro::Event done;
  bool ended = false;
};
using Asks = std::vector<std::unique_ptr<Ask>>;

template <class... Each>
Asks asks(Each... each) {
  Asks all;
  (all.push_back(std::move(each)), ...);
  return all;
}

// Submits all at once on a loop of its own and waits for all.
inline void run(block::Device& device, const Asks& all) {
  static const io::SteadyClock clock;
  auto backend = io::make_epoll_backend(1);
  auto loop = backend.value()->make_loop(clock);
  struct Go {
    static coro::Task<void> go(io::Loop& on, block::Device& to, const Asks& these) {
      for (const auto& ask : these) {
        ask->loop = &on;
        ask->ended = false;
        to.submit(*ask);
      }
      for (const auto& ask : these)
        while (!ask->ended) co_await ask->done.wait();
    }
  };
  loop.value()->run(Go::go(*loop.value(), device, all));
}

inline int run_one(block::Device& device, const std::unique_ptr<Ask>& ask) {
  Asks all;
  all.push_back(std::make_unique<Ask>(ask->command, ask->offset, ask->length));
  all[0]->memory = ask->memory;
  all[0]->data = all[0]->memory.empty() ? nullptr : all[0]->memory.data();
  all[0]->abandoned = ask->abandoned;
  run(device, all);
  ask->memory = all[0]->memory;
  return all[0]->error;
}

inline constexpr size_t kDiskBytes = 64u << 10;

// Every test runs on both kinds of loop.
class ClientTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    auto made = std::string(GetParam()) == "uring" ? io::make_uring_backend() : io::make_epoll_backend(1);
    if (!made) GTEST_SKIP() << made.error().message;
    backend_ = std::move(made).value();
  }
  // A machine that stands still must not look like a server that does.
  Options options() const {
    return {.name = "test",
            .size_bytes = kDiskBytes,
            .timeout_ms = 60'000,
            .tries = 3,
            .retry_ms = 5,
            .error_retry_ms = 10,
            .unanswered_retry_ms = 5};
  }
  // Of a client whose server is not heard any more.
  Options impatient() const {
    Options with = options();
    with.timeout_ms = 800;
    with.tries = 1;
    return with;
  }
  std::unique_ptr<Netblk1Client> open(ScriptedServer& server, const Options& with) {
    auto opened = Netblk1Client::open(*backend_, clock_, server.connector(), with);
    EXPECT_TRUE(opened.ok()) << opened.error().message;
    return opened ? std::move(opened).value() : nullptr;
  }
  std::unique_ptr<Netblk1Client> open(ScriptedServer& server) { return open(server, options()); }
  // Waits, without a limit of its own, for what must come.
  template <class Condition>
  void until(Condition condition) {
    while (!condition()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  Disk disk_{kDiskBytes};
};

}  // namespace netblk::client::testing
