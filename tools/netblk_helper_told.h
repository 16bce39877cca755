// SPDX-License-Identifier: GPL-2.0-only
// What the users of a disk were told of their changes, kept so that it outlives the helper that told them: its successor
// judges whether anything of it may be gone (DESIGN, law 3).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <utility>

#include "attach/ublk/ublk_disk.h"
#include "base/result.h"
#include "block/device.h"
#include "netblk_state.h"

namespace netblk::tools {

class ToldFile {
 public:
  // The file of a disk, made when it is not there.
  static Result<ToldFile> open(const std::string& path);

  attach::UblkTold& told() const { return *told_; }
  // After a loss that was taken note of, what came before it counts until the next flush: too many, and never too few.
  uint64_t unflushed() const { return told_->acknowledged - told_->flushed; }

 private:
  struct Unmap {
    void operator()(attach::UblkTold* told) const;
  };
  explicit ToldFile(attach::UblkTold* told) : told_(told) {}
  std::unique_ptr<attach::UblkTold, Unmap> told_;
};

// Counts there what its users are told; for a front end that does not do so itself. All of its requests are of one loop.
class ToldDevice final : public block::Device {
 public:
  // Both outlive it.
  ToldDevice(block::Device& below, attach::UblkTold& told) : Device(below.geometry()), below_(below), told_(told) {}

  // Acknowledged changes may be gone: until this is taken back every flush, and every change with FUA, fails with EIO.
  // Thread-safe; the requests that come after it obey.
  void set_lost(bool lost) { lost_.store(lost, std::memory_order_release); }

  void refresh_size() override;
  int read_fd() const override { return below_.read_fd(); }
  block::Generation generation() const override { return below_.generation(); }

 protected:
  void start(block::Request& request, block::Completion completion) override;

 private:
  struct Counted;

  block::Device& below_;
  attach::UblkTold& told_;
  std::atomic<bool> lost_{false};
};

// The first helper's: which contents its users see.
void see_contents(Record& record, const std::optional<block::Generation>& generation);

// Each second: what a successor has to know is written down. generation: as it was before `live` was asked for.
void note_contents(Record& record, const std::optional<block::Generation>& generation, const nlohmann::json& live);

// A successor's, before anybody reads through it: what the users were told before, they were told by a process that has
// gone. Another store is an error, a loss is noted in the record, which is written then. unflushed: ToldFile's.
Status judge_successor(Record& record, const std::optional<block::Generation>& generation, uint64_t unflushed);

void set_lost(Record& record, std::string why);

}  // namespace netblk::tools
