// SPDX-License-Identifier: GPL-2.0-only
// ServedVolume: the exports by which this process serves a volume, and how they give a branch of it back while it becomes other
// contents (server/handover.h).
#pragma once

#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "coro/event.h"
#include "io/loop.h"
#include "server/handover.h"
#include "volume_command.h"

namespace netblk::tools {

using HandOver = std::function<void(std::shared_ptr<server::Handover>)>;

class ServedVolume final : public VolumeUsers {
 public:
  // hand_over: none where no server is. keep: as a handover's, of what has the volume open.
  ServedVolume(io::Loop& loop, HandOver hand_over, std::function<std::shared_ptr<void>()> keep)
      : loop_(loop), hand_over_(std::move(hand_over)), keep_(std::move(keep)) {}

  // Thread-safe. Of each device of it that an export has; the volume's own branch has no name.
  void add(const std::string& branch, const std::string& user);
  void remove(const std::string& branch, const std::string& user);

  // These on the loop.
  coro::Task<Result<std::shared_ptr<Given>>> give(const std::string& branch, bool disconnect) override;
  coro::Task<std::vector<std::string>> take(std::shared_ptr<Given> given) override;
  // Nothing is waited for any more: the server may be waiting for the volume.
  void stop();

 private:
  struct Call;
  coro::Task<void> answer_of(Call& call);
  bool has_open(const std::string& branch);
  std::vector<std::string> users_of(const std::string& branch);

  io::Loop& loop_;
  const HandOver hand_over_;
  const std::function<std::shared_ptr<void>()> keep_;
  std::mutex mutex_;
  std::multiset<std::pair<std::string, std::string>> users_;  // guarded by mutex_
  std::list<std::shared_ptr<Call>> calls_;                    // of the loop
  bool stopped_ = false;                                      // of the loop
};

}  // namespace netblk::tools
