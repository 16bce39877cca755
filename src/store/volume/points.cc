// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/points.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/check.h"
#include "store/volume/settings.h"

namespace netblk::store::volume {
namespace {

// The intervals of a branch that count at one of its points. Backwards: from the point to the newest rewind that had been
// applied then, on from where that leads, and so on.
std::vector<Interval> timeline(const BranchInfo& branch, uint64_t lsn) {
  std::vector<Interval> intervals;
  uint64_t until = lsn;
  auto end = branch.rewinds.end();
  for (;;) {
    end = std::upper_bound(branch.rewinds.begin(), end, until,
                           [](uint64_t point, const Rewind& rewind) { return point < rewind.record; });
    const uint64_t above = end == branch.rewinds.begin() ? 0 : std::prev(end)->record;
    if (above < until) intervals.push_back({above, until});
    if (end == branch.rewinds.begin()) break;
    until = std::prev(end)->target;
  }
  std::reverse(intervals.begin(), intervals.end());
  return intervals;
}

}  // namespace

// --- Retention ------------------------------------------------------------------------------------------------------

bool Retention::Era::any_point(uint64_t from_lsn, uint64_t before_lsn, uint64_t history_from) const {
  if (from_lsn >= before_lsn) return false;
  if (std::max(from_lsn, history_from) < before_lsn) return true;
  const auto point = std::lower_bound(points.begin(), points.end(), from_lsn);
  // The head is a point beyond every version, so nothing that has a newer version in its era is read by it.
  return point != points.end() && (*point < before_lsn || before_lsn == kForever);
}

const Retention::Line* Retention::line(uint32_t branch) const {
  const auto found = std::lower_bound(lines_.begin(), lines_.end(), branch,
                                      [](const Line& line, uint32_t number) { return line.branch < number; });
  return found == lines_.end() || found->branch != branch ? nullptr : &*found;
}

bool Retention::has_parent(uint32_t branch) const {
  const Line* const found = line(branch);
  return found != nullptr && found->has_parent;
}

void Retention::mark(uint32_t branch, std::span<const uint64_t> lsns, std::span<uint8_t> live) const {
  NETBLK_CHECK(lsns.size() == live.size(), "a mark for each version");
  std::fill(live.begin(), live.end(), uint8_t{0});
  const Line* const found = line(branch);
  if (found == nullptr) return;
  const auto first_not_above = [&](uint64_t lsn) {
    return static_cast<size_t>(
        std::lower_bound(lsns.begin(), lsns.end(), lsn, [](uint64_t a, uint64_t b) { return a > b; }) - lsns.begin());
  };
  for (const Era& era : found->eras) {
    uint64_t next = era.until;
    size_t at = first_not_above(era.until - 1);
    for (; at < lsns.size() && lsns[at] > era.from; ++at) {
      if (era.any_point(lsns[at], next, history_from_)) live[at] = 1;
      next = lsns[at];
    }
    if (!era.any_point(era.from, next, history_from_)) continue;
    for (auto interval = era.base.rbegin(); interval != era.base.rend(); ++interval) {
      at = first_not_above(interval->until);
      if (at < lsns.size() && lsns[at] > interval->above) {
        live[at] = 1;
        break;
      }
    }
  }
}

// --- Points ---------------------------------------------------------------------------------------------------------

Points::Points(std::vector<BranchInfo> branches, std::vector<SnapshotInfo> snapshots)
    : branches_(std::move(branches)), snapshots_(std::move(snapshots)) {
  for (const BranchInfo& branch : branches_) next_branch_ = std::max(next_branch_, branch.number + 1);
}

Points::Points(const Manifest& manifest) : Points(manifest.branches, manifest.snapshots) {
  next_branch_ = std::max(next_branch_, manifest.next_branch);
  settings_ = manifest.settings;
  history_from_ = manifest.history.from_lsn;
  receiving_ = manifest.receiving;
}

void Points::put_into(Manifest& manifest) const {
  manifest.branches = branches_;
  manifest.snapshots = snapshots_;
  manifest.next_branch = next_branch_;
  manifest.settings = settings_;
  manifest.history.from_lsn = history_from_;
  manifest.receiving = receiving_;
}

const BranchInfo* Points::find_branch(uint32_t number) const {
  const auto found = std::find_if(branches_.begin(), branches_.end(),
                                  [&](const BranchInfo& branch) { return branch.number == number; });
  return found == branches_.end() ? nullptr : &*found;
}

const BranchInfo* Points::find_branch(std::string_view name) const {
  const auto found = std::find_if(branches_.begin(), branches_.end(), [&](const BranchInfo& branch) { return branch.name == name; });
  return found == branches_.end() ? nullptr : &*found;
}

BranchInfo* Points::branch_of(uint32_t number) { return const_cast<BranchInfo*>(std::as_const(*this).find_branch(number)); }

const SnapshotInfo* Points::find_snapshot(std::string_view name) const {
  const auto found = std::find_if(snapshots_.begin(), snapshots_.end(),
                                  [&](const SnapshotInfo& snapshot) { return snapshot.name == name; });
  return found == snapshots_.end() ? nullptr : &*found;
}

uint64_t Points::stored_bytes() const {
  constexpr uint64_t kBranchBytes = 36 + 20, kRewindBytes = 16, kResizeBytes = 16, kSnapshotBytes = 32, kSettingBytes = 8;
  uint64_t sum = 0;
  for (const BranchInfo& branch : branches_)
    sum += kBranchBytes + branch.name.size() + kRewindBytes * branch.rewinds.size() + kResizeBytes * branch.resizes.size();
  for (const SnapshotInfo& snapshot : snapshots_) sum += kSnapshotBytes + snapshot.name.size();
  constexpr uint64_t kOriginBytes = 12 + kIdentityBytes, kReceivingBytes = 16 + kTransferBytes;
  for (const SnapshotInfo& snapshot : snapshots_) sum += snapshot.origin.volume.is_zero() ? 0 : kOriginBytes;
  if (receiving_) sum += kReceivingBytes;
  for (const Setting& setting : settings_) sum += kSettingBytes + setting.key.size() + setting.value.size();
  return sum;
}

Status Points::fit(uint64_t beside_bytes, uint64_t most_bytes) const {
  if (stored_bytes() + beside_bytes <= most_bytes) return Ok{};
  return make_error(ENOSPC, "there is no room for more names: delete a snapshot or a clone");
}

// Snapshots and branches have one space of names.
Status Points::name_is_free(std::string_view name) const {
  if (!is_name(name)) {
    return make_error(EINVAL, "'{}' is no name: a letter or '_', then up to {} letters, digits, '.', '_', '-'", name, kMaxNameBytes - 1);
  }
  if (find_snapshot(name) != nullptr) return make_error(EEXIST, "a snapshot '{}' is there already", name);
  if (find_branch(name) != nullptr) return make_error(EEXIST, "a clone '{}' is there already", name);
  return Ok{};
}

Status Points::add_branch(BranchInfo branch) {
  if (branch.number == 0) return make_error(EINVAL, "a branch has a number from 1 on");
  if (find_branch(branch.number) != nullptr) return make_error(EEXIST, "branch {} is there already", branch.number);
  if (branches_.size() >= kMaxBranches) return make_error(ENOSPC, "a volume has at most {} branches", kMaxBranches);
  if (branch.number != kHeadBranch || !branch.name.empty()) {
    Status named = name_is_free(branch.name);
    if (!named) return named;
  }
  if (branch.parent.branch != 0 && find_branch(branch.parent.branch) == nullptr) {
    return make_error(ENOENT, "there is no branch {} to begin from", branch.parent.branch);
  }
  next_branch_ = std::max(next_branch_, branch.number + 1);
  branches_.push_back(std::move(branch));
  return Ok{};
}

Status Points::remove_branch(uint32_t number) {
  const auto found = std::find_if(branches_.begin(), branches_.end(),
                                  [&](const BranchInfo& branch) { return branch.number == number; });
  if (found == branches_.end()) return make_error(ENOENT, "there is no branch {}", number);
  if (number == kHeadBranch) return make_error(EBUSY, "a volume's own branch stays: delete the volume");
  for (const BranchInfo& branch : branches_) {
    if (branch.parent.branch == number) {
      return make_error(EBUSY, "'{}' began from '{}': delete it first", branch.name, found->name);
    }
  }
  for (const SnapshotInfo& snapshot : snapshots_) {
    if (snapshot.point.branch == number) {
      return make_error(EBUSY, "'{}' is a snapshot of '{}': delete it first", snapshot.name, found->name);
    }
  }
  const uint32_t parent = found->parent.branch;
  branches_.erase(found);
  forget_sizes(parent);
  return Ok{};
}

Status Points::add_snapshot(SnapshotInfo snapshot) {
  Status named = name_is_free(snapshot.name);
  if (!named) return named;
  if (snapshots_.size() >= kMaxSnapshots) return make_error(ENOSPC, "a volume has at most {} snapshots", kMaxSnapshots);
  if (find_branch(snapshot.point.branch) == nullptr) {
    return make_error(ENOENT, "there is no branch {} to take a snapshot of", snapshot.point.branch);
  }
  snapshots_.push_back(std::move(snapshot));
  return Ok{};
}

Status Points::remove_snapshot(std::string_view name) {
  const auto found = std::find_if(snapshots_.begin(), snapshots_.end(),
                                  [&](const SnapshotInfo& snapshot) { return snapshot.name == name; });
  if (found == snapshots_.end()) return make_error(ENOENT, "there is no snapshot and no clone '{}'", name);
  const uint32_t branch = found->point.branch;
  snapshots_.erase(found);
  forget_sizes(branch);
  return Ok{};
}

Status Points::resize(uint32_t branch, uint64_t size_bytes, uint64_t lsn) {
  BranchInfo* const found = branch_of(branch);
  if (found == nullptr) return make_error(ENOENT, "there is no branch {}", branch);
  if (size_bytes == found->size_bytes) return Ok{};
  if (oldest_point(branch) < lsn) {
    if (found->resizes.size() >= kMaxResizes) return make_error(ENOSPC, "a branch's history has at most {} sizes", kMaxResizes);
    found->resizes.push_back({lsn, found->size_bytes});
  }
  found->size_bytes = size_bytes;
  return Ok{};
}

Status Points::rewind(uint32_t branch, Rewind rewind) {
  BranchInfo* const found = branch_of(branch);
  if (found == nullptr) return make_error(ENOENT, "there is no branch {}", branch);
  if (rewind.target >= rewind.record || (!found->rewinds.empty() && found->rewinds.back().record >= rewind.record)) {
    return make_error(EINVAL, "a rewind leads back: record {} to {} does not", rewind.record, rewind.target);
  }
  if (found->rewinds.size() >= kMaxRewinds) return make_error(ENOSPC, "a branch has at most {} rewinds", kMaxRewinds);
  const Point target{.branch = branch, .lsn = rewind.target};
  if (!retained(target) || rewind.target < found->born) {
    return make_error(ENOENT, "branch {} at {} is not kept: no snapshot, and older than the history", branch, rewind.target);
  }
  Status resized = resize(branch, size_at(target), rewind.record);
  if (!resized) return resized;
  found->rewinds.push_back(rewind);
  return Ok{};
}

// --- Records of names -----------------------------------------------------------------------------------------------

Status Points::apply(const Change& change, Point at, uint64_t time_ns) {
  Status may = not_while_receiving(change, at);
  if (!may) return may;
  switch (change.kind) {
    case ChangeKind::kSnapshot: {
      const BranchInfo* const branch = find_branch(at.branch);
      return add_snapshot({change.name, at, time_ns, branch == nullptr ? 0 : branch->size_bytes});
    }
    case ChangeKind::kDeletion: {
      const BranchInfo* const branch = change.name.empty() ? nullptr : find_branch(change.name);
      return branch == nullptr ? remove_snapshot(change.name) : remove_branch(branch->number);
    }
    case ChangeKind::kResize: return resize(at.branch, change.size_bytes, at.lsn);
    case ChangeKind::kClone: return apply_clone(change, at);
    case ChangeKind::kRewind: return apply_rewind(change, at, time_ns);
    case ChangeKind::kSetting: {
      const uint64_t had = parse_settings(settings_).history.value;
      Status put = put_setting(settings_, change.name, change.value);
      if (!put) return put;
      const uint64_t has = parse_settings(settings_).history.value;
      if (has == 0) set_history(kForever);
      else if (had == 0) set_history(at.lsn);
      return Ok{};
    }
    case ChangeKind::kHistory:
      if (history_from_ != kForever && change.lsn > history_from_) set_history(change.lsn);
      return Ok{};
    case ChangeKind::kReceive: return apply_receive(change, at, time_ns);
    case ChangeKind::kOwners: break;
  }
  return Ok{};
}

// Half of what is received is nothing that anybody may name, or go back to.
Status Points::not_while_receiving(const Change& change, Point at) const {
  if (!receiving_) return Ok{};
  if (change.kind == ChangeKind::kDeletion) {
    const SnapshotInfo* const snapshot = find_snapshot(change.name);
    if (snapshot == nullptr || snapshot->point != Point{.branch = kHeadBranch, .lsn = receiving_->base_lsn}) return Ok{};
    return make_error(EBUSY, "a receive of '{}' since '{}' is unfinished: go on with it, or give it up (`netblk volume receive --abort`)",
                      receiving_->what.to_name, snapshot->name);
  }
  const bool of_head = at.branch == kHeadBranch && (change.kind == ChangeKind::kSnapshot || change.kind == ChangeKind::kResize ||
                                                    change.kind == ChangeKind::kRewind ||
                                                    (change.kind == ChangeKind::kClone && (change.lsn == 0 || change.lsn > receiving_->base_lsn)));
  if (!of_head) return Ok{};
  return make_error(EBUSY, "a receive of '{}' is unfinished: go on with it, or give it up (`netblk volume receive --abort`)",
                    receiving_->what.to_name);
}

Status Points::apply_receive(const Change& change, Point at, uint64_t time_ns) {
  BranchInfo* const head = branch_of(kHeadBranch);
  if (head == nullptr || at.branch != kHeadBranch) return make_error(EINVAL, "only a volume's own disk receives");
  if (change.step == ReceiveStep::kBegin && receiving_) return make_error(EBUSY, "a receive is unfinished already");
  if (change.step != ReceiveStep::kBegin && !receiving_) return make_error(ENOENT, "no receive is unfinished there");
  switch (change.step) {
    case ReceiveStep::kBegin: {
      Status free = name_is_free(change.receiving.what.to_name);
      if (!free) return free;
      const Point base{.branch = kHeadBranch, .lsn = change.receiving.base_lsn};
      if (base.lsn != 0 && std::none_of(snapshots_.begin(), snapshots_.end(), [&](const SnapshotInfo& each) { return each.point == base; }))
        return make_error(ENOENT, "there is no snapshot at lsn:{} any more", base.lsn);
      receiving_ = change.receiving;
      receiving_->offset = 0;
      return Ok{};
    }
    case ReceiveStep::kKeep:
      if (change.receiving.offset > receiving_->what.size_bytes) return make_error(EINVAL, "more is received than there is");
      receiving_->offset = std::max(receiving_->offset, change.receiving.offset);
      return Ok{};
    case ReceiveStep::kEnd: {
      Points changed = *this;
      changed.receiving_.reset();
      Status done = changed.resize(kHeadBranch, receiving_->what.size_bytes, at.lsn);
      if (done)
        done = changed.add_snapshot({receiving_->what.to_name, at, time_ns, receiving_->what.size_bytes, receiving_->what.to});
      if (done) *this = std::move(changed);
      return done;
    }
    case ReceiveStep::kGiveUp:
      // The base is retained, or is the empty disk, which needs nothing; and the size has not changed since.
      if (head->rewinds.size() >= kMaxRewinds) return make_error(ENOSPC, "a branch has at most {} rewinds", kMaxRewinds);
      head->rewinds.push_back({.record = at.lsn, .target = receiving_->base_lsn});
      receiving_.reset();
      return Ok{};
  }
  return Ok{};
}

Status Points::apply_clone(const Change& change, Point at) {
  const Point parent{.branch = at.branch, .lsn = change.lsn == 0 ? at.lsn : change.lsn};
  if (change.lsn != 0 && !retained(parent))
    return make_error(ENOENT, "branch {} at {} is not kept: no snapshot, and older than the history", parent.branch, parent.lsn);
  if (find_branch(parent.branch) == nullptr) return make_error(ENOENT, "there is no branch {} to begin from", parent.branch);
  return add_branch({.number = next_branch_, .name = change.name, .size_bytes = size_at(parent), .parent = parent, .rewinds = {},
                     .born = at.lsn, .resizes = {}});
}

// What the branch was until then stays as a snapshot, which nobody had to think of before.
Status Points::apply_rewind(const Change& change, Point at, uint64_t time_ns) {
  Points changed = *this;
  const BranchInfo* const branch = find_branch(at.branch);
  if (branch == nullptr) return make_error(ENOENT, "there is no branch {}", at.branch);
  Status done = changed.add_snapshot({"before-rewind-" + std::to_string(at.lsn), {at.branch, at.lsn - 1}, time_ns, branch->size_bytes});
  if (done) done = changed.rewind(at.branch, {.record = at.lsn, .target = change.lsn});
  if (done) *this = std::move(changed);
  return done;
}

// --- What is kept ---------------------------------------------------------------------------------------------------

void Points::set_history(uint64_t from_lsn) {
  history_from_ = from_lsn;
  for (const BranchInfo& branch : branches_) forget_sizes(branch.number);
}

// Points of one branch that are retained, and are not its head.
uint64_t Points::oldest_point(uint32_t branch) const {
  uint64_t oldest = history_from_;
  for (const SnapshotInfo& snapshot : snapshots_)
    if (snapshot.point.branch == branch) oldest = std::min(oldest, snapshot.point.lsn);
  for (const BranchInfo& clone : branches_)
    if (clone.parent.branch == branch) oldest = std::min(oldest, clone.parent.lsn);
  return oldest;
}

// A snapshot has its own size; but a clone may begin from it, and stay when its name is gone.
void Points::forget_sizes(uint32_t branch) {
  BranchInfo* const found = branch_of(branch);
  if (found == nullptr || found->resizes.empty()) return;
  const uint64_t oldest = oldest_point(branch);
  std::erase_if(found->resizes, [&](const Resized& resized) { return resized.record <= oldest; });
}

bool Points::left_behind(Point point) const {
  const BranchInfo* const branch = find_branch(point.branch);
  if (branch == nullptr) return true;
  const std::vector<Interval> intervals = timeline(*branch, kForever);
  return std::none_of(intervals.begin(), intervals.end(),
                      [&](const Interval& each) { return point.lsn > each.above && point.lsn <= each.until; });
}

// Names go one at a time, and those that stay keep their order.
Points::Freed Points::freed_since(const Points& before) const {
  const bool shorter = history_from_ > before.history_from_;
  if (!shorter && snapshots_.size() >= before.snapshots_.size() && branches_.size() >= before.branches_.size()) return Freed::kNothing;
  if (shorter)
    for (const BranchInfo& branch : before.branches_)
      for (const Rewind& rewind : branch.rewinds)
        if (rewind.record > before.history_from_ && rewind.record <= history_from_) return Freed::kAlone;
  auto kept = snapshots_.begin();
  for (const SnapshotInfo& snapshot : before.snapshots_) {
    if (kept != snapshots_.end() && kept->name == snapshot.name) ++kept;
    else if (before.left_behind(snapshot.point)) return Freed::kAlone;
  }
  auto stays = branches_.begin();
  for (const BranchInfo& branch : before.branches_) {
    if (stays != branches_.end() && stays->number == branch.number) ++stays;
    else if (before.left_behind(branch.parent)) return Freed::kAlone;
  }
  return Freed::kCovered;
}

uint64_t Points::size_at(Point point) const {
  for (const SnapshotInfo& snapshot : snapshots_)
    if (snapshot.point == point) return snapshot.size_bytes;
  const BranchInfo& branch = *find_branch(point.branch);
  for (const Resized& resized : branch.resizes)
    if (resized.record > point.lsn) return resized.before_bytes;
  return branch.size_bytes;
}

bool Points::retained(Point point) const {
  if (find_branch(point.branch) == nullptr) return false;
  if (point.lsn >= history_from_ || point.lsn == kForever) return true;
  return std::any_of(snapshots_.begin(), snapshots_.end(), [&](const SnapshotInfo& s) { return s.point == point; }) ||
         std::any_of(branches_.begin(), branches_.end(), [&](const BranchInfo& b) { return b.parent == point; });
}

View Points::view(Point point) const {
  View view;
  // A parent is older than its children, so the chain ends; a damaged list of branches must not make it endless.
  for (size_t depth = 0; point.branch != 0 && depth <= branches_.size(); ++depth) {
    const BranchInfo* const branch = find_branch(point.branch);
    if (branch == nullptr) break;
    view.layers.push_back({.branch = point.branch, .intervals = timeline(*branch, point.lsn)});
    point = branch->parent;
  }
  return view;
}

Retention Points::retention(std::span<const Point> held) const {
  Retention retention;
  retention.history_from_ = history_from_;
  std::vector<std::pair<uint32_t, uint64_t>> all;  // by branch, then LSN
  all.reserve(2 * branches_.size() + snapshots_.size() + held.size());
  for (const BranchInfo& branch : branches_) {
    all.emplace_back(branch.number, kForever);
    if (branch.parent.branch != 0) all.emplace_back(branch.parent.branch, branch.parent.lsn);
  }
  for (const SnapshotInfo& snapshot : snapshots_) all.emplace_back(snapshot.point.branch, snapshot.point.lsn);
  for (const Point& point : held) all.emplace_back(point.branch, point.lsn);
  std::sort(all.begin(), all.end());
  for (const BranchInfo& branch : branches_) {
    std::vector<uint64_t> points;
    for (auto at = std::lower_bound(all.begin(), all.end(), std::pair{branch.number, uint64_t{0}});
         at != all.end() && at->first == branch.number; ++at)
      points.push_back(at->second);
    Retention::Line line{.branch = branch.number, .has_parent = branch.parent.branch != 0, .eras = {}};
    for (size_t i = 0; i <= branch.rewinds.size(); ++i) {
      Retention::Era era;
      if (i != 0) {
        era.from = branch.rewinds[i - 1].record;
        era.base = timeline(branch, branch.rewinds[i - 1].target);
      }
      if (i != branch.rewinds.size()) era.until = branch.rewinds[i].record;
      const auto first = std::lower_bound(points.begin(), points.end(), era.from);
      const auto last = i == branch.rewinds.size() ? points.end() : std::lower_bound(first, points.end(), era.until);
      era.points.assign(first, last);
      if (!era.points.empty() || history_from_ < era.until) line.eras.push_back(std::move(era));
    }
    retention.lines_.push_back(std::move(line));
  }
  std::sort(retention.lines_.begin(), retention.lines_.end(),
            [](const Retention::Line& a, const Retention::Line& b) { return a.branch < b.branch; });
  return retention;
}

}  // namespace netblk::store::volume
