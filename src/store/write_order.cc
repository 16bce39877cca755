// SPDX-License-Identifier: GPL-2.0-only
#include "store/write_order.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace netblk::store {

// Waits behind every active range and every earlier waiter that it overlaps, so that nobody is overtaken for ever.
bool WriteOrder::blocked(const block::Request& request, size_t earlier) const {
  for (const block::Request* other : active_)
    if (overlap(request, *other)) return true;
  for (size_t i = 0; i < earlier; ++i)
    if (overlap(request, *waiting_[i].request)) return true;
  return false;
}

bool WriteOrder::acquire(block::Request& request, Granted granted) {
  const std::lock_guard lock(mutex_);
  if (blocked(request, waiting_.size())) {
    waiting_.push_back({&request, granted});
    return false;
  }
  active_.push_back(&request);
  return true;
}

void WriteOrder::release(block::Request& request) {
  std::vector<Waiting> freed;
  {
    const std::lock_guard lock(mutex_);
    const auto found = std::find(active_.begin(), active_.end(), &request);
    NETBLK_CHECK(found != active_.end(), "a range is released that is not held");
    *found = active_.back();
    active_.pop_back();
    for (size_t i = 0; i < waiting_.size();) {
      if (blocked(*waiting_[i].request, i)) {
        ++i;
        continue;
      }
      active_.push_back(waiting_[i].request);
      freed.push_back(waiting_[i]);
      waiting_.erase(waiting_.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  for (const Waiting& next : freed) next.request->held.hop.send(*next.request, next.granted);
}

}  // namespace netblk::store
