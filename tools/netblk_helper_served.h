// SPDX-License-Identifier: GPL-2.0-only
// A Device as the peer of the kernel's nbd: our own NBD server in this process, at the other end of local sockets.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>

#include "block/device.h"
#include "io/fd.h"
#include "io/loop.h"
#include "server/exports.h"
#include "server/gate.h"
#include "server/refusal_log.h"
#include "server/shard.h"

namespace netblk::tools {

class ServedDevice {
 public:
  static Result<std::unique_ptr<ServedDevice>> serve(io::Backend& backend, const io::Clock& clock,
                                                     std::shared_ptr<block::Device> device);
  ServedDevice(const ServedDevice&) = delete;
  ServedDevice& operator=(const ServedDevice&) = delete;
  // What was accepted is answered.
  ~ServedDevice();

  // A new socket of which the server has the other end.
  Result<io::UniqueFd> connect();

 private:
  explicit ServedDevice(std::unique_ptr<io::Loop> loop)
      : shared_{exports_, gate_, refusals_, nullptr, nullptr}, shard_(std::move(loop), shared_, server::Timeouts{}) {}

  server::ExportTable exports_;
  server::Gate gate_;
  server::RefusalLog refusals_;
  server::ShardContext shared_;
  std::atomic<uint64_t> number_{0};
  server::Shard shard_;
  std::thread thread_;
};

}  // namespace netblk::tools
