// SPDX-License-Identifier: GPL-2.0-only
// Latencies, counted in cells that are linear inside each power of two: fixed memory, less than 2 % of error.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

namespace netblk::tools {

class Histogram {
 public:
  void add(uint64_t value) {
    ++cells_[cell_of(value)];
    ++count_;
    max_ = std::max(max_, value);
  }
  void clear() { *this = Histogram(); }

  uint64_t count() const { return count_; }
  uint64_t max() const { return max_; }

  // The value that `share` (0 to 1) of all are at or below: the highest of its cell, and never above the maximum. 0 when
  // there is none.
  uint64_t at(double share) const {
    const auto wanted = std::max<uint64_t>(1, static_cast<uint64_t>(share * static_cast<double>(count_) + 0.5));
    uint64_t seen = 0;
    for (size_t cell = 0; cell < kCells; ++cell) {
      seen += cells_[cell];
      if (seen >= wanted) return std::min(highest_of(cell), max_);
    }
    return max_;
  }

 private:
  static constexpr unsigned kBits = 6;  // linear cells of a power of two: 2^kBits
  static constexpr size_t kLinear = size_t{1} << kBits;
  static constexpr size_t kCells = (64 - kBits + 1) * kLinear;

  static size_t cell_of(uint64_t value) {
    if (value < kLinear) return value;
    const auto shift = static_cast<unsigned>(std::bit_width(value)) - kBits - 1;
    return (shift + 1) * kLinear + ((value >> shift) - kLinear);
  }
  static uint64_t highest_of(size_t cell) {
    if (cell < kLinear) return cell;
    const size_t shift = cell / kLinear - 1;
    return ((kLinear + cell % kLinear + 1) << shift) - 1;
  }

  std::array<uint64_t, kCells> cells_{};
  uint64_t count_ = 0;
  uint64_t max_ = 0;
};

}  // namespace netblk::tools
