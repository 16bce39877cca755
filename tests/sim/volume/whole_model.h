// SPDX-License-Identifier: GPL-2.0-only
// WholeModel: a volume with all its branches, snapshots and moments, used by one request after the other. Its history is the
// list of the states that it was in; a crash leaves one of them.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "sim/volume/model.h"
#include "sim/world.h"

namespace netblk::sim {

// What a disk holds: a stamp for each sector. Never changed: who changes something makes another.
using Image = std::shared_ptr<const Contents>;

Image empty_image(uint64_t sectors);
Image changed(const Image& image, uint64_t first, uint64_t count, Stamp stamp);
// What is behind a smaller size is gone for good.
Image resized(const Image& image, uint64_t sectors);

// Empty: they are the same. Else the first place where they are not.
std::string differing(const std::string& what, const Contents& found, const Contents& expected);

struct WholeState {
  struct Branch {
    Image image;
    std::string parent;  // the branch that it was cloned from
    uint64_t born = 0;   // the LSN; kUnknownLsn: of what is under way
    std::vector<uint64_t> rewinds;  // their LSNs
    Image began;         // as it was then: its parent's point, which is kept for as long as this is there
  };
  struct Snapshot {
    Image image;
    std::string of;  // its branch
  };
  std::map<std::string, Branch> branches;  // the volume's own has no name
  std::map<std::string, Snapshot> snapshots;
  std::optional<std::string> rewinding;  // this branch, by a record whose LSN is not known yet: kBeforeRewind + "?" has its name

  void name_rewind(uint64_t lsn);
};
inline constexpr const char* kBeforeRewind = "before-rewind-";
inline constexpr uint64_t kUnknownLsn = UINT64_MAX;

// What a reader finds.
struct WholeFound {
  std::map<std::string, Contents> branches, snapshots;
};

class WholeModel {
 public:
  explicit WholeModel(uint64_t sectors);

  const WholeState& now() const { return steps_.back().state; }

  // What a request that begins now makes of it, one state after the other; the last one when it is answered.
  void begin(std::vector<WholeState> outcomes);
  // lsn: the volume's last one then. durable: so is everything before. What failed otherwise stays open.
  void end(bool happened, uint64_t lsn, bool durable);
  WholeState& outcome() { return open_.back(); }
  void flushed() { flushed_ = steps_.size() - 1; }

  // After a restart: what was found must be a state that the crash may leave. Returns how many answered requests are gone.
  uint64_t adopt(World& world, const WholeFound& found, VolumeModel::Loss loss, uint64_t last_lsn);
  void expect(World& world, const WholeFound& found) const;

  // A moment that can still be named by its LSN, of a branch that was there then and still is.
  struct Moment {
    std::string branch;
    uint64_t lsn = 0;
    Image image;
  };
  std::optional<Moment> any_moment(Random& random, uint64_t from_lsn) const;
  // As the branch was before its last rewind.
  Image before_last_rewind(const std::string& branch) const;
  Image at(const std::string& branch, uint64_t lsn) const;
  uint64_t answered() const { return steps_.size() - 1; }
  uint64_t generation() const { return generation_; }
  void set_generation(uint64_t generation) { generation_ = generation; }

 private:
  struct Step {
    WholeState state;
    uint64_t lsn = 0;
  };
  static bool is(const WholeFound& found, const WholeState& state);
  void name_what_was_open(const WholeFound& found, uint64_t last_lsn);
  // Why not, of the first thing that differs.
  static std::string difference(const WholeFound& found, const WholeState& state);

  std::vector<Step> steps_;
  std::vector<WholeState> open_;
  bool is_open_ = false;
  uint64_t flushed_ = 0;  // steps_ up to this one outlive a power cut
  uint64_t generation_ = 0;
};

}  // namespace netblk::sim
