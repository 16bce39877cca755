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
#include "netblk_helper_disk.h"
#include "netblk_helper_served.h"
#include "netblk_helper_told.h"
#include "transport/tcp.h"

namespace netblk::tools {
namespace {

using nlohmann::json;

constexpr uint64_t kRequestTimeoutS = 10;

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
  std::optional<uint64_t> size_bytes() override { return std::nullopt; }
  std::optional<block::Generation> generation() override { return std::nullopt; }
  void set_lost(bool) override {}
  json live_state() override { return json::object(); }
  std::string reset_lost(const std::string&) override { return "nothing"; }

 private:
  const ServerUri uri_;
  const AttachOptions options_;
};

// A disk of this process: the kernel is the client of our own NBD server, which is as good as the disk is, and ends each
// request by the disk's own deadlines.
class ServedPeer final : public NbdPeer {
 public:
  Status open(io::Backend& backend, const io::Clock& clock, const Source& source, const AttachOptions& options,
              const ToldFile& told) {
    auto disk = open_helper_disk(backend, clock, source, options, "nbd", told.unflushed());
    if (!disk) return std::move(disk).error();
    disk_ = std::move(disk).value();
    told_ = std::make_shared<ToldDevice>(disk_->device(), told.told());
    auto served = ServedDevice::serve(backend, clock, told_);
    if (!served) return std::move(served).error();
    served_ = std::move(served).value();
    return Ok{};
  }

  Result<NbdConnection> connect(uint64_t timeout_ms) override {
    auto fd = served_->connect();
    if (!fd) return std::move(fd).error();
    return greet(std::move(fd).value(), "the helper's own server", "", timeout_ms);
  }
  uint64_t request_timeout_s() const override { return 0; }
  std::optional<uint64_t> size_bytes() override {
    disk_->refresh();
    told_->refresh_size();
    return told_->size_bytes();
  }
  std::optional<block::Generation> generation() override { return disk_->generation(); }
  void set_lost(bool lost) override { told_->set_lost(lost); }
  json live_state() override {
    json live = disk_->live_state();
    // What was refused or read without asking the device below counts, too.
    const block::Counters counters = told_->counters();
    live["read_bytes"] = counters.read_bytes;
    live["write_bytes"] = counters.write_bytes;
    live["errors"] = counters.errors;
    return live;
  }
  std::string reset_lost(const std::string& disk) override { return disk_->reset_lost(disk); }

 private:
  std::unique_ptr<HelperDisk> disk_;
  std::shared_ptr<ToldDevice> told_;
  std::unique_ptr<ServedDevice> served_;  // ends before the disk
};

}  // namespace

Result<std::unique_ptr<NbdPeer>> open_nbd_peer(io::Backend& backend, const io::Clock& clock, const Source& source,
                                               const AttachOptions& options, const ToldFile& told) {
  if (source.is_nbd()) return std::unique_ptr<NbdPeer>(std::make_unique<DirectPeer>(*source.uri, options));
  auto peer = std::make_unique<ServedPeer>();
  Status opened = peer->open(backend, clock, source, options, told);
  if (!opened) return std::move(opened).error();
  return std::unique_ptr<NbdPeer>(std::move(peer));
}

}  // namespace netblk::tools
