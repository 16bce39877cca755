// SPDX-License-Identifier: GPL-2.0-only
// Background: what an open volume does beside the requests, on the loop of its opening: checkpoints, when they are asked for;
// the collector, between them, for as long as the file has more space than it should; and giving back what is free.
#pragma once

#include <atomic>
#include <cstdint>

#include "coro/event.h"
#include "coro/scope.h"
#include "coro/task.h"
#include "io/loop.h"
#include "store/volume/checkpoint.h"
#include "store/volume/collector.h"
#include "store/volume/core.h"

namespace netblk::store::volume {

class Background {
 public:
  Background(io::Loop& loop, Core& core, Checkpoint& checkpoint);
  Background(const Background&) = delete;
  Background& operator=(const Background&) = delete;

  // A checkpoint is wanted. On any thread.
  void want() { tell(kCheckpoint); }
  // Something may be freed: now, if there is too much of it, or when the volume rests. On any thread.
  void stir() { tell(kLook); }
  // On any loop, for who has not found the space of so many segments: false when all that can be freed is.
  coro::Task<bool> make_room(io::Loop& loop, uint64_t segments);

  // Of both superblocks; not beside a checkpoint, which writes them too.
  coro::Task<Status> write_key_slots(KeySlots slots);
  // Nothing is begun any more, and what was begun has ended.
  coro::Task<void> stop();
  // What is free is given back. After stop(), and the last checkpoint, which has left it behind; and at rest.
  coro::Task<void> return_all();

 private:
  enum Asked : unsigned { kCheckpoint = 1, kLook = 2 };
  struct Told : io::Posted {
    explicit Told(Background& owner)
        : Posted([](coro::Runnable& self) { static_cast<Told&>(self).background.take_asked(); }), background(owner) {}
    Background& background;
  };
  struct Rest : io::Timer {
    explicit Rest(Background& owner)
        : Timer(owner.loop_, [](coro::Runnable& self) { static_cast<Rest&>(self).background.look_whether_it_rests(); }),
          background(owner) {}
    Background& background;
  };
  // Where the file's space is, and where it should be.
  struct Space {
    uint64_t used = 0;     // what the file has
    uint64_t passing = 0;  // of it: what the next checkpoints free
    uint64_t begin = 0;    // above it the collector begins,
    uint64_t most = 0;     // and above this it should not be
    uint64_t slack = 0;    // between what is live and `most`
    uint64_t free_segments = 0;  // of those that have space
    uint64_t room = 0;     // in them, and for copies
  };

  void tell(unsigned asked);
  void take_asked();
  void start();
  void look_whether_it_rests();
  Space space() const;
  bool due(const Space& space);
  bool backs_off();
  Collector::Choice choice(bool first_of_all) const;
  void set_pause(const Space& space, Collector::Step step);
  coro::Task<void> run();
  static coro::Task<void> move_history(Background& background);
  static coro::Task<void> run_all(Background& background);
  coro::Task<bool> checkpoint();
  coro::Task<void> give_back(uint64_t keep, uint64_t within);
  coro::Task<bool> let_go();
  coro::Task<void> make_space();
  bool room_is_wanted();
  uint64_t pace_ms(const Space& space) const;

  io::Loop& loop_;
  Core& core_;
  Checkpoint& checkpoint_;
  Collector collector_;

  std::atomic<unsigned> asked_{0};
  Told told_;
  coro::Event heard_;
  Rest rest_;
  bool running_ = false;
  bool moves_history_ = false;
  bool gives_way_ = false;   // to who writes the superblocks
  std::atomic<bool> stopped_{false};
  bool begun_ = false;       // what the last opening has left behind is free
  bool is_short_ = false;    // what becomes free is needed at once
  bool wants_checkpoint_ = false;
  bool rests_ = false;       // nobody has changed anything for a while
  int at_rest_ = 0;          // checkpoints since it rests
  bool stirred_ = false;     // since the last checkpoint
  bool keeps_space_ = false; // what is free has not been given back
  uint64_t beside_ = 0;      // free segments that were kept though neither the reserve nor the next checkpoint needs them
  uint64_t seen_lsn_ = 0;    // when it was last looked whether it rests
  uint64_t taken_before_ = 0;

  // Of the last checkpoint, if it failed: the LSN, and when. Another one is tried when the log has grown, or after some time.
  uint64_t failed_at_ = 0;
  uint64_t failed_at_ms_ = 0;

  // Attempts to make room, for those who wait for one. Guarded by core_.mutex.
  uint64_t room_wanted_ = 0;  // segments; 0: nobody waits
  uint64_t attempts_begun_ = 0, attempts_ended_ = 0;
  bool attempt_made_room_ = false;  // the last that ended
  uint64_t full_lsn_ = 0;  // nothing could be freed, and no record has been written since: the LSN that is next

  coro::Scope scope_;
};

}  // namespace netblk::store::volume
