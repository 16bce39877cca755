// SPDX-License-Identifier: GPL-2.0-only
#include "server_places.h"

#include <utility>

#include "transport/tcp.h"

namespace netblk::tools {
namespace {

class TcpPlace final : public server::Place {
 public:
  explicit TcpPlace(io::UniqueFd fd) : fd_(std::move(fd)) {}
  Result<io::UniqueFd> listen() override {
    if (auto listening = transport::start_listening(fd_.get()); !listening) return std::move(listening).error();
    return std::move(fd_);
  }

 private:
  io::UniqueFd fd_;
};

}  // namespace

Result<std::unique_ptr<server::Place>> take_place(const server::ListenConfig& where) {
  auto fd = transport::tcp_bind(where.host, where.port);
  if (!fd) return std::move(fd).error();
  return std::unique_ptr<server::Place>(std::make_unique<TcpPlace>(std::move(fd).value()));
}

}  // namespace netblk::tools
