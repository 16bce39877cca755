// SPDX-License-Identifier: GPL-2.0-only
// ControlStream: lines of JSON, and bytes between them, as both ends of a volume's socket have them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "coro/task.h"
#include "io/stream.h"
#include "volume_command.h"

namespace netblk::tools {

inline constexpr const char* kControlName = "control";
// What both ends say first: {"netblk_volume": kControlVersion, ...}.
inline constexpr uint64_t kControlVersion = 1;

// The socket of an open volume (docs/volumes.md): connections; a question, and an answer; a part of what is streamed beside
// them; how long a question may take, and how long nobody takes an answer.
inline constexpr uint32_t kMaxControlConnections = 16;
inline constexpr size_t kMaxControlQuestionBytes = 64u << 10;
inline constexpr size_t kMaxControlAnswerBytes = 256u << 20;
inline constexpr size_t kMaxControlPartBytes = 1u << 20;
inline constexpr uint64_t kControlQuestionMs = 60'000;
inline constexpr uint64_t kControlAnswerMs = 60'000;
// How long what is streamed may stand still, unless the question says; and what it may say.
inline constexpr uint64_t kControlStallMs = 300'000;
inline constexpr uint64_t kMinControlStallMs = 100, kMaxControlStallMs = 30ull * 24 * 3600 * 1000;
// So often whoever asked is told that it is still being done, or more often if the question's time is short.
inline constexpr uint64_t kControlAliveMs = 5'000;

// On the stream's loop. One that receives and one that sends at a time.
class ControlStream {
 public:
  explicit ControlStream(std::unique_ptr<io::Stream> stream) : stream_(std::move(stream)) {}

  // ECONNRESET: the other end has gone. EMSGSIZE: the line is longer than that. EPROTO: it is no JSON.
  coro::Task<Result<Json>> line(size_t most_bytes);
  // The bytes that follow a line {"bytes": N}: how many came, at least one.
  coro::Task<Result<size_t>> bytes(std::span<std::byte> into);
  // Drops what comes until the end.
  coro::Task<void> drain();

  coro::Task<Status> say(const Json& object);
  // In parts of at most kMaxControlPartBytes, each behind its line {"bytes": N}.
  coro::Task<Status> say_bytes(std::span<const std::byte> from);
  // Lost where there is no room for it now.
  void tell(const Json& object);

  // Nothing more can be said to it. (That nothing more comes from it says nothing: it may have shut its writing half only.)
  bool is_gone() const { return is_gone_; }
  // That have come or gone so far.
  uint64_t moved_bytes() const { return moved_bytes_; }
  io::Stream& stream() { return *stream_; }

 private:
  coro::Task<bool> receive();
  coro::Task<Status> send(std::span<const std::byte> bytes);
  size_t waiting() const { return received_.size() - taken_; }

  std::unique_ptr<io::Stream> stream_;
  std::vector<std::byte> received_;
  size_t taken_ = 0;  // of these
  uint64_t moved_bytes_ = 0;
  bool is_sending_ = false;
  bool is_gone_ = false;
};

}  // namespace netblk::tools
