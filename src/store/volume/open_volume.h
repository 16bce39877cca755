// SPDX-License-Identifier: GPL-2.0-only
// OpenVolume: a volume that is open. Its life is in open_volume.cc, its names and points in volume_points.cc, its keys in
// volume_keys.cc, check() in volume_check.cc, what it receives in volume_receive.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "store/volume/background.h"
#include "store/volume/checkpoint.h"
#include "store/volume/core.h"
#include "store/volume/log.h"
#include "store/volume/recovery.h"
#include "store/volume/volume.h"

namespace netblk::store::volume {

// Not zero.
Id random_id_of(Environment& environment);

class OpenVolume final : public Volume {
 public:
  OpenVolume(io::Loop& loop, std::unique_ptr<io::File> file, const VolumeOptions& options, Environment& environment,
             const Start& start)
      : loop_(loop),
        core_(std::move(file), options, environment, start.superblock, start.cipher,
              Segments(start.superblock.segment_shift, start.manifest.segments)),
        checkpoint_(core_, start.manifest.unknown),
        background_(loop, core_, checkpoint_),
        log_(core_, [this] { background_.want(); }) {
    core_.position = start.manifest.log;
    core_.position.incarnation = start.superblock.incarnation;
    core_.durable_lsn = start.manifest.log.durable_lsn;
    core_.owners = start.manifest.owners;
    core_.generation = start.superblock.generation;
    core_.superblock_generation = start.superblock.generation;
    const Points points(start.manifest);
    core_.use_settings(points.settings());
    core_.history_from = points.history_from();
    core_.history = History(start.manifest.history, most_moments(core_.segments.bytes()));
    core_.index = std::make_unique<Index>(checkpoint_, core_.uuid, start.manifest.index, start.manifest.log.next_lsn - 1, points,
                                          options.cache_bytes, core_.metadata_cipher.get());
    core_.base_of = [this](std::string_view name) { return base_of(name); };
    core_.before_checkpoint = [this] { return move_history(); };
    core_.sync_file = [this](io::Loop& on) { return log_.sync_file(on); };
    checkpoint_.opened_by(start.manifest);
    was_clean_ = !start.superblock.open;
    by_other_ = start.by_other;
    forgets_ = start.forgets;
  }

  coro::Task<Status> open();

  VolumeInfo info() const override;
  std::vector<SnapshotInfo> snapshots() const override { return core_.index->points().snapshots(); }
  std::vector<BranchInfo> branches() const override { return core_.index->points().branches(); }
  std::vector<Setting> settings() const override { return all_settings(core_.index->points().settings()); }
  Result<FoundPoint> find_point(const PointName& name, std::string_view of) const override;
  Result<std::unique_ptr<block::Device>> open_device(const PointName& point) override;
  coro::Task<Result<uint64_t>> snapshot(std::string name, std::string of) override;
  coro::Task<Result<uint64_t>> clone(PointName from, std::string name, std::string of) override;
  coro::Task<Result<uint64_t>> rewind(PointName to, std::string of) override;
  coro::Task<Result<uint64_t>> undo_rewind(std::string of) override;
  Status can_rewind(const PointName& to, std::string_view of) const override;
  Status can_undo_rewind(std::string_view of) const override;
  coro::Task<Status> resize(uint64_t size_bytes, std::string of) override;
  coro::Task<Status> set(std::string key, std::string value) override;
  coro::Task<Status> remove(std::string name) override;
  std::optional<Receiving> receiving() const override;
  coro::Task<Result<std::unique_ptr<block::Device>>> receive(Transfer what) override;
  coro::Task<Status> keep_received(uint64_t offset) override;
  coro::Task<Status> end_receiving() override;
  coro::Task<Status> give_up_receiving() override;
  coro::Task<Result<CheckReport>> check() override;
  coro::Task<Result<CheckReport>> check(const CheckOptions& options) override;
  std::vector<KeySlotInfo> keys() const override { return used_slots(core_.slots.current().key_slots); }
  Status check_key(const UserKey* key) const override;
  coro::Task<Result<uint32_t>> add_key(const UserKey& known, const UserKey& another) override;
  coro::Task<Result<uint32_t>> change_key(const UserKey& known, const UserKey& another) override;
  coro::Task<Status> remove_key(const UserKey& known, uint32_t slot) override;
  coro::Task<Status> close() override;

 private:
  bool writable() const { return !core_.options.read_only && refused_.empty(); }
  // Answered changes that were not synced.
  bool may_have_lost() const { return replayed_.cut || forgets_ || (!was_clean_ && !core_.options.cache_survived); }
  coro::Task<Status> begin_writing();
  using KeyChange = std::function<Status(KeySlots&, const Unlocked&, const RandomBytes&)>;
  coro::Task<Status> change_keys(const UserKey& known, bool takes_long, const KeyChange& change);
  coro::Task<int> take_again(uint64_t offset);

  std::shared_ptr<const block::Base> base_of(std::string_view name);
  // Names and points; with core_.mutex held.
  Result<FoundPoint> find(const Points& points, const PointName& name, std::string_view of) const;
  Result<FoundPoint> find_moment(const Points& points, const PointName& name, const BranchInfo& branch) const;
  Error not_kept(const std::string& what) const;
  Result<const BranchInfo*> branch_named(const Points& points, std::string_view name) const;
  std::shared_ptr<Head> head_of(const Points& points, const BranchInfo& branch);
  bool in_use(std::string_view name, const Points& points);
  std::shared_ptr<const void> use_of(const std::string& snapshot);  // it stays for as long as somebody has this
  // Nothing else is changed of it until release(), and if it is to be closed, no device is opened. EBUSY: there is one, or
  // something is being changed.
  Status reserve(const std::string& name, const Points& points, bool closed);
  void release(const std::string& name);
  Status may_change() const;
  // Of what lies behind a new end.
  coro::Task<int> trim(std::shared_ptr<Head> head, uint64_t from, uint64_t until);
  // A point of the branch `of`, that it can be rewound to.
  Result<FoundPoint> target_of(const PointName& to, std::string_view of) const;
  Result<FoundPoint> target_of_undo(std::string_view of) const;
  coro::Task<Result<uint64_t>> rewind_to(FoundPoint target, std::string of);
  coro::Task<void> move_history();

  Result<uint64_t> receive_base(const Points& points, const Transfer& what) const;
  coro::Task<Status> unchanged_since(uint64_t lsn);
  coro::Task<Result<uint64_t>> receive_step(ReceiveStep step, uint64_t offset);

  io::Loop& loop_;
  Core core_;
  // Guarded by core_.mutex.
  std::map<std::string, std::weak_ptr<const void>> uses_;  // of snapshots, by devices
  std::map<uint32_t, std::weak_ptr<Head>> heads_;          // of branches
  std::map<std::string, bool> reserved_;                   // by name (none: the volume's own); true: it is closed
  Checkpoint checkpoint_;
  Background background_;
  Log log_;
  bool was_clean_ = false;
  bool by_other_ = false, forgets_ = false;  // Start
  bool changes_keys_ = false;  // on the loop of the opening
  Replayed replayed_;
  std::string refused_;  // why nothing can be changed, though it was to be
};

}  // namespace netblk::store::volume
