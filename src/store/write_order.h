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

  // True: the range is the caller's until release(). False: it will be; `granted` is then called on the thread of the
  // request's loop. Uses request.held.hop and held.next meanwhile.
  bool acquire(block::Request& request, Granted granted);
  void release(block::Request& request);

 private:
  struct Waiting {
    block::Request* request;
    Granted granted;
  };
  static bool overlap(const block::Request& a, const block::Request& b) {
    return a.offset < b.offset + b.length && b.offset < a.offset + a.length;
  }
  bool blocked(const block::Request& request, size_t earlier) const;

  std::mutex mutex_;
  std::vector<const block::Request*> active_;
  std::vector<Waiting> waiting_;  // in order of arrival
};

}  // namespace netblk::store
