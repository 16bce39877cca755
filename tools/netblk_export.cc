// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_export.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "client/nbd_client.h"
#include "client/netblk2_client.h"
#include "command_line.h"
#include "io/fd.h"
#include "netblk_state.h"
#include "transport/tcp_dialer.h"
#include "transport/unix_dialer.h"

namespace netblk::tools {
namespace {

// A request outlives an outage that the client sits out, and what is in flight before it on a slow link.
uint64_t request_timeout_ms(uint64_t dead_time_ms) { return dead_time_ms + dead_time_ms / 2 + 600'000; }

uint64_t mixed(uint64_t value) {  // splitmix64's finalizer
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
  value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
  return value ^ (value >> 31);
}

uint64_t hashed(const std::string& words) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : words) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash;
}

// A new session of a client ends its older ones: who writes holds this name, so that of two commands on this machine the
// second is refused, and the first goes on. The kernel lets go of it when the process ends.
Result<io::UniqueFd> hold_client_id(const Id& id, const ServerUri& uri) {
  io::UniqueFd holder(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  // A zero byte in front: a name that is no file.
  const std::string name = std::string(1, '\0') + "netblk/" + id_text(id);
  std::memcpy(address.sun_path, name.data(), name.size());
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
  if (holder.valid() && ::bind(holder.get(), reinterpret_cast<const sockaddr*>(&address), length) == 0) return holder;
  if (errno == EADDRINUSE)
    return make_error(EBUSY, "the same command writes to {} already: wait for it, or end it", uri.text());
  return make_error(errno, "cannot hold a socket: {}", errno_text(errno));
}

const char* advice(const ServerUri& uri, int error) {
  switch (error) {
    case EBUSY: return "; wait for it, or take the disk over with --force";
    case ENOENT: return "; `netblk list` shows the exports";
    case EPROTONOSUPPORT: return uri.is_nbd() ? "" : "; this needs a netblk/2 server, or nbd:// for one that speaks NBD";
    default: return "";
  }
}

template <class Client>
class Served : public Export {
 public:
  Served(std::unique_ptr<io::Dialer> dialer, std::unique_ptr<Client> client)
      : dialer_(std::move(dialer)), client_(std::move(client)) {}
  block::Device& device() final { return *client_; }
  client::ClientStatus status() const final { return client_->status(); }
  coro::Task<void> close() final { return client_->close(); }

 protected:
  const Client& client() const { return *client_; }

 private:
  std::unique_ptr<io::Dialer> dialer_;
  std::unique_ptr<Client> client_;
};

class Netblk2Export final : public Served<client::Netblk2Client> {
 public:
  Netblk2Export(io::UniqueFd holder, std::unique_ptr<io::Dialer> dialer, std::unique_ptr<client::Netblk2Client> client)
      : Served(std::move(dialer), std::move(client)), holder_(std::move(holder)) {}
  ExportFacts facts() const override {
    const client::Session2Info info = client().info();
    return {.size_bytes = info.size_bytes,
            .block_bytes = info.block_bytes,
            .slots = info.slots,
            .connections = info.max_connections,
            .read_only = info.read_only,
            .identity = "store " + id_text(info.generation.uuid),
            .version = fmt::format("{} bytes, generation {}", info.size_bytes, info.generation.counter)};
  }

 private:
  io::UniqueFd holder_;
};

class NbdServed final : public Served<client::NbdClient> {
 public:
  NbdServed(std::string name, uint32_t slots, std::unique_ptr<io::Dialer> dialer, std::unique_ptr<client::NbdClient> client)
      : Served(std::move(dialer), std::move(client)), name_(std::move(name)), slots_(slots) {}
  ExportFacts facts() const override {
    const client::NbdInfo info = client().info();
    const uint64_t size = client().size_bytes();
    return {.size_bytes = size,
            .block_bytes = info.found.min_block_bytes,
            .slots = slots_,
            .connections = info.connections,
            .read_only = info.read_only(),
            .can_flush = info.can(NBD_FLAG_SEND_FLUSH),
            .identity = "export " + name_,
            .version = fmt::format("{} bytes", size)};
  }

 private:
  const std::string name_;
  const uint32_t slots_;
};

// NBD servers know no client: whoever comes may write.
coro::Task<Result<std::unique_ptr<Export>>> open_nbd(io::Loop& loop, ServerUri uri, ExportOptions options) {
  auto dialer = make_dialer(uri);
  client::NbdOptions wanted = nbd_options_of(uri, options.read_only, options.connections, options.trust_reconnect);
  wanted.slots = options.slots;
  wanted.dead_time_ms = options.timeout_ms;
  wanted.request_timeout_ms = request_timeout_ms(options.timeout_ms);
  wanted.retry_after_error = false;
  auto opened = co_await client::NbdClient::open_on(loop, *dialer, wanted);
  if (!opened)
    co_return make_error(opened.error().code, "cannot open {}: {}{}", uri.text(), opened.error().message,
                         advice(uri, opened.error().code));
  const unsigned connections = opened.value()->info().connections;
  if (connections < options.connections)
    note(fmt::format("{} is used over {} connection: its server does not allow more", uri.text(), connections));
  std::unique_ptr<Export> made =
      std::make_unique<NbdServed>(uri.text(), options.slots, std::move(dialer), std::move(opened).value());
  co_return made;
}

}  // namespace

Id client_id_for(const std::string& words) {
  const auto machine = parse_id(read_text("/etc/machine-id"));
  if (!machine) return random_id();
  std::array<uint64_t, 2> halves{};
  std::memcpy(halves.data(), machine.value().bytes.data(), sizeof halves);
  const uint64_t hash = hashed(words);
  halves[0] = mixed(halves[0] ^ hash);
  halves[1] = mixed(halves[1] ^ std::rotl(hash, 32));
  Id id;
  std::memcpy(id.bytes.data(), halves.data(), sizeof halves);
  return id;
}

std::string Export::reason() const {
  const client::ClientStatus now = status();
  if (now.lost) return now.lost_reason;
  return now.state == client::State::kConnected ? "" : now.last_error;
}

std::unique_ptr<io::Dialer> make_dialer(const ServerUri& uri) {
  if (!uri.socket.empty()) return std::make_unique<transport::UnixDialer>(uri.socket);
  return std::make_unique<transport::TcpDialer>(uri.host, uri.port);
}

client::NbdOptions nbd_options_of(const ServerUri& uri, bool read_only, unsigned connections, bool trust_reconnect) {
  client::NbdOptions options;
  options.name = uri.address();
  options.export_name = uri.export_name;
  options.read_only = read_only;
  options.connections = connections;
  options.trust_reconnect = trust_reconnect;
  return options;
}

coro::Task<Result<std::unique_ptr<Export>>> open_export(io::Loop& loop, ServerUri uri, ExportOptions options) {
  if (uri.is_nbd()) {
    auto opened = co_await open_nbd(loop, std::move(uri), std::move(options));
    co_return std::move(opened);
  }
  auto dialer = make_dialer(uri);
  client::Options2 wanted;
  wanted.name = uri.address();
  wanted.export_name = uri.export_name;
  io::UniqueFd holder;
  if (options.read_only) {
    wanted.client_id = random_id();  // readers are as many as they like
  } else {
    wanted.client_id = client_id_for(options.purpose + " " + uri.text());
    auto held = hold_client_id(wanted.client_id, uri);
    if (!held) co_return std::move(held).error();
    holder = std::move(held).value();
  }
  wanted.read_only = options.read_only;
  wanted.takeover = options.takeover;
  wanted.connections = options.connections;
  wanted.slots = options.slots;
  wanted.dead_time_ms = options.timeout_ms;
  wanted.request_timeout_ms = request_timeout_ms(options.timeout_ms);
  wanted.retry_after_error = false;
  auto opened = co_await client::Netblk2Client::open_on(loop, *dialer, wanted);
  if (!opened)
    co_return make_error(opened.error().code, "cannot open {}: {}{}", uri.text(), opened.error().message,
                         advice(uri, opened.error().code));
  std::unique_ptr<Export> made =
      std::make_unique<Netblk2Export>(std::move(holder), std::move(dialer), std::move(opened).value());
  co_return made;
}

}  // namespace netblk::tools
