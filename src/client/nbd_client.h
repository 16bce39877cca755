// SPDX-License-Identifier: GPL-2.0-only
// NbdClient: a disk that an NBD server holds, as a block::Device. docs/client-library.md is its guide.
//
// What the user sees:
//   - Requests of any loop's thread are in flight together, in no order among themselves, and each ends exactly once, on
//     the thread of its own loop. One longer than the server takes is split, and ends once, with its first error.
//   - EINVAL: outside the device or not whole blocks; EPERM, ENOSPC, EIO, ...: the server's. EOPNOTSUPP: kTrim or
//     kWriteZeroes where the server has none. FUA of a server without it is a FLUSH after the change. A server that
//     announces no FLUSH has no cache that it could be asked to write: kFlush ends at once.
//   - A lost connection is made again, and what was unanswered is sent again. NBD has no fence: a change may take effect
//     twice, and one that ended with an error may take effect after that. Where this matters, use netblk/2.
//   - ETIMEDOUT: the request's own deadline passed. EIO and State::kError: no server for the dead time.
//   - lost(): a connection was made again while acknowledged changes had not been flushed (unless
//     NbdOptions::trust_reconnect): every kFlush, and every change with FUA, ends with EIO until reset_lost().
//   - State::kError for good: the export that came back is smaller, read-only, or can less than before.
#pragma once

#include <cstdint>
#include <memory>

#include "base/result.h"
#include "block/device.h"
#include "client/nbd.h"
#include "coro/task.h"
#include "io/dialer.h"
#include "io/loop.h"

namespace netblk::client {

class NbdSession;

class NbdClient final : public block::Device {
 public:
  // With a thread and a loop of its own. Returns when the first connection is negotiated, or says why there is none:
  // ENOENT: no such export; EPERM; EPROTONOSUPPORT: what is there speaks no NBD that is spoken here, or wants TLS;
  // ETIMEDOUT, ECONNREFUSED, ...: it cannot be reached. The clock outlives it.
  static Result<std::unique_ptr<NbdClient>> open(io::Backend& backend, const io::Clock& clock,
                                                 std::unique_ptr<io::Dialer> dialer, const NbdOptions& options);

  // The same on the caller's loop, whose thread it is called on, and without a thread: close() must have ended before
  // the client is destroyed. loop and dialer outlive it.
  static coro::Task<Result<std::unique_ptr<NbdClient>>> open_on(io::Loop& loop, io::Dialer& dialer,
                                                                const NbdOptions& options);

  // Of a client with a thread: every request has ended before. Says goodbye. Blocks, at most twice close_timeout_ms and a
  // connection attempt under way.
  ~NbdClient() override;

  // Waits for what is in flight, says goodbye and closes. What has not ended by close_timeout_ms ends with EIO. On the
  // loop's thread; only of a client from open_on().
  coro::Task<void> close();

  // The loop of the connections: a front end whose requests belong to it saves two changes of thread.
  io::Loop& loop();

  // These are thread-safe.
  NbdInfo info() const;
  ClientStatus status() const;
  State state() const;
  bool lost() const;
  // The owner has taken note of the loss: flushes work again, for what is written from now on.
  void reset_lost();

 protected:
  void start(block::Request& request, block::Completion completion) override;

 private:
  struct Owned;
  NbdClient(const NbdInfo& info, bool read_only, std::unique_ptr<NbdSession> session);
  int refused(const block::Request& request) const;

  const uint32_t block_bytes_;
  const uint16_t flags_;
  std::unique_ptr<Owned> owned_;  // the thread, its loop and its dialer; null on a caller's loop
  std::unique_ptr<NbdSession> session_;
};

}  // namespace netblk::client
