// SPDX-License-Identifier: GPL-2.0-only
// Netblk2Client: a disk that a netblk/2 server holds, as a block::Device. docs/client-library.md is its guide.
//
// What the user sees:
//   - Requests of any loop's thread are in flight together, in no order among themselves, and each ends exactly once, on
//     the thread of its own loop. One longer than the server takes is split, and ends once, with its first error.
//   - EINVAL: outside the device or not whole blocks; EROFS, ENOSPC, EIO, ...: the server's. EOPNOTSUPP: kTrim where
//     the server cannot (Geometry::can_trim).
//   - A lost connection is made again, and what was unanswered is replayed so that nothing is applied twice and
//     nothing takes effect after its request has ended; the user sees a pause.
//   - ETIMEDOUT: the request's own deadline passed. EIO and State::kError: no server for the dead time.
//   - lost(): the server came back without its memory of acknowledged writes that were not flushed. Every kFlush, and
//     every change with FUA, ends with EIO until reset_lost(); reads and plain writes go on.
//   - State::kError for good: another client took the disk over (ESTALE), or the store was replaced by another one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "block/device.h"
#include "client/netblk2.h"
#include "coro/task.h"
#include "io/dialer.h"
#include "io/loop.h"

namespace netblk::client {

class Session2;

class Netblk2Client final : public block::Device {
 public:
  // With a thread and a loop of its own. Returns when the first connection is welcomed, or says why there is none:
  // ENOENT: no such export; EBUSY: another client writes; EPERM; EOPNOTSUPP: a feature that must be; EPROTONOSUPPORT:
  // the server does not speak netblk/2; ETIMEDOUT, ECONNREFUSED, ...: it cannot be reached. The clock outlives it.
  static Result<std::unique_ptr<Netblk2Client>> open(io::Backend& backend, const io::Clock& clock,
                                                     std::unique_ptr<io::Dialer> dialer, const Options2& options);

  // The same on the caller's loop, whose thread it is called on, and without a thread: close() must have ended before
  // the client is destroyed. loop and dialer outlive it. random: a simulator's own; empty: the kernel's.
  static coro::Task<Result<std::unique_ptr<Netblk2Client>>> open_on(io::Loop& loop, io::Dialer& dialer,
                                                                    const Options2& options, Random random = {});

  // Of a client with a thread: every request has ended before. Says goodbye, so that the server ends the session. Blocks,
  // at most twice close_timeout_ms and a connection attempt under way.
  ~Netblk2Client() override;

  // Waits for what is in flight, says goodbye (the server ends the session) and closes. What has not ended by
  // close_timeout_ms ends with EIO. On the loop's thread; only of a client from open_on().
  coro::Task<void> close();
  // As a client whose machine went down: no waiting, no goodbye; requests end with EIO. The server keeps the session.
  coro::Task<void> drop();

  // The loop of the connections: a front end whose requests belong to it saves two changes of thread.
  io::Loop& loop();

  // These are thread-safe.
  Session2Info info() const;
  Status2 status() const;
  State state() const;
  bool lost() const;
  // The owner has taken note of the loss: flushes work again, for what is written from now on.
  void reset_lost();

  block::Generation generation() const override;

 protected:
  void start(block::Request& request, block::Completion completion) override;

 private:
  struct Owned;
  Netblk2Client(const Session2Info& info, std::unique_ptr<Session2> session);

  const uint32_t block_bytes_;
  std::unique_ptr<Owned> owned_;  // the thread, its loop and its dialer; null on a caller's loop
  std::unique_ptr<Session2> session_;
};

}  // namespace netblk::client
