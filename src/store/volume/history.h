// SPDX-License-Identifier: GPL-2.0-only
// History: which record the volume had reached at which time, sparsely, for as far back as every moment is kept.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "store/volume/format.h"
#include "store/volume/settings.h"

namespace netblk::store::volume {

// Whoever shares it guards it.
class History {
 public:
  History() = default;
  // most: of moments that are kept.
  History(HistoryInfo info, size_t most) : log_bytes_(info.log_bytes), moments_(std::move(info.moments)), most_(most) {}
  // All but from_lsn.
  void put_into(HistoryInfo& info) const;

  // Records up to `lsn` are of this time or before it, and take so many bytes of log more. Times ascend.
  void wrote(uint64_t time_ns, uint64_t lsn, uint64_t bytes);
  void forget() {
    moments_.clear();
    latest_.reset();
  }
  // What is older than this record's is not needed.
  void begin_at(uint64_t lsn);

  // The record that was the last one at this time. Exact where nothing was written for a while, and otherwise one shortly before
  // it. None: it is older than what is known.
  std::optional<uint64_t> lsn_at(uint64_t time_ns) const;
  // Where the history begins: its time, about. 0: unknown.
  uint64_t time_of(uint64_t lsn) const;
  // From which record on the setting wants every point, which may be less than what is kept. 0: all that is known.
  uint64_t wanted_from(const Settings::History& setting, uint64_t now_ns) const;
  // Of what is kept from this record on, the newer half begins there. None: there is nothing between.
  std::optional<uint64_t> half_from(uint64_t from_lsn) const;

  // Moments that are nearer to each other are one; those of long ago are further apart (thin()).
  static constexpr uint64_t kGapNs = 50'000'000;

 private:
  void note(const Moment& moment);
  void thin();

  uint64_t log_bytes_ = 0;
  std::vector<Moment> moments_;
  std::optional<Moment> latest_;  // not in the list yet
  size_t most_ = kMaxMoments;
};

}  // namespace netblk::store::volume
