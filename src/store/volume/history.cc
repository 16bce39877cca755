// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/history.h"

#include <algorithm>

namespace netblk::store::volume {

void History::put_into(HistoryInfo& info) const {
  info.log_bytes = log_bytes_;
  info.moments = moments_;
  // (It may be one more than the list has; a manifest has room for it.)
  if (latest_ && (moments_.empty() || moments_.back().time_ns < latest_->time_ns)) info.moments.push_back(*latest_);
  if (info.moments.size() > kMaxMoments) info.moments.erase(info.moments.begin());
}

void History::wrote(uint64_t time_ns, uint64_t lsn, uint64_t bytes) {
  log_bytes_ += bytes;
  const Moment now{.time_ns = time_ns, .lsn = lsn, .log_bytes = log_bytes_};
  // Nothing was written for a while: what was there then is known exactly.
  if (latest_ && time_ns - latest_->time_ns >= kGapNs) note(*latest_);
  if (moments_.empty() || time_ns - moments_.back().time_ns >= kGapNs) {
    note(now);
    latest_.reset();
  } else {
    latest_ = now;
  }
}

void History::note(const Moment& moment) {
  if (!moments_.empty() && moment.time_ns <= moments_.back().time_ns) return;
  moments_.push_back(moment);
  if (moments_.size() >= most_) thin();
}

// As precise as a fixed part of how long ago it was.
void History::thin() {
  const uint64_t part = std::max<uint64_t>(most_ / 16, 1);
  const uint64_t now = moments_.back().time_ns;
  size_t kept = 1;
  for (size_t i = 1; i < moments_.size(); ++i) {
    const bool last = i + 1 == moments_.size();
    const uint64_t gap = std::max(kGapNs, (now - moments_[i].time_ns) / part);
    if (last || moments_[i + 1].time_ns - moments_[kept - 1].time_ns >= gap) moments_[kept++] = moments_[i];
  }
  moments_.resize(kept);
  if (kept < most_) return;
  for (size_t i = kept = 0; i < moments_.size(); i += 2) moments_[kept++] = moments_[i];
  moments_.resize(kept);
}

void History::begin_at(uint64_t lsn) {
  std::erase_if(moments_, [&](const Moment& moment) { return moment.lsn < lsn; });
  if (latest_ && latest_->lsn < lsn) latest_.reset();
}

std::optional<uint64_t> History::lsn_at(uint64_t time_ns) const {
  if (latest_ && latest_->time_ns <= time_ns) return latest_->lsn;
  const auto behind = std::upper_bound(moments_.begin(), moments_.end(), time_ns,
                                       [](uint64_t time, const Moment& moment) { return time < moment.time_ns; });
  if (behind == moments_.begin()) return std::nullopt;
  return std::prev(behind)->lsn;
}

uint64_t History::time_of(uint64_t lsn) const {
  for (const Moment& moment : moments_)
    if (moment.lsn >= lsn) return moment.time_ns;
  return latest_ && latest_->lsn >= lsn ? latest_->time_ns : 0;
}

uint64_t History::wanted_from(const Settings::History& setting, uint64_t now_ns) const {
  using Unit = Settings::History::Unit;
  uint64_t from = 0;
  for (const Moment& moment : moments_) {
    const uint64_t age = setting.unit == Unit::kLogBytes ? log_bytes_ - moment.log_bytes
                                                         : now_ns - std::min(now_ns, moment.time_ns);
    if (age >= setting.value) from = moment.lsn;
  }
  return from;
}

std::optional<uint64_t> History::half_from(uint64_t from_lsn) const {
  std::vector<uint64_t> behind;
  for (const Moment& moment : moments_)
    if (moment.lsn > from_lsn) behind.push_back(moment.lsn);
  if (latest_ && latest_->lsn > from_lsn) behind.push_back(latest_->lsn);
  if (behind.empty()) return std::nullopt;
  return behind[behind.size() / 2];
}

}  // namespace netblk::store::volume
