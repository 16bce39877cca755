// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_served.h"

#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <utility>
#include <vector>

#include "io/address.h"

namespace netblk::tools {

Result<std::unique_ptr<ServedDevice>> ServedDevice::serve(io::Backend& backend, const io::Clock& clock,
                                                          std::shared_ptr<block::Device> device) {
  auto loop = backend.make_loop(clock);
  if (!loop) return std::move(loop).error();
  std::unique_ptr<ServedDevice> served(new ServedDevice(std::move(loop).value()));
  std::vector<std::shared_ptr<server::Export>> exports;
  exports.push_back(std::make_shared<server::Export>(server::ExportConfig{}, std::move(device)));
  served->exports_.replace(std::move(exports));
  server::Shard& shard = served->shard_;
  served->thread_ = std::thread([&shard] { shard.loop().run(shard.serve([&shard] { shard.stop(); })); });
  return served;
}

ServedDevice::~ServedDevice() {
  shard_.drain();
  thread_.join();
}

Result<io::UniqueFd> ServedDevice::connect() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0)
    return make_error(errno, "cannot make a pair of sockets: {}", errno_text(errno));
  io::UniqueFd ours(ends[0]), theirs(ends[1]);
  const auto peer = io::peer_address(theirs.get());
  if (!peer) return peer.error();
  const uint64_t number = number_.fetch_add(1, std::memory_order_relaxed) + 1;
  const server::Gate::Answer answer = gate_.enter(number, peer.value(), true);
  if (!answer.refusal.empty()) return make_error(EAGAIN, "the helper's own server: {}", answer.refusal);
  shard_.adopt(std::move(theirs), number, server::Protocol::kNbd);
  return ours;
}

}  // namespace netblk::tools
