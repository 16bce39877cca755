// SPDX-License-Identifier: GPL-2.0-only
#include "io/pacing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>

namespace netblk::io {
namespace {

uint64_t now_ns = 0;
uint64_t read_now() { return now_ns; }

// A client as its server sees it: how many requests are there after a rest or without one, and how long that took, in
// nanoseconds.
struct Arrival {
  uint64_t requests;
  uint64_t took_ns;
};
using Client = std::function<Arrival(bool rested)>;

struct Served {
  uint64_t requests = 0;
  uint64_t rests = 0;
  uint64_t in_rests = 0;  // requests that a rest brought
  bool rests_now = false;
};

void serve(Pacing& pacing, const Client& client, uint64_t requests, Served& served) {
  const uint64_t until = served.requests + requests;
  while (served.requests < until) {
    const Arrival arrival = client(served.rests_now);
    now_ns += arrival.took_ns;
    served.requests += arrival.requests;
    if (served.rests_now) served.in_rests += arrival.requests;
    served.rests_now = pacing.should_rest(arrival.requests);
    served.rests += served.rests_now ? 1 : 0;
  }
}

Arrival alone(bool rested) { return {1, rested ? 29'000u : 9'000u}; }
// Sends one by one, and faster when it wakes nobody.
Arrival deep(bool rested) { return rested ? Arrival{7, 25'000} : Arrival{1, 5'000}; }
// Sends eight together, and then waits for all their answers.
Arrival in_step(bool rested) { return {8, rested ? 50'000u : 30'000u}; }

TEST(Pacing, OneRequestInFlightIsHardlyEverHeldUp) {
  Pacing pacing(read_now);
  Served served;
  serve(pacing, alone, 200'000, served);
  EXPECT_GE(served.rests, 1u);
  EXPECT_LE(served.rests, 20u);
}

TEST(Pacing, ADeepQueueIsTakenInRests) {
  Pacing pacing(read_now);
  Served served;
  serve(pacing, deep, 200'000, served);
  EXPECT_GE(served.in_rests, 190'000u);
}

TEST(Pacing, AClientThatWaitsForAllItsAnswersIsLeftAlone) {
  Pacing pacing(read_now);
  Served served;
  serve(pacing, in_step, 200'000, served);
  EXPECT_GE(served.rests, 1u);
  EXPECT_LE(served.in_rests, 8'000u);
}

// Every so many requests the client has nothing to ask for, for 100 ms.
Client with_pauses(const Client& client, uint64_t every) {
  return [client, every, left = every](bool rested) mutable {
    Arrival arrival = client(rested);
    left -= std::min(left, arrival.requests);
    if (left == 0) {
      arrival.took_ns += 100'000'000;
      left = every;
    }
    return arrival;
  };
}

TEST(Pacing, NoSpeedIsMeasuredAcrossAPause) {
  Pacing pacing(read_now);
  Served served;
  serve(pacing, with_pauses(in_step, 1'000), 200'000, served);
  EXPECT_GE(served.rests, 1u);
  EXPECT_LE(served.in_rests, 8'000u);
}

TEST(Pacing, ADeepQueueIsTakenInRestsBetweenPauses) {
  Pacing pacing(read_now);
  Served served;
  serve(pacing, alone, 200'000, served);
  serve(pacing, with_pauses(deep, 5'000), 400'000, served);
  EXPECT_GE(served.in_rests, 300'000u);
}

TEST(Pacing, ARestThatBringsLittleIsTheLast) {
  Pacing pacing(read_now);
  Served served;
  serve(pacing, deep, 200'000, served);
  ASSERT_TRUE(served.rests_now);
  const uint64_t before = served.rests;
  serve(pacing, alone, 200, served);
  EXPECT_EQ(served.rests, before);
  EXPECT_FALSE(served.rests_now);
}

TEST(Pacing, WhatWasLeftAloneIsTriedAgainWhenItHasGrown) {
  Pacing pacing(read_now);
  Served served;
  serve(pacing, alone, 200'000, served);
  serve(pacing, deep, 200'000, served);
  EXPECT_GE(served.in_rests, 150'000u);
}

TEST(Pacing, WithoutRequestsThereIsNoRest) {
  Pacing pacing(read_now);
  for (int i = 0; i < 10'000; ++i) {
    now_ns += 1'000;
    EXPECT_FALSE(pacing.should_rest(0));
  }
  Served served;
  serve(pacing, deep, 200'000, served);
  ASSERT_TRUE(served.rests_now);
  EXPECT_FALSE(pacing.should_rest(0));
  EXPECT_FALSE(pacing.should_rest(0));
}

}  // namespace
}  // namespace netblk::io
