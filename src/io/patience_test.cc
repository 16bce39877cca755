// SPDX-License-Identifier: GPL-2.0-only
#include "io/patience.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <array>

#include "io/fd.h"

namespace netblk::io {
namespace {

class HandClock final : public Clock {
 public:
  uint64_t now_ms() const override { return ms; }
  uint64_t ms = 1000;
};

TEST(Patience, CountsWhatPasses) {
  HandClock clock;
  Patience patience(250, clock);
  EXPECT_EQ(patience.begin(), 100u);
  clock.ms += 100;
  patience.end();
  EXPECT_EQ(patience.begin(), 100u);
  clock.ms += 30;  // something was there before the end of the step
  patience.end();
  EXPECT_EQ(patience.begin(40), 40u) << "not longer than asked for";
  clock.ms += 40;
  patience.end();
  EXPECT_EQ(patience.begin(), 80u) << "what is left";
  clock.ms += 80;
  patience.end();
  EXPECT_TRUE(patience.over());
  EXPECT_EQ(patience.begin(), 0u);
}

TEST(Patience, WhoStoodStillHasWaitedForOneStep) {
  HandClock clock;
  Patience patience(250, clock);
  for (const bool over : {false, false, true}) {
    (void)patience.begin();
    clock.ms += 60'000;
    patience.end();
    EXPECT_EQ(patience.over(), over);
  }
}

TEST(Patience, ALastLookFindsWhatCameMeanwhile) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  const UniqueFd reads(ends[0]), writes(ends[1]);
  pollfd waiting{.fd = reads.get(), .events = POLLIN, .revents = 0};
  Patience patience(30);
  EXPECT_EQ(patience.wait(waiting), 0);
  EXPECT_TRUE(patience.over());
  ASSERT_EQ(::write(writes.get(), "x", 1), 1);
  EXPECT_EQ(patience.wait(waiting), 1);
}

TEST(Patience, NoneIsALook) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::pipe(ends.data()), 0);
  const UniqueFd reads(ends[0]), writes(ends[1]);
  pollfd waiting{.fd = reads.get(), .events = POLLIN, .revents = 0};
  Patience patience(0);
  EXPECT_EQ(patience.wait(waiting), 0);
}

}  // namespace
}  // namespace netblk::io
