// SPDX-License-Identifier: GPL-2.0-only
// Netblk1Client: a disk that a netblk/1 server holds, as a block::Device.
//
// One thread, one loop, one connection. Requests of any loop's thread are pipelined in their order of arrival and
// completed at home. What the user sees when the server fails:
//   - A lost connection, a reply that is not whole `timeout_ms` after it became the oldest one due, or any byte that
//     the protocol does not allow: the connection is reset, made anew, and every unanswered request is sent again in
//     the original order. A request is never answered from a reply that is not whole.
//   - No answer for `timeout_ms` × `tries`, or `tries` connections in a row that answered nothing: every waiting
//     request ends with EIO, and the state is `error`. Requests then fail with EIO at once.
//   - In `error` a new connection is tried every second. When one of them answers a read of the last sector, the state
//     is `connected` and the disk goes on.
// netblk/1 has no flush: a WRITE is durable when it is answered. kFlush ends when the requests before it have ended.
// It has no trim (EOPNOTSUPP); kWriteZeroes is sent as a WRITE of zeroes.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "block/device.h"
#include "client/state.h"
#include "io/loop.h"

namespace netblk::client {

struct Options {
  std::string name = "server";  // for the log
  uint64_t size_bytes = 0;  // netblk/1 carries no size; a positive multiple of 512
  bool read_only = false;
  uint64_t timeout_ms = 5000;  // of one try; at least 1
  unsigned tries = 3;          // at least 1
  uint64_t retry_ms = 500;     // between two connections while requests may wait
  uint64_t error_retry_ms = 1000;
  // Connections in a row that were made and answered nothing are spaced by this.
  uint64_t unanswered_retry_ms = 1000;
};

// Makes a connected stream socket within the time; called on a thread of its own, one call at a time.
using Connect = std::function<Result<io::UniqueFd>(uint64_t timeout_ms)>;

class Netblk1Client final : public block::Device {
 public:
  // Connects and reads the last sector, once each: a failure is told in words (a size beyond the export's end too).
  static Result<std::unique_ptr<Netblk1Client>> open(io::Backend& backend, const io::Clock& clock, Connect connect,
                                                     const Options& options);
  // Says DISCONNECT and ends the thread; waits for a connection attempt under way, so at most `timeout_ms`. Every
  // request has ended before.
  ~Netblk1Client() override;

  // The loop of the connection: a front end whose requests belong to it saves two changes of thread.
  io::Loop& loop();

  State state() const;
  // Connections made after the first.
  uint64_t reconnects() const;
  // Why the last connection or try ended; empty at first.
  std::string last_error() const;
  // What netblk/1 has of it: no losses, no times of the server's.
  ClientStatus status() const;

 protected:
  void start(block::Request& request, block::Completion completion) override;

 private:
  class Worker;
  Netblk1Client(const Options& options, std::unique_ptr<Worker> worker);
  std::unique_ptr<Worker> worker_;
};

}  // namespace netblk::client
