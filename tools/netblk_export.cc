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

#include "netblk_state.h"
#include "transport/tcp_dialer.h"

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

const char* advice(int error) {
  switch (error) {
    case EBUSY: return "; wait for it, or take the disk over with --force";
    case ENOENT: return "; `netblk list` shows the exports";
    case EPROTONOSUPPORT: return "; this needs a netblk/2 server";
    default: return "";
  }
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
  const client::Status2 now = client_->status();
  if (now.lost) return now.lost_reason;
  return now.state == client::State::kConnected ? "" : now.last_error;
}

coro::Task<Result<std::unique_ptr<Export>>> open_export(io::Loop& loop, ServerUri uri, ExportOptions options) {
  auto dialer = std::make_unique<transport::TcpDialer>(uri.host, uri.port);
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
                         advice(opened.error().code));
  co_return std::make_unique<Export>(std::move(holder), std::move(dialer), std::move(opened).value());
}

}  // namespace netblk::tools
