// SPDX-License-Identifier: GPL-2.0-only
// WriteOrder: overlapping changes of one store run one after another, whichever connection or thread they come from
// (DESIGN 4.1: "serialises overlapping writes across connections").
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "block/request.h"

namespace netblk::store {

// Disjoint changes run side by side. Thread-safe. Lock order: its mutex is a leaf; no callback runs under it.
class WriteOrder {
 public:
  using Granted = void (*)(block::Request&);

  // Changes that touch one unit of so many bytes count as overlapping.
  explicit WriteOrder(uint64_t unit_bytes = 1) : unit_bytes_(unit_bytes) {}

  // True: the range is the caller's until release(). False: it will be; `granted` is then called on the thread of the
  // request's loop. Uses request.held.hop and held.next meanwhile.
  bool acquire(block::Request& request, Granted granted);
  void release(block::Request& request);

 private:
  struct Waiting {
    block::Request* request;
    Granted granted;
  };
  bool overlap(const block::Request& a, const block::Request& b) const {
    const auto first = [this](const block::Request& one) { return one.offset / unit_bytes_; };
    const auto last = [this](const block::Request& one) { return (one.offset + one.length - 1) / unit_bytes_; };
    return first(a) <= last(b) && first(b) <= last(a);
  }
  bool blocked(const block::Request& request, size_t earlier) const;

  const uint64_t unit_bytes_;
  std::mutex mutex_;
  std::vector<const block::Request*> active_;
  std::vector<Waiting> waiting_;  // in order of arrival
};

}  // namespace netblk::store
