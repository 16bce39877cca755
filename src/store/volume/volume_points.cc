// SPDX-License-Identifier: GPL-2.0-only
// Names and points of an open volume: what is found, opened and changed by them.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/limits.h"
#include "base/log.h"
#include "coro/event.h"
#include "store/volume/contents.h"
#include "store/volume/open_volume.h"
#include "store/volume/volume_device.h"

namespace netblk::store::volume {
namespace {

using Kind = PointName::Kind;

// A moment that a device reads.
class Held {
 public:
  Held(Core& core, Point point) : core_(core), point_(point) { core_.index->hold(point_); }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  ~Held() {
    if (frees_something() && core_.stirred) core_.stirred();
  }

 private:
  bool frees_something() {
    const std::lock_guard lock(core_.mutex);
    core_.index->release(point_);
    const Points points = core_.index->points();
    if (points.retained(point_)) return false;
    core_.freed = std::max(core_.freed, points.left_behind(point_) ? Points::Freed::kAlone : Points::Freed::kCovered);
    return true;
  }

  Core& core_;
  const Point point_;
};

// A TRIM whose end is waited for.
struct Trim : block::Request {
  Trim(io::Loop& on, uint64_t from, uint64_t until)
      : Request([](block::Request& self) {
          auto& trim = static_cast<Trim&>(self);
          trim.done = true;
          trim.ended.set();
        }) {
    loop = &on;
    command = block::Command::kTrim;
    offset = from;
    length = until - from;
  }
  bool done = false;
  coro::Event ended;
};

std::string branch_text(std::string_view name) { return name.empty() ? "the volume itself" : fmt::format("'{}'", name); }

}  // namespace

// --- Finding --------------------------------------------------------------------------------------------------------

Error OpenVolume::not_kept(const std::string& what) const {
  if (core_.history_from == kForever)
    return make_error(ENOENT, "nothing is kept of {}: {} has no history; `netblk volume set {} history=24h` keeps one from then on", what,
                      core_.options.name, core_.options.name);
  const uint64_t time_ns = core_.history.time_of(core_.history_from);
  return make_error(ENOENT, "nothing is kept of {}: the history of {} goes back to lsn:{}{}", what, core_.options.name, core_.history_from,
                    time_ns == 0 ? "" : " at " + time_text(time_ns));
}

Result<const BranchInfo*> OpenVolume::branch_named(const Points& points, std::string_view name) const {
  const BranchInfo* const branch = points.find_branch(name);
  if (branch == nullptr) return make_error(ENOENT, "{} has no clone '{}'", core_.options.name, name);
  return branch;
}

Result<FoundPoint> OpenVolume::find_moment(const Points& points, const PointName& name, const BranchInfo& branch) const {
  Point point{.branch = branch.number, .lsn = name.value};
  std::string what = fmt::format("lsn:{}", name.value);
  if (name.kind == Kind::kLsn) {
    const uint64_t last = core_.position.next_lsn - 1;
    if (name.value > last) return make_error(ENOENT, "{} has no lsn:{}: its last one is lsn:{}", core_.options.name, name.value, last);
  } else {
    const uint64_t now = core_.environment.wall_ns();
    if (name.kind == Kind::kTime && name.value > now)
      return make_error(EINVAL, "{} is in the future: it is {} now", time_text(name.value), time_text(now));
    const uint64_t time_ns = name.kind == Kind::kAgo ? now - std::min(now, name.value) : name.value;
    what = time_text(time_ns);
    const std::optional<uint64_t> lsn = core_.history_from == kForever ? std::nullopt : core_.history.lsn_at(time_ns);
    if (!lsn) return not_kept(what);
    point.lsn = *lsn;
  }
  if (point.lsn < branch.born)
    return make_error(ENOENT, "there is nothing of {} at {}: it was made at lsn:{}", branch_text(branch.name), what, branch.born);
  if (!points.retained(point)) return not_kept(what);
  return FoundPoint{.point = point, .size_bytes = points.size_at(point)};
}

Result<FoundPoint> OpenVolume::find(const Points& points, const PointName& name, std::string_view of) const {
  if (name.kind == Kind::kName) {
    if (const SnapshotInfo* const snapshot = points.find_snapshot(name.name)) return FoundPoint{snapshot->point, snapshot->size_bytes};
    const BranchInfo* const clone = name.name.empty() ? nullptr : points.find_branch(name.name);
    if (clone != nullptr) return FoundPoint{{.branch = clone->number, .lsn = kForever}, clone->size_bytes};
    return make_error(ENOENT, "{} has no snapshot and no clone '{}': `netblk volume list` tells which there are", core_.options.name,
                      name.name);
  }
  const Result<const BranchInfo*> branch = branch_named(points, of);
  if (!branch) return branch.error();
  if (name.kind == Kind::kHead) return FoundPoint{{.branch = branch.value()->number, .lsn = kForever}, branch.value()->size_bytes};
  return find_moment(points, name, *branch.value());
}

Result<FoundPoint> OpenVolume::find_point(const PointName& name, std::string_view of) const {
  const Points points = core_.index->points();
  const std::lock_guard lock(const_cast<Core&>(core_).mutex);
  return find(points, name, of);
}

// --- Opening --------------------------------------------------------------------------------------------------------

std::shared_ptr<Head> OpenVolume::head_of(const Points& points, const BranchInfo& branch) {
  std::erase_if(heads_, [](const auto& each) { return each.second.expired(); });
  std::weak_ptr<Head>& place = heads_[branch.number];
  std::shared_ptr<Head> head = place.lock();
  if (head == nullptr) {
    const Id contents = contents_of(core_.uuid, branch);
    place = head = std::make_shared<Head>(branch.number, points.head(branch.number), branch.size_bytes, contents);
  }
  return head;
}

// All of it under the mutex: a deletion before it is seen in the points, one after it sees the use.
Result<std::unique_ptr<block::Device>> OpenVolume::open_device(const PointName& name) {
  const std::lock_guard lock(core_.mutex);
  const Points points = core_.index->points();
  const Result<FoundPoint> found = find(points, name, {});
  if (!found) return found.error();
  const Point point = found.value().point;
  const auto reserved = reserved_.find(point.lsn == kForever ? points.find_branch(point.branch)->name : name.name);
  if (reserved != reserved_.end() && reserved->second && (point.lsn == kForever || name.kind == Kind::kName))
    return make_error(EBUSY, "'{}' of {} is being changed", reserved->first, core_.options.name);
  std::unique_ptr<VolumeDevice> device;
  if (point == Point{.branch = kHeadBranch, .lsn = kForever} && points.receiving()) {
    // As it was before: what it has of the new one is nothing yet. It counts as open.
    const Point base{.branch = kHeadBranch, .lsn = points.receiving()->base_lsn};
    const std::shared_ptr<Head> head = head_of(points, *points.find_branch(kHeadBranch));
    device = std::make_unique<VolumeDevice>(core_, points.view(base), found.value().size_bytes, head->contents);
    device->keep(head);
    return std::unique_ptr<block::Device>(std::move(device));
  }
  if (point.lsn == kForever) {
    device = std::make_unique<VolumeDevice>(core_, writable() ? &log_ : nullptr, head_of(points, *points.find_branch(point.branch)));
    return std::unique_ptr<block::Device>(std::move(device));
  }
  device = std::make_unique<VolumeDevice>(core_, points.view(point), found.value().size_bytes, contents_of(core_.uuid, point));
  if (name.kind != Kind::kName) {
    device->keep(std::make_shared<const Held>(core_, point));
    return std::unique_ptr<block::Device>(std::move(device));
  }
  device->keep(use_of(name.name));
  return std::unique_ptr<block::Device>(std::move(device));
}

std::shared_ptr<const void> OpenVolume::use_of(const std::string& snapshot) {
  std::weak_ptr<const void>& use = uses_[snapshot];
  std::shared_ptr<const void> held = use.lock();
  if (held == nullptr) use = held = std::make_shared<const int>(0);
  return held;
}

std::shared_ptr<const block::Base> OpenVolume::base_of(std::string_view name) {
  const std::lock_guard lock(core_.mutex);
  const Points points = core_.index->points();
  const SnapshotInfo* const found = points.find_snapshot(name);
  if (found == nullptr || reserved_.contains(found->name)) return nullptr;
  auto base = std::make_shared<PointBase>();
  base->view = points.view(found->point);
  base->size_bytes = found->size_bytes;
  base->use = use_of(found->name);
  return base;
}

bool OpenVolume::in_use(std::string_view name, const Points& points) {
  if (const BranchInfo* const branch = points.find_branch(name)) {
    const auto head = heads_.find(branch->number);
    return head != heads_.end() && !head->second.expired();
  }
  const auto use = uses_.find(std::string(name));
  return use != uses_.end() && !use->second.expired();
}

Status OpenVolume::reserve(const std::string& name, const Points& points, bool closed) {
  if (reserved_.contains(name)) return make_error(EBUSY, "{} of {} is being changed already", branch_text(name), core_.options.name);
  if (closed && in_use(name, points))
    return make_error(EBUSY, "{} is in use: stop what has it open first (a server's export, an attached device)", branch_text(name));
  reserved_[name] = closed;
  return Ok{};
}

void OpenVolume::release(const std::string& name) {
  const std::lock_guard lock(core_.mutex);
  reserved_.erase(name);
}

Status OpenVolume::may_change() const {
  if (!writable()) return make_error(EROFS, "{} is open read-only", core_.options.name);
  return Ok{};
}

// --- Changing -------------------------------------------------------------------------------------------------------

coro::Task<Result<uint64_t>> OpenVolume::snapshot(std::string name, std::string of) {
  Status may = may_change();
  if (!may) co_return std::move(may).error();
  const Points points = core_.index->points();
  const Result<const BranchInfo*> branch = branch_named(points, of);
  if (!branch) co_return branch.error();
  Change what{.kind = ChangeKind::kSnapshot, .name = std::move(name)};
  Result<uint64_t> lsn = co_await log_.change(loop_, branch.value()->number, std::move(what));
  co_return lsn;
}

coro::Task<Result<uint64_t>> OpenVolume::clone(PointName from, std::string name, std::string of) {
  Status may = may_change();
  if (!may) co_return std::move(may).error();
  const Result<FoundPoint> found = find_point(from, of);
  if (!found) co_return found.error();
  const Point point = found.value().point;
  Change what{.kind = ChangeKind::kClone, .name = std::move(name), .lsn = point.lsn == kForever ? 0 : point.lsn};
  Result<uint64_t> lsn = co_await log_.change(loop_, point.branch, std::move(what));
  co_return lsn;
}

Result<FoundPoint> OpenVolume::target_of(const PointName& to, std::string_view of) const {
  Result<FoundPoint> found = find_point(to, of);
  if (!found) return found;
  const Point target = found.value().point;
  const Points points = core_.index->points();
  const Result<const BranchInfo*> branch = branch_named(points, of);
  if (!branch) return branch.error();
  const BranchInfo* const other = points.find_branch(target.branch);
  if (target.branch != branch.value()->number)
    return make_error(EINVAL, "that point is of {}, and {} is to be rewound: make a clone of it",
                      other == nullptr ? "a clone that is gone" : branch_text(other->name), branch_text(of));
  if (target.lsn == kForever) return make_error(EINVAL, "{} is at its own head: name a snapshot or a moment", branch_text(of));
  return found;
}

Result<FoundPoint> OpenVolume::target_of_undo(std::string_view of) const {
  const Points points = core_.index->points();
  const Result<const BranchInfo*> branch = branch_named(points, of);
  if (!branch) return branch.error();
  if (branch.value()->rewinds.empty()) return make_error(EINVAL, "{} has never been rewound: there is nothing to undo", branch_text(of));
  return target_of(PointName(Kind::kLsn, branch.value()->rewinds.back().record - 1), of);
}

Status OpenVolume::can_rewind(const PointName& to, std::string_view of) const {
  Status may = may_change();
  if (!may) return may;
  const Result<FoundPoint> target = target_of(to, of);
  return target ? Status(Ok{}) : Status(target.error());
}

Status OpenVolume::can_undo_rewind(std::string_view of) const {
  Status may = may_change();
  if (!may) return may;
  const Result<FoundPoint> target = target_of_undo(of);
  return target ? Status(Ok{}) : Status(target.error());
}

coro::Task<Result<uint64_t>> OpenVolume::rewind(PointName to, std::string of) {
  const Result<FoundPoint> target = target_of(to, of);
  if (!target) co_return target.error();
  Result<uint64_t> lsn = co_await rewind_to(target.value(), std::move(of));
  co_return lsn;
}

coro::Task<Result<uint64_t>> OpenVolume::undo_rewind(std::string of) {
  const Result<FoundPoint> target = target_of_undo(of);
  if (!target) co_return target.error();
  Result<uint64_t> lsn = co_await rewind_to(target.value(), std::move(of));
  co_return lsn;
}

coro::Task<Result<uint64_t>> OpenVolume::rewind_to(FoundPoint target, std::string of) {
  Status may = may_change();
  if (!may) co_return std::move(may).error();
  Change what{.kind = ChangeKind::kRewind, .lsn = target.point.lsn};
  {
    const std::lock_guard lock(core_.mutex);
    const Points points = core_.index->points();
    const Result<const BranchInfo*> branch = branch_named(points, of);
    if (!branch) co_return branch.error();
    Status reserved = reserve(of, points, true);
    if (!reserved) co_return std::move(reserved).error();
  }
  const uint32_t number = target.point.branch;
  Result<uint64_t> lsn = co_await log_.change(loop_, number, std::move(what));
  if (lsn) core_.generation.fetch_add(1, std::memory_order_acq_rel);
  release(of);
  co_return lsn;
}

coro::Task<int> OpenVolume::trim(std::shared_ptr<Head> head, uint64_t from, uint64_t until) {
  // With the size of before; everybody else has the new one.
  VolumeDevice device(core_, &log_, head);
  device.trim_beyond();
  head->size_bytes.store(from, std::memory_order_release);
  Trim trim(loop_, from, until);
  device.submit(trim);
  while (!trim.done) co_await trim.ended.wait();
  co_return trim.error;
}

coro::Task<Status> OpenVolume::resize(uint64_t size_bytes, std::string of) {
  Status may = may_change();
  if (!may) co_return may;
  if (size_bytes == 0 || size_bytes % limits::kSectorBytes != 0 || size_bytes > limits::kMaxDeviceBytes)
    co_return make_error(EINVAL, "a volume's size is a multiple of {} bytes, and {} is none", limits::kSectorBytes, size_bytes);
  Change what{.kind = ChangeKind::kResize, .name = {}, .size_bytes = size_bytes};
  std::shared_ptr<Head> head;
  {
    const std::lock_guard lock(core_.mutex);
    const Points points = core_.index->points();
    const Result<const BranchInfo*> branch = branch_named(points, of);
    if (!branch) co_return branch.error();
    if (branch.value()->number == kHeadBranch && points.receiving())
      co_return make_error(EBUSY, "a receive of '{}' is unfinished: go on with it, or give it up (`netblk volume receive --abort`)",
                           points.receiving()->what.to_name);
    // Before anything is trimmed.
    Points tried = points;
    Status possible = tried.apply(what, {.branch = branch.value()->number, .lsn = core_.position.next_lsn + 1}, 0);
    if (possible) possible = tried.fit(core_.owners.size(), most_names_bytes(core_.segments.bytes()));
    if (!possible) co_return possible;
    Status reserved = reserve(of, points, false);
    if (!reserved) co_return reserved;
    head = head_of(points, *branch.value());
  }
  const uint64_t had = head->size_bytes.load(std::memory_order_acquire);
  int error = 0;
  if (size_bytes < had) error = co_await trim(head, size_bytes, had);
  Status done = Ok{};
  if (error != 0) done = make_error(error, "what lies behind the new end cannot be trimmed: {}", errno_text(error));
  // Also where it is the same: what is answered has all that was answered before.
  if (done) {
    const Result<uint64_t> lsn = co_await log_.change(loop_, head->branch, std::move(what));
    if (!lsn) done = lsn.error();
  }
  head->size_bytes.store(done ? size_bytes : had, std::memory_order_release);
  release(of);
  co_return done;
}

coro::Task<Status> OpenVolume::set(std::string key, std::string value) {
  Status may = may_change();
  if (!may) co_return may;
  Change what{.kind = ChangeKind::kSetting, .name = std::move(key), .value = std::move(value)};
  // Refused before it is a record: a name of a setting need not be one of a snapshot.
  std::vector<Setting> tried = core_.index->points().settings();
  Status put = put_setting(tried, what.name, what.value);
  if (!put) co_return put;
  const Result<uint64_t> lsn = co_await log_.change(loop_, kHeadBranch, std::move(what));
  if (!lsn) co_return lsn.error();
  background_.want();
  co_return Ok{};
}

// A device that reads it would see older contents.
coro::Task<Status> OpenVolume::remove(std::string name) {
  Status may = may_change();
  if (!may) co_return may;
  if (!is_name(name)) co_return make_error(EINVAL, "'{}' is no name of a snapshot or a clone", name);
  {
    const std::lock_guard lock(core_.mutex);
    Status reserved = reserve(name, core_.index->points(), true);
    if (!reserved) co_return reserved;
    uses_.erase(name);
  }
  Change what{.kind = ChangeKind::kDeletion, .name = name};
  const Result<uint64_t> lsn = co_await log_.change(loop_, kHeadBranch, std::move(what));
  release(name);
  if (!lsn) co_return lsn.error();
  background_.want();
  co_return Ok{};
}

// --- The window -----------------------------------------------------------------------------------------------------

// By steps: for each, a checkpoint looks for what has fallen out of it.
coro::Task<void> OpenVolume::move_history() {
  constexpr uint64_t kSteps = 16;
  Change what{.kind = ChangeKind::kHistory};
  {
    const std::lock_guard lock(core_.mutex);
    Settings::History setting = core_.settings.history;
    if (core_.history_from == kForever || setting.value == 0) co_return;
    const uint64_t now = core_.environment.wall_ns();
    what.lsn = core_.history.wanted_from(setting, now);
    setting.value += setting.value / kSteps;
    if (core_.history.wanted_from(setting, now) <= core_.history_from) co_return;
  }
  const Result<uint64_t> moved = co_await log_.change(loop_, kHeadBranch, std::move(what));
  if (!moved) log_warning("{}: its history could not be moved: {}", core_.options.name, moved.error().message);
}

}  // namespace netblk::store::volume
