// SPDX-License-Identifier: GPL-2.0-only
#include "store/group_sync.h"

#include <cerrno>
#include <utility>

#include "base/log.h"
#include "base/result.h"

namespace netblk::store {
namespace {

void finish_at_home(block::Request& request) { std::move(request.held.completion).finish(request.error); }

}  // namespace

GroupSync::Kick::Kick(GroupSync& owner)
    : Posted([](Runnable& self) {
        GroupSync& group = static_cast<Kick&>(self).sync;
        group.start(*group.sync_loop_);
      }),
      sync(owner) {}

GroupSync::SyncOp::SyncOp(GroupSync& owner)
    : Op([](Runnable& self) {
        auto& op = static_cast<SyncOp&>(self);
        op.sync.ended(op.result);
      }),
      sync(owner) {}

GroupSync::Noted::Noted(GroupSync& owner)
    : Posted([](Runnable& self) { static_cast<Noted&>(self).sync.answer(); }), sync(owner) {}

GroupSync::GroupSync(io::File& file, OnFailure on_failure)
    : file_(file), on_failure_(std::move(on_failure)), kick_(*this), op_(*this), noted_(*this) {}

void GroupSync::join(block::Request& request) {
  bool too_late = false;
  {
    const std::lock_guard lock(mutex_);
    too_late = poisoned() && !scheduled_;
    if (!too_late) {
      request.held.next = waiting_;
      waiting_ = &request;
      if (scheduled_) return;
      scheduled_ = true;
    }
  }
  if (too_late) return std::move(request.held.completion).finish(EIO);
  sync_loop_ = &io::loop_of(*request.loop);
  // At the end of the ready queue: everything that this round of completions writes joins the same sync.
  coro::ReadyQueue::current().push(kick_);
}

void GroupSync::start(io::Loop& loop) {
  {
    const std::lock_guard lock(mutex_);
    running_ = std::exchange(waiting_, nullptr);
  }
  syncs_.fetch_add(1, std::memory_order_relaxed);
  if (file_.datasync(loop, op_)) ended(op_.result);
}

void GroupSync::ended(int32_t result) {
  if (result < 0 && !poisoned_.exchange(true, std::memory_order_acq_rel)) {
    log_error("fdatasync failed: {}; data may be lost: every later write and flush of this store fails until it is "
              "opened again",
              errno_text(-result));
    // The loop stays: one of those who wait is on it.
    if (on_failure_) return on_failure_([this] { sync_loop_->post(noted_); });
  }
  answer();
}

void GroupSync::answer() {
  block::Request* answered = std::exchange(running_, nullptr);
  io::Loop& here = *sync_loop_;
  io::Loop* next_loop = nullptr;
  {
    const std::lock_guard lock(mutex_);
    scheduled_ = waiting_ != nullptr;
    // On the loop of one that waits, which cannot end before its request has: this one may have no more work.
    if (scheduled_) next_loop = &io::loop_of(*waiting_->loop);
  }
  if (next_loop != nullptr) {
    sync_loop_ = next_loop;
    if (next_loop == &here) {
      coro::ReadyQueue::current().push(kick_);
    } else {
      next_loop->post(kick_);
    }
  }
  // Oldest first.
  block::Request* ordered = nullptr;
  while (answered != nullptr) {
    block::Request* const next = answered->held.next;
    answered->held.next = ordered;
    ordered = std::exchange(answered, next);
  }
  while (ordered != nullptr) {
    block::Request& request = *std::exchange(ordered, ordered->held.next);
    request.error = poisoned() ? EIO : 0;
    if (&io::loop_of(*request.loop) == &here) {
      finish_at_home(request);
    } else {
      request.held.hop.send(request, finish_at_home);
    }
  }
}

}  // namespace netblk::store
