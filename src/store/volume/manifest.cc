// SPDX-License-Identifier: GPL-2.0-only
// The manifest and the changes of names: lists that are read as a whole.
#include <algorithm>
#include <utility>
#include <map>
#include <array>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "base/endian.h"
#include "base/limits.h"
#include "store/volume/format.h"

namespace netblk::store::volume {
namespace {

enum Kind : uint32_t {
  kMandatory = 0x80000000,
  kLog = kMandatory | 1,
  kSegments = kMandatory | 2,
  kBranches = kMandatory | 3,
  kSnapshots = kMandatory | 4,
  kIndex = kMandatory | 5,
  kOwnersSection = 6,
  kSweepSection = 9,
  kMoreOfBranches = kMandatory | 6,
  kSettings = kMandatory | 7,
  kHistory = kMandatory | 8,
  kReceived = kMandatory | 32,
};

class Writer {
 public:
  template <class T>
  void number(T value) {
    bytes_.resize(bytes_.size() + sizeof value);
    store_le(bytes_.data() + bytes_.size() - sizeof value, value);
  }
  void raw(std::span<const std::byte> bytes) { bytes_.insert(bytes_.end(), bytes.begin(), bytes.end()); }
  void id(const Id& id) { raw(std::as_bytes(std::span(id.bytes))); }
  void text(std::string_view text) {
    number(static_cast<uint32_t>(text.size()));
    raw(std::as_bytes(std::span(text)));
  }
  void section(uint32_t kind, const Writer& inside) {
    number(kind);
    number(uint64_t{inside.bytes_.size()});
    raw(inside.bytes_);
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

// After bytes that are missing, or make no sense, everything is zero and ok() is false.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : rest_(bytes) {}
  bool ok() const { return ok_; }
  bool at_end() const { return rest_.empty(); }
  void fail() {
    ok_ = false;
    rest_ = {};
  }
  std::span<const std::byte> raw(uint64_t count) {
    if (count > rest_.size()) {
      fail();
      return {};
    }
    const auto taken = rest_.first(static_cast<size_t>(count));
    rest_ = rest_.subspan(static_cast<size_t>(count));
    return taken;
  }
  std::span<const std::byte> all() { return raw(rest_.size()); }
  template <class T>
  T number() {
    const auto bytes = raw(sizeof(T));
    return ok_ ? load_le<T>(bytes.data()) : T{};
  }
  Id id() {
    Id id;
    const auto bytes = raw(id.bytes.size());
    if (ok_) std::memcpy(id.bytes.data(), bytes.data(), bytes.size());
    return id;
  }
  std::string text() {
    const auto length = number<uint32_t>();
    if (length > kMaxNameBytes) fail();
    const auto bytes = raw(ok_ ? length : 0);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  // How many of a list follow, each of at least item_bytes: memory is bounded by the bytes that are there.
  uint64_t count(uint64_t most, size_t item_bytes) {
    const auto listed = number<uint64_t>();
    if (listed > most || listed > rest_.size() / item_bytes) fail();
    return ok_ ? listed : 0;
  }

 private:
  std::span<const std::byte> rest_;
  bool ok_ = true;
};

void put(Writer& to, const Point& point) {
  to.number(point.branch);
  to.number(point.lsn);
}
Point get_point(Reader& from) {
  Point point;
  point.branch = from.number<uint32_t>();
  point.lsn = from.number<uint64_t>();
  return point;
}

void put(Writer& to, const LogPosition& log) {
  to.number(log.segment);
  to.number(log.offset);
  to.number(log.next_lsn);
  to.number(log.chain);
  to.number(log.time_ns);
  to.number(log.durable_lsn);
  to.id(log.incarnation);
}
LogPosition get_log(Reader& from) {
  LogPosition log;
  log.segment = from.number<uint64_t>();
  log.offset = from.number<uint64_t>();
  log.next_lsn = from.number<uint64_t>();
  log.chain = from.number<uint32_t>();
  log.time_ns = from.number<uint64_t>();
  log.durable_lsn = from.number<uint64_t>();
  log.incarnation = from.id();
  if (log.offset % kUnitBytes != 0 || log.next_lsn == 0) from.fail();
  return log;
}

std::vector<SegmentInfo> get_segments(Reader& from) {
  constexpr size_t kItemBytes = 16;
  std::vector<SegmentInfo> segments(from.count(uint64_t{1} << 32, kItemBytes));
  for (SegmentInfo& segment : segments) {
    const auto state = from.number<uint32_t>();
    if (state > static_cast<uint32_t>(SegmentState::kLeaving)) from.fail();
    segment.state = static_cast<SegmentState>(state);
    segment.live_bytes = from.number<uint32_t>();
    segment.highest_lsn = from.number<uint64_t>();
  }
  return segments;
}

std::vector<BranchInfo> get_branches(Reader& from) {
  constexpr size_t kItemBytes = 36;
  std::vector<BranchInfo> branches(from.count(kMaxBranches, kItemBytes));
  for (BranchInfo& branch : branches) {
    branch.number = from.number<uint32_t>();
    branch.name = from.text();
    branch.size_bytes = from.number<uint64_t>();
    branch.parent = get_point(from);
    branch.rewinds.resize(from.count(kMaxRewinds, 16));
    for (Rewind& rewind : branch.rewinds) {
      rewind.record = from.number<uint64_t>();
      rewind.target = from.number<uint64_t>();
    }
    if (branch.number == 0 || (!branch.name.empty() && !is_name(branch.name))) from.fail();
  }
  return branches;
}

std::vector<SnapshotInfo> get_snapshots(Reader& from) {
  constexpr size_t kItemBytes = 32;
  std::vector<SnapshotInfo> snapshots(from.count(kMaxSnapshots, kItemBytes));
  for (SnapshotInfo& snapshot : snapshots) {
    snapshot.name = from.text();
    snapshot.point = get_point(from);
    snapshot.time_ns = from.number<uint64_t>();
    snapshot.size_bytes = from.number<uint64_t>();
    if (!is_name(snapshot.name)) from.fail();
  }
  return snapshots;
}

// What format version 1 at first did not have of branches.
void put_more(Writer& to, const Manifest& manifest) {
  to.number(manifest.next_branch);
  to.number(uint64_t{manifest.branches.size()});
  for (const BranchInfo& branch : manifest.branches) {
    to.number(branch.number);
    to.number(branch.born);
    to.number(uint64_t{branch.resizes.size()});
    for (const Resized& resized : branch.resizes) {
      to.number(resized.record);
      to.number(resized.before_bytes);
    }
  }
}
void get_more(Reader& from, Manifest& manifest) {
  manifest.next_branch = from.number<uint32_t>();
  const uint64_t count = from.count(kMaxBranches, 20);
  if (count != manifest.branches.size()) return from.fail();
  for (BranchInfo& branch : manifest.branches) {
    if (from.number<uint32_t>() != branch.number || branch.number >= manifest.next_branch) from.fail();
    branch.born = from.number<uint64_t>();
    branch.resizes.resize(from.count(kMaxResizes, 16));
    for (Resized& resized : branch.resizes) {
      resized.record = from.number<uint64_t>();
      resized.before_bytes = from.number<uint64_t>();
    }
  }
}

std::vector<Setting> get_settings(Reader& from) {
  std::vector<Setting> settings(from.count(kMaxSettings, 8));
  for (Setting& setting : settings) {
    setting.key = from.text();
    setting.value = from.text();
    if (!is_name(setting.key)) from.fail();
  }
  return settings;
}

void put(Writer& to, const HistoryInfo& history) {
  to.number(history.from_lsn);
  to.number(history.log_bytes);
  to.number(uint64_t{history.moments.size()});
  for (const Moment& moment : history.moments) {
    to.number(moment.time_ns);
    to.number(moment.lsn);
    to.number(moment.log_bytes);
  }
}
HistoryInfo get_history(Reader& from) {
  HistoryInfo history;
  history.from_lsn = from.number<uint64_t>();
  history.log_bytes = from.number<uint64_t>();
  history.moments.resize(from.count(kMaxMoments, 24));
  for (size_t i = 0; i < history.moments.size(); ++i) {
    Moment& moment = history.moments[i];
    moment.time_ns = from.number<uint64_t>();
    moment.lsn = from.number<uint64_t>();
    moment.log_bytes = from.number<uint64_t>();
    if (i > 0 && (moment.time_ns <= history.moments[i - 1].time_ns || moment.lsn < history.moments[i - 1].lsn)) from.fail();
  }
  return history;
}

void put(Writer& to, const Transfer& what) {
  std::array<std::byte, kTransferBytes> bytes;
  put_transfer(what, bytes);
  to.raw(bytes);
}
Transfer get_transfer_of(Reader& from) {
  const auto bytes = from.raw(kTransferBytes);
  if (!from.ok()) return {};
  auto what = get_transfer(bytes.first<kTransferBytes>());
  if (!what) from.fail();
  return what.value_or(Transfer());
}

// What is being received, and where snapshots came from, by their points.
void put_received(Writer& to, const Manifest& manifest) {
  to.number(uint32_t{manifest.receiving.has_value()});
  if (manifest.receiving) {
    put(to, manifest.receiving->what);
    to.number(manifest.receiving->base_lsn);
    to.number(manifest.receiving->offset);
  }
  const auto came = [](const SnapshotInfo& each) { return !each.origin.volume.is_zero(); };
  to.number(uint64_t(std::count_if(manifest.snapshots.begin(), manifest.snapshots.end(), came)));
  for (const SnapshotInfo& snapshot : manifest.snapshots) {
    if (!came(snapshot)) continue;
    std::array<std::byte, kIdentityBytes> identity;
    put_identity(snapshot.origin, identity);
    put(to, snapshot.point);
    to.raw(identity);
  }
}
void get_received(Reader& from, Manifest& manifest) {
  const auto is_receiving = from.number<uint32_t>();
  if (is_receiving > 1) return from.fail();
  if (is_receiving == 1) {
    Receiving receiving;
    receiving.what = get_transfer_of(from);
    receiving.base_lsn = from.number<uint64_t>();
    receiving.offset = from.number<uint64_t>();
    if (receiving.offset > receiving.what.size_bytes) return from.fail();
    manifest.receiving = std::move(receiving);
  }
  // Those of one point have the same contents, and one identity.
  std::multimap<std::pair<uint32_t, uint64_t>, SnapshotInfo*> at;
  for (SnapshotInfo& snapshot : manifest.snapshots) at.emplace(std::pair(snapshot.point.branch, snapshot.point.lsn), &snapshot);
  for (uint64_t left = from.count(kMaxSnapshots, 12 + kIdentityBytes); left > 0 && from.ok(); --left) {
    const Point point = get_point(from);
    const auto bytes = from.raw(kIdentityBytes);
    if (!from.ok()) return;
    const auto identity = get_identity(bytes.first<kIdentityBytes>());
    const auto [first, last] = at.equal_range({point.branch, point.lsn});
    if (!identity || first == last) return from.fail();
    for (auto snapshot = first; snapshot != last; ++snapshot) snapshot->second->origin = *identity;
  }
}

Sweep get_sweep(Reader& from) {
  Sweep sweep;
  sweep.of = static_cast<Sweep::Of>(from.number<uint32_t>());
  sweep.branch = from.number<uint32_t>();
  sweep.block = from.number<uint64_t>();
  if (sweep.of != Sweep::Of::kCovered && sweep.of != Sweep::Of::kAll) from.fail();
  return sweep;
}

IndexRoot get_index(Reader& from) {
  IndexRoot index;
  index.offset = from.number<uint64_t>();
  index.level = from.number<uint32_t>();
  index.crc = from.number<uint32_t>();
  index.entries = from.number<uint64_t>();
  return index;
}

}  // namespace

bool is_disk_size(uint64_t bytes) {
  return bytes != 0 && bytes % limits::kSectorBytes == 0 && bytes <= limits::kMaxDeviceBytes;
}

bool is_name(std::string_view name) {
  const auto is_letter = [](char c) { return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || c == '_'; };
  const auto is_other = [](char c) { return (c >= '0' && c <= '9') || c == '.' || c == '-'; };
  return !name.empty() && name.size() <= kMaxNameBytes && is_letter(name[0]) &&
         std::all_of(name.begin(), name.end(), [&](char c) { return is_letter(c) || is_other(c); });
}

std::vector<std::byte> encode(const Change& change) {
  Writer to;
  to.number(static_cast<uint32_t>(change.kind));
  switch (change.kind) {
    case ChangeKind::kSnapshot:
    case ChangeKind::kDeletion: to.text(change.name); break;
    case ChangeKind::kResize: to.number(change.size_bytes); break;
    case ChangeKind::kOwners: to.raw(change.owners); break;
    case ChangeKind::kClone:
      to.text(change.name);
      to.number(change.lsn);
      break;
    case ChangeKind::kRewind:
    case ChangeKind::kHistory: to.number(change.lsn); break;
    case ChangeKind::kSetting:
      to.text(change.name);
      to.text(change.value);
      break;
    case ChangeKind::kReceive:
      to.number(static_cast<uint32_t>(change.step));
      if (change.step == ReceiveStep::kBegin) {
        put(to, change.receiving.what);
        to.number(change.receiving.base_lsn);
      }
      if (change.step == ReceiveStep::kKeep) to.number(change.receiving.offset);
      break;
  }
  return to.take();
}

Result<Change> decode_change(std::span<const std::byte> bytes) {
  Reader from(bytes);
  Change change;
  const auto kind = from.number<uint32_t>();
  change.kind = static_cast<ChangeKind>(kind);
  switch (change.kind) {
    case ChangeKind::kSnapshot:
    case ChangeKind::kDeletion:
      change.name = from.text();
      if (!is_name(change.name)) from.fail();
      break;
    case ChangeKind::kResize:
      change.size_bytes = from.number<uint64_t>();
      if (!is_disk_size(change.size_bytes)) from.fail();
      break;
    case ChangeKind::kOwners: {
      const auto owners = from.all();
      change.owners.assign(owners.begin(), owners.end());
      break;
    }
    case ChangeKind::kClone:
      change.name = from.text();
      change.lsn = from.number<uint64_t>();
      if (!is_name(change.name)) from.fail();
      break;
    case ChangeKind::kRewind:
    case ChangeKind::kHistory: change.lsn = from.number<uint64_t>(); break;
    case ChangeKind::kSetting:
      change.name = from.text();
      change.value = from.text();
      if (!is_name(change.name)) from.fail();
      break;
    case ChangeKind::kReceive:
      change.step = static_cast<ReceiveStep>(from.number<uint32_t>());
      if (change.step < ReceiveStep::kBegin || change.step > ReceiveStep::kGiveUp) from.fail();
      if (change.step == ReceiveStep::kBegin) {
        change.receiving.what = get_transfer_of(from);
        change.receiving.base_lsn = from.number<uint64_t>();
      }
      if (change.step == ReceiveStep::kKeep) change.receiving.offset = from.number<uint64_t>();
      break;
    default: return make_error(EPROTONOSUPPORT, "a change of kind {}, which this program does not know", kind);
  }
  if (!from.ok() || !from.at_end()) return make_error(EBADMSG, "a change of kind {} that makes no sense", kind);
  return change;
}

std::vector<std::byte> encode(const Manifest& manifest) {
  Writer to, log, segments, branches, snapshots, index, owners;
  put(log, manifest.log);
  to.section(kLog, log);
  segments.number(uint64_t{manifest.segments.size()});
  for (const SegmentInfo& segment : manifest.segments) {
    segments.number(static_cast<uint32_t>(segment.state));
    segments.number(segment.live_bytes);
    segments.number(segment.highest_lsn);
  }
  to.section(kSegments, segments);
  branches.number(uint64_t{manifest.branches.size()});
  for (const BranchInfo& branch : manifest.branches) {
    branches.number(branch.number);
    branches.text(branch.name);
    branches.number(branch.size_bytes);
    put(branches, branch.parent);
    branches.number(uint64_t{branch.rewinds.size()});
    for (const Rewind& rewind : branch.rewinds) {
      branches.number(rewind.record);
      branches.number(rewind.target);
    }
  }
  to.section(kBranches, branches);
  snapshots.number(uint64_t{manifest.snapshots.size()});
  for (const SnapshotInfo& snapshot : manifest.snapshots) {
    snapshots.text(snapshot.name);
    put(snapshots, snapshot.point);
    snapshots.number(snapshot.time_ns);
    snapshots.number(snapshot.size_bytes);
  }
  to.section(kSnapshots, snapshots);
  index.number(manifest.index.offset);
  index.number(manifest.index.level);
  index.number(manifest.index.crc);
  index.number(manifest.index.entries);
  to.section(kIndex, index);
  owners.raw(manifest.owners);
  to.section(kOwnersSection, owners);
  // A volume that has none of it can be read by those who do not know of it.
  Writer more, settings, history;
  const auto has_more = [](const BranchInfo& branch) { return branch.born != 0 || !branch.resizes.empty(); };
  if (manifest.next_branch != kHeadBranch + 1 || std::any_of(manifest.branches.begin(), manifest.branches.end(), has_more)) {
    put_more(more, manifest);
    to.section(kMoreOfBranches, more);
  }
  if (!manifest.settings.empty()) {
    settings.number(uint64_t{manifest.settings.size()});
    for (const Setting& setting : manifest.settings) {
      settings.text(setting.key);
      settings.text(setting.value);
    }
    to.section(kSettings, settings);
  }
  if (manifest.history != HistoryInfo{}) {
    put(history, manifest.history);
    to.section(kHistory, history);
  }
  if (manifest.receiving || std::any_of(manifest.snapshots.begin(), manifest.snapshots.end(),
                                        [](const SnapshotInfo& each) { return !each.origin.volume.is_zero(); })) {
    Writer received;
    put_received(received, manifest);
    to.section(kReceived, received);
  }
  if (manifest.sweep.of != Sweep::Of::kNothing) {
    Writer sweep;
    sweep.number(static_cast<uint32_t>(manifest.sweep.of));
    sweep.number(manifest.sweep.branch);
    sweep.number(manifest.sweep.block);
    to.section(kSweepSection, sweep);
  }
  for (const Manifest::Section& section : manifest.unknown) {
    Writer kept;
    kept.raw(section.bytes);
    to.section(section.kind, kept);
  }
  return to.take();
}

Result<Manifest> decode_manifest(std::span<const std::byte> bytes) {
  Manifest manifest;
  Reader from(bytes);
  uint32_t seen = 0;
  while (!from.at_end()) {
    const auto kind = from.number<uint32_t>();
    const auto length = from.number<uint64_t>();
    const auto inside = from.raw(length);
    if (!from.ok()) break;
    Reader part(inside);
    switch (kind) {
      case kLog: manifest.log = get_log(part); break;
      case kSegments: manifest.segments = get_segments(part); break;
      case kBranches: manifest.branches = get_branches(part); break;
      case kSnapshots: manifest.snapshots = get_snapshots(part); break;
      case kIndex: manifest.index = get_index(part); break;
      case kOwnersSection: manifest.owners.assign(inside.begin(), inside.end()); part.all(); break;
      case kMoreOfBranches: get_more(part, manifest); break;
      case kSettings: manifest.settings = get_settings(part); break;
      case kHistory: manifest.history = get_history(part); break;
      case kReceived: get_received(part, manifest); break;
      case kSweepSection: manifest.sweep = get_sweep(part); break;
      default:
        if ((kind & kMandatory) != 0)
          return make_error(EPROTONOSUPPORT, "its manifest has a section {}, which this program does not know",
                            kind & ~kMandatory);
        manifest.unknown.push_back({kind, {inside.begin(), inside.end()}});
        part.all();
    }
    if (!part.ok() || !part.at_end()) return make_error(EBADMSG, "section {} of the manifest makes no sense", kind & ~kMandatory);
    if ((kind & kMandatory) != 0 && kind <= kIndex) seen |= 1u << (kind & ~kMandatory);
  }
  if (!from.ok() || seen != (1u << 1 | 1u << 2 | 1u << 3 | 1u << 4 | 1u << 5))
    return make_error(EBADMSG, "the manifest is not whole");
  return manifest;
}

}  // namespace netblk::store::volume
