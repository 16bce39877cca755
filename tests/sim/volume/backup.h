// SPDX-License-Identifier: GPL-2.0-only
// Backup: a volume on a disk of its own that receives the snapshots of another one, in lives that end by themselves, killed or with
// the power cut, from streams that break. Every step of a receive is durable when it is answered: it is as it was before the
// step, or as it is behind it.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "coro/task.h"
#include "sim/sim_loop.h"
#include "sim/volume/life.h"
#include "sim/volume/whole_model.h"
#include "store/volume/stream.h"

namespace netblk::sim {

class Backup {
 public:
  explicit Backup(World& world) : world_(world), random_(world.random) {}

  // What the sender asks first.
  std::optional<store::volume::Receiving> unfinished() const { return settled_.receiving; }
  // Which its disk is as.
  std::optional<store::volume::SnapshotIdentity> base() const;
  bool has(const store::volume::SnapshotIdentity& identity) const;
  bool has_stream() const { return !stream_.empty(); }

  // A stream, perhaps one that breaks. One of a whole snapshot that does not go on with anything comes to a new volume.
  void take(std::vector<std::byte> stream, const store::volume::Transfer& what, const Image& image);
  // What is unfinished cannot be sent any more.
  void give_up() { gives_up_ = true; }

  // One life of its process.
  void run();

 private:
  struct Got {
    std::string name;
    store::volume::SnapshotIdentity identity;
    Image image;
  };
  struct State {
    Image shown;
    std::vector<Got> got;
    std::optional<store::volume::Receiving> receiving;
  };
  struct Found {
    Contents shown{0};
    std::vector<std::pair<std::string, store::volume::SnapshotIdentity>> names;
    std::vector<Contents> contents;
    std::optional<store::volume::Receiving> receiving;
  };

  void make();
  bool misplace();
  coro::Task<void> live(SimLoop& loop);
  coro::Task<void> use(SimLoop& loop);
  coro::Task<void> find(SimLoop& loop, Found& found);
  void adopt(const Found& found);
  coro::Task<void> roll_back();
  coro::Task<void> ask_give_up();
  coro::Task<void> receive(SimLoop& loop);
  // 0: it ended; else why the stream ends here.
  coro::Task<int> records(SimLoop& loop, block::Device& disk, store::volume::StreamReader& reader, const store::volume::StreamHeader& header);
  coro::Task<int> apply(SimLoop& loop, block::Device& disk, const store::volume::StreamRecord& record, std::byte* payload, uint64_t end);
  coro::Task<bool> keep(uint64_t offset);
  // Empty: it is that.
  static std::string difference(const Found& found, const State& state);
  void begin(State after) { after_ = std::move(after); }
  bool end(const char* what, int error);
  bool may_fail(int error) const;
  void watch(LyingDisk::Step step);
  void crash();

  World& world_;
  Random& random_;
  Shape shape_;
  std::unique_ptr<LyingDisk> disk_;
  std::unique_ptr<store::volume::Volume> volume_;
  State settled_;
  std::optional<State> after_;  // of a step that was not answered
  std::vector<std::byte> stream_;
  store::volume::Transfer what_;  // that is sent
  Image image_;
  bool breaks_ = false;  // the stream is cut or damaged
  bool gives_up_ = false;
  LifePlan plan_;
  VolumeModel::Loss loss_ = VolumeModel::Loss::kNothing;
  uint64_t failures_before_ = 0;
  uint64_t steps_ = 0;
  uint64_t generation_ = 0;
  bool poisoned_ = false;
  bool dead_ = false;
  bool failed_ = false;
};

// What `send` makes: the records that tell what of the device is another than at `since` (null: all of it).
coro::Task<int> send_stream(io::Loop& loop, Random& random, block::Device& device, const block::Base* since,
                            const store::volume::StreamHeader& header, std::vector<std::byte>& stream);

}  // namespace netblk::sim
