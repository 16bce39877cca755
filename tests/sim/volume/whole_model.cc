// SPDX-License-Identifier: GPL-2.0-only
#include "sim/volume/whole_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace netblk::sim {

Image empty_image(uint64_t sectors) { return std::make_shared<const Contents>(sectors); }

Image changed(const Image& image, uint64_t first, uint64_t count, Stamp stamp) {
  Contents contents = *image;
  for (uint64_t i = 0; i < count; ++i) contents.set(first + i, stamp);
  return std::make_shared<const Contents>(std::move(contents));
}

Image resized(const Image& image, uint64_t sectors) {
  Contents contents(sectors);
  for (uint64_t i = 0; i < std::min(sectors, image->sectors()); ++i) contents.set(i, image->at(i));
  return std::make_shared<const Contents>(std::move(contents));
}

std::string differing(const std::string& what, const Contents& found, const Contents& expected) {
  if (found.sectors() != expected.sectors())
    return fmt::format("{} has {} sectors and should have {}", what, found.sectors(), expected.sectors());
  for (uint64_t i = 0; i < found.sectors(); ++i)
    if (found.at(i) != expected.at(i))
      return fmt::format("{}: sector {} is of change {} and should be of {}", what, i, found.at(i), expected.at(i));
  return {};
}

void WholeState::name_rewind(uint64_t lsn) {
  auto before = snapshots.extract(std::string(kBeforeRewind) + "?");
  before.key() = kBeforeRewind + std::to_string(lsn);
  snapshots.insert(std::move(before));
  branches.at(*rewinding).rewinds.push_back(lsn);
  rewinding.reset();
}

WholeModel::WholeModel(uint64_t sectors) {
  Step first;
  first.state.branches[""].image = empty_image(sectors);
  steps_.push_back(std::move(first));
}

void WholeModel::begin(std::vector<WholeState> outcomes) {
  open_ = std::move(outcomes);
  is_open_ = true;
}

void WholeModel::end(bool happened, uint64_t lsn, bool durable) {
  is_open_ = false;
  if (happened) steps_.push_back({std::move(open_.back()), lsn});
  open_.clear();
  if (happened && durable) flushed();
}

namespace {

bool same(const Contents& found, const Contents& expected) {
  return found.sectors() == expected.sectors() && found.hash() == expected.hash();
}

template <class Expected>
std::string differing_names(const char* what, const std::map<std::string, Contents>& found, const std::map<std::string, Expected>& expected) {
  for (const auto& [name, contents] : found)
    if (!expected.contains(name)) return fmt::format("{} '{}' should not be there", what, name);
  for (const auto& [name, each] : expected) {
    const auto at = found.find(name);
    if (at == found.end()) return fmt::format("{} '{}' is missing", what, name);
    std::string why = differing(fmt::format("{} '{}'", what, name), at->second, *each.image);
    if (!why.empty()) return why;
  }
  return {};
}

template <class Expected>
bool same_names(const std::map<std::string, Contents>& found, const std::map<std::string, Expected>& expected) {
  return std::equal(found.begin(), found.end(), expected.begin(), expected.end(), [](const auto& one, const auto& other) {
    return one.first == other.first && same(one.second, *other.second.image);
  });
}

}  // namespace

bool WholeModel::is(const WholeFound& found, const WholeState& state) {
  return same_names(found.branches, state.branches) && same_names(found.snapshots, state.snapshots);
}

std::string WholeModel::difference(const WholeFound& found, const WholeState& state) {
  std::string why = differing_names("branch", found.branches, state.branches);
  return why.empty() ? differing_names("snapshot", found.snapshots, state.snapshots) : why;
}

void WholeModel::name_what_was_open(const WholeFound& found, uint64_t last_lsn) {
  for (WholeState& state : open_) {
    for (auto& [name, branch] : state.branches)
      if (branch.born == kUnknownLsn) branch.born = last_lsn;
    if (!state.rewinding) continue;
    for (const auto& [name, contents] : found.snapshots) {
      if (!name.starts_with(kBeforeRewind) || now().snapshots.contains(name)) continue;
      state.name_rewind(std::stoull(name.substr(std::string_view(kBeforeRewind).size())));
      break;
    }
  }
}

uint64_t WholeModel::adopt(World& world, const WholeFound& found, VolumeModel::Loss loss, uint64_t last_lsn) {
  const uint64_t answered = steps_.size() - 1;
  uint64_t gone = 0;
  bool fits = false;
  name_what_was_open(found, last_lsn);
  const uint64_t lowest = loss == VolumeModel::Loss::kNothing ? answered : loss == VolumeModel::Loss::kUnflushed ? flushed_ : 0;
  // The newest first: what was under way, then what was answered. Two states may look the same: the records that are there say which
  // it is. Behind a state's own there may be one that the volume has written for itself, and lost.
  for (const bool by_lsn : {true, false}) {
    for (size_t i = is_open_ ? open_.size() : 0; i > 0 && !fits; --i) {
      fits = (!by_lsn || steps_.back().lsn <= last_lsn) && is(found, open_[i - 1]);
      if (fits) steps_.push_back({std::move(open_[i - 1]), last_lsn});
    }
    for (uint64_t at = answered + 1; at > lowest && !fits; --at) {
      fits = (!by_lsn || steps_[at - 1].lsn <= last_lsn) && is(found, steps_[at - 1].state);
      if (!fits) continue;
      gone = answered - (at - 1);
      steps_.resize(at);
    }
  }
  for (size_t i = steps_.size(); i > 0 && steps_[i - 1].lsn > last_lsn; --i) steps_[i - 1].lsn = last_lsn;
  if (!fits)
    world.fail(loss == VolumeModel::Loss::kNothing ? "a process that ends loses nothing answered"
               : loss == VolumeModel::Loss::kUnflushed ? "a power cut leaves a prefix with all that was flushed"
                                                       : "a fault never makes a read wrong",
               "of {} steps (flushed: {}) none fits; against the last one: {}; against the flushed one: {}", answered, flushed_,
               difference(found, now()), difference(found, steps_[std::min<size_t>(flushed_, steps_.size() - 1)].state));
  open_.clear();
  is_open_ = false;
  const uint64_t last = steps_.size() - 1;
  flushed_ = loss == VolumeModel::Loss::kUnflushed ? last : std::min(flushed_, last);
  return gone;
}

void WholeModel::expect(World& world, const WholeFound& found) const {
  if (!is(found, now())) world.fail("a read gives what was written", "{}", difference(found, now()));
}

Image WholeModel::at(const std::string& branch, uint64_t lsn) const {
  for (size_t i = steps_.size(); i > 0; --i) {
    const Step& step = steps_[i - 1];
    if (step.lsn > lsn) continue;
    const auto there = step.state.branches.find(branch);
    return there == step.state.branches.end() ? nullptr : there->second.image;
  }
  return nullptr;
}

std::optional<WholeModel::Moment> WholeModel::any_moment(Random& random, uint64_t from_lsn) const {
  const auto branch = std::next(now().branches.begin(), static_cast<ptrdiff_t>(random.below(now().branches.size())));
  for (int tries = 0; tries < 8; ++tries) {
    const Step& step = steps_[random.below(steps_.size())];
    // What its last record was is not known of the first one.
    if (step.lsn == 0 || step.lsn < from_lsn || step.lsn < branch->second.born) continue;
    const auto there = step.state.branches.find(branch->first);
    // A clone of that name that was deleted since is another one.
    if (there == step.state.branches.end() || there->second.born != branch->second.born) continue;
    return Moment{branch->first, step.lsn, there->second.image};
  }
  return std::nullopt;
}

Image WholeModel::before_last_rewind(const std::string& branch) const {
  const auto& rewinds = now().branches.at(branch).rewinds;
  return rewinds.empty() ? nullptr : at(branch, rewinds.back() - 1);
}

}  // namespace netblk::sim
