// SPDX-License-Identifier: GPL-2.0-only
// WholeLife: one process that uses all of a volume, one request after the other: branches, snapshots, moments, sizes, settings.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "coro/task.h"
#include "sim/sim_loop.h"
#include "sim/volume/backup.h"
#include "sim/volume/life.h"
#include "sim/volume/whole_model.h"

namespace netblk::sim {

// The disk as a crash would find it, and what its user knew.
struct WholeMoment {
  DiskState disk;
  WholeModel model;
  VolumeModel::Loss loss;
};

class WholeLife {
 public:
  WholeLife(World& world, const Shape& shape, LyingDisk& disk, WholeModel& model, const LifePlan& plan, Backup* backup = nullptr);

  // As Life::run().
  VolumeModel::Loss run(VolumeModel::Loss before);
  std::vector<WholeMoment> take_moments() { return std::move(moments_); }

 private:
  coro::Task<void> live();
  coro::Task<void> use();
  coro::Task<void> find(WholeFound& found);
  coro::Task<void> read_whole(block::Device& device, Contents& contents);
  coro::Task<bool> read_some(block::Device& device, uint64_t first, uint64_t count, const Contents& expected);
  coro::Task<void> check_all();

  coro::Task<void> ask_something();
  coro::Task<void> ask_change();
  coro::Task<void> ask_read();
  coro::Task<void> ask_flush();
  coro::Task<void> ask_resize();
  coro::Task<void> ask_snapshot();
  coro::Task<void> ask_clone();
  coro::Task<void> ask_remove();
  coro::Task<void> ask_rewind();
  coro::Task<void> ask_undo();
  coro::Task<void> ask_moment();
  coro::Task<void> ask_set();
  // To the backup.
  coro::Task<void> ask_send();

  std::unique_ptr<block::Device> open(const std::string& branch);
  const std::string& any_branch();
  void rewound(const std::string& branch, const Image& image, uint64_t lsn);
  // A record of names has been asked for, and this was the answer: 0 or an errno.
  void answered(const char* what, int error, uint64_t lsn);
  // That it was refused is right.
  void refused(const char* what, int error, bool rightly);
  bool gone_by(int error, uint64_t lsn) const;
  bool may_fail(int error) const;
  bool disk_has_failed() const { return shape_.mode == Mode::kFailures && disk_.failures() != failures_before_; }
  void watch(LyingDisk::Step step);
  void crash();

  World& world_;
  Random& random_;
  const Shape& shape_;
  LyingDisk& disk_;
  WholeModel& model_;
  const LifePlan plan_;
  Backup* const backup_;
  SimLoop loop_;
  SimEnvironment environment_;
  std::unique_ptr<store::volume::Volume> volume_;
  std::vector<WholeMoment> moments_;
  VolumeModel::Loss before_ = VolumeModel::Loss::kNothing;
  const uint64_t failures_before_;
  uint64_t steps_ = 0;
  std::atomic<bool> poisoned_{false};
  bool adopted_ = false;
  bool dead_ = false;
  bool failed_ = false;
};

}  // namespace netblk::sim
