// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_peer.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

#include "client/nbd_handshake.h"
#include "netblk_helper_client.h"
#include "netblk_helper_served.h"
#include "store_spec.h"
#include "transport/tcp.h"

namespace netblk::tools {
namespace {

using nlohmann::json;

constexpr uint64_t kRequestTimeoutS = 10;
constexpr uint64_t kStoreTimeoutS = 30;
constexpr uint64_t kMarginS = 5;
constexpr uint64_t kStoreLockMs = 10'000;

Result<NbdConnection> greet(io::UniqueFd fd, const std::string& server, const std::string& export_name,
                            uint64_t timeout_ms) {
  auto agreed = client::nbd_handshake(fd.get(), client::nbd_kernel_wish(export_name), timeout_ms);
  if (!agreed) return make_error(agreed.error().code, "{}: {}", server, agreed.error().message);
  return NbdConnection{.fd = std::move(fd),
                       .size_bytes = agreed.value().size_bytes,
                       .flags = agreed.value().flags,
                       .min_block_bytes = agreed.value().min_block_bytes,
                       .max_payload_bytes = agreed.value().max_payload_bytes};
}

Result<io::UniqueFd> unix_connect(const std::string& path, uint64_t timeout_ms) {
  io::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return make_error(ENAMETOOLONG, "{}: the path of a socket has at most {} bytes", path, sizeof address.sun_path - 1);
  std::memcpy(address.sun_path, path.c_str(), path.size());
  // Only a listener whose queue is full keeps a connect waiting. The kernel would obey the limit later on.
  const timeval limit{.tv_sec = static_cast<time_t>(timeout_ms / 1000) + 1, .tv_usec = 0};
  const timeval none{};
  if (fd.valid()) (void)::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  if (!fd.valid() || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0)
    return make_error(errno, "cannot connect to {}: {}", path, errno_text(errno));
  (void)::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &none, sizeof none);
  return fd;
}

// An NBD server: its sockets go to the kernel as they are.
class DirectPeer final : public NbdPeer {
 public:
  DirectPeer(const ServerUri& uri, const AttachOptions& options) : uri_(uri), options_(options) {}

  Result<NbdConnection> connect(uint64_t timeout_ms) override {
    auto fd = uri_.socket.empty() ? transport::tcp_connect(uri_.host, uri_.port, timeout_ms)
                                  : unix_connect(uri_.socket, timeout_ms);
    if (!fd) return std::move(fd).error();
    return greet(std::move(fd).value(), uri_.text(), uri_.export_name, timeout_ms);
  }
  uint64_t request_timeout_s() const override {
    return options_.timeout_given ? (options_.timeout_ms + 999) / 1000 : kRequestTimeoutS;
  }
  json live_state() override { return json::object(); }
  std::string reset_lost(const std::string&) override { return "nothing"; }

 private:
  const ServerUri uri_;
  const AttachOptions options_;
};

// A disk of this process: the kernel is the client of our own NBD server, which is as good as the disk is. A request is
// late only if the disk itself has given up on it.
class ServedPeer : public NbdPeer {
 public:
  Result<NbdConnection> connect(uint64_t timeout_ms) override {
    auto fd = served_->connect();
    if (!fd) return std::move(fd).error();
    return greet(std::move(fd).value(), "the helper's own server", "", timeout_ms);
  }

 protected:
  Status serve(io::Backend& backend, const io::Clock& clock, std::shared_ptr<block::Device> device) {
    auto served = ServedDevice::serve(backend, clock, std::move(device));
    if (!served) return std::move(served).error();
    served_ = std::move(served).value();
    return Ok{};
  }
  // Before the disk goes.
  void end() { served_.reset(); }

 private:
  std::unique_ptr<ServedDevice> served_;
};

class NetblkPeer final : public ServedPeer {
 public:
  explicit NetblkPeer(const AttachOptions& options) : options_(options) {}
  ~NetblkPeer() override {
    end();
    client_.close();
  }
  Status open(io::Backend& backend, const io::Clock& clock, const ServerUri& uri) {
    Status opened = client_.open(backend, clock, uri, options_, "nbd");
    if (!opened) return opened;
    return serve(backend, clock, std::shared_ptr<block::Device>(&client_.device(), [](block::Device*) {}));
  }
  uint64_t request_timeout_s() const override {
    const uint64_t client_ms = options_.timeout_given ? 4 * options_.timeout_ms : client::Options2{}.request_timeout_ms;
    return client_ms / 1000 + kMarginS;
  }
  json live_state() override { return client_.live_state(); }
  std::string reset_lost(const std::string& disk) override { return client_.reset_lost(disk); }

 private:
  const AttachOptions options_;
  HelperClient client_;
};

class StorePeer final : public ServedPeer {
 public:
  explicit StorePeer(const AttachOptions& options) : options_(options) {}
  ~StorePeer() override { end(); }
  Status open(io::Backend& backend, const io::Clock& clock, const std::string& store) {
    const Surroundings surroundings{.state_folder = {}, .lock_wait_ms = kStoreLockMs, .trace = {}};
    auto device = open_store(backend, store, options_.read_only, surroundings, store);
    if (!device) return std::move(device).error();
    return serve(backend, clock, std::move(device).value());
  }
  uint64_t request_timeout_s() const override {
    return options_.timeout_given ? (options_.timeout_ms + 999) / 1000 : kStoreTimeoutS;
  }
  json live_state() override { return json::object(); }
  std::string reset_lost(const std::string&) override { return "nothing"; }

 private:
  const AttachOptions options_;
};

}  // namespace

Result<std::unique_ptr<NbdPeer>> open_nbd_peer(io::Backend& backend, const io::Clock& clock, const NbdSource& source,
                                               const AttachOptions& options) {
  if (source.is_store()) {
    auto peer = std::make_unique<StorePeer>(options);
    Status opened = peer->open(backend, clock, source.text);
    if (!opened) return std::move(opened).error();
    return std::unique_ptr<NbdPeer>(std::move(peer));
  }
  if (source.is_netblk()) {
    auto peer = std::make_unique<NetblkPeer>(options);
    Status opened = peer->open(backend, clock, *source.uri);
    if (!opened) return std::move(opened).error();
    return std::unique_ptr<NbdPeer>(std::move(peer));
  }
  return std::unique_ptr<NbdPeer>(std::make_unique<DirectPeer>(*source.uri, options));
}

}  // namespace netblk::tools
