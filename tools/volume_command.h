// SPDX-License-Identifier: GPL-2.0-only
// VolumeCommand: what can be asked of an open volume, the same in whichever process has it open (docs/volumes.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"
#include "coro/event.h"
#include "coro/task.h"
#include "io/loop.h"
#include "store/volume/volume.h"

namespace netblk::tools {

using Json = nlohmann::ordered_json;

// What a command reads or writes beside its question and its answer: a file or a pipe here, or the user's behind the socket.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // How many came, fewer than asked only at the end.
  virtual coro::Task<Result<size_t>> read(std::span<std::byte> into) = 0;
  // Ends a read that waits, and what comes later.
  virtual void cancel() = 0;
};
class ByteSink {
 public:
  virtual ~ByteSink() = default;
  virtual coro::Task<Status> write(std::span<const std::byte> from) = 0;
};

// Who has branches of the volume open in this process, and gives them back while they become other contents.
class VolumeUsers {
 public:
  struct Given {
    virtual ~Given() = default;
  };
  virtual ~VolumeUsers() = default;
  // Nobody of them has the branch open any more, until take(). None: nobody had. EBUSY: there are clients, as the message says,
  // and they are not to be disconnected; ETIMEDOUT: they did not end.
  virtual coro::Task<Result<std::shared_ptr<Given>>> give(const std::string& branch, bool disconnect) = 0;
  // They have it open again: one line for each that has not.
  virtual coro::Task<std::vector<std::string>> take(std::shared_ptr<Given> given) = 0;
};

class BranchTurn;

// What runs on an open volume, whoever asked for it.
struct Running {
  // A receive, if there is one.
  ByteSource* receive = nullptr;
  bool gives_up = false;     // it ends, and nothing of it stays
  coro::Event has_given_up;  // for the one that waits for that
  std::list<BranchTurn*> turns;  // in the order that they came
};

// Of who changes what a branch is, as long as it is there: one after the other for each branch. Between give() and take() nobody
// has the branch open, and whoever reserved it then would keep its exports from being opened again.
class BranchTurn {
 public:
  BranchTurn(Running& running, std::string branch) : running_(running), branch_(std::move(branch)) { running_.turns.push_back(this); }
  BranchTurn(const BranchTurn&) = delete;
  BranchTurn& operator=(const BranchTurn&) = delete;
  ~BranchTurn();

  // Ends when all of before have ended.
  coro::Task<void> come();

 private:
  bool has_come() const;

  Running& running_;
  const std::string branch_;
  coro::Event moved_;
};

// All of it on the loop that the volume was opened on.
struct VolumeWork {
  store::volume::Volume& volume;
  io::Loop& loop;
  const std::string& folder;
  Running& running;
  bool served = false;  // asked through the socket: others may use the volume
  VolumeUsers* users = nullptr;
  // Of commands that have them; else none.
  ByteSource* input = nullptr;
  ByteSink* output = nullptr;
  // How far it is; may be lost.
  std::function<void(const Json& progress)> tell = {};
  // Who asked has gone, or wants it no more: it ends soon, with ECANCELED.
  std::function<bool()> stopped = {};
};

// How far it is: a few times a second, and only if somebody wants to know.
class Telling {
 public:
  explicit Telling(const VolumeWork& on) : on_(on), told_ms_(on.loop.now_ms()) {}
  bool is_due() {
    constexpr uint64_t kTellMs = 200;
    if (!on_.tell || on_.loop.now_ms() - told_ms_ < kTellMs) return false;
    told_ms_ = on_.loop.now_ms();
    return true;
  }

 private:
  const VolumeWork& on_;
  uint64_t told_ms_;
};

enum class VolumeBytes : uint8_t { kNone, kIn, kOut };

struct VolumeCommand {
  const char* name;
  bool writes;  // needs the volume open for writing
  VolumeBytes bytes;
  // `asked` is anybody's: members are taken with the functions below.
  coro::Task<Result<Json>> (*run)(VolumeWork& on, const Json& asked);
  // Takes so long that who opens the volume for it does so for writing where that can be, and answers others meanwhile.
  bool serves = false;
};

// None: there is no such command.
const VolumeCommand* find_volume_command(std::string_view name);

// A member of what is asked: EINVAL, in words, where it is of another kind or, without an `otherwise`, missing.
Result<std::string> text_in(const Json& asked, const char* member);
Result<std::string> text_in(const Json& asked, const char* member, std::string otherwise);
Result<uint64_t> number_in(const Json& asked, const char* member);
Result<uint64_t> number_in(const Json& asked, const char* member, uint64_t otherwise);
Result<bool> flag_in(const Json& asked, const char* member, bool otherwise);

}  // namespace netblk::tools
