// SPDX-License-Identifier: GPL-2.0-only
#include "server/gate.h"

#include <gtest/gtest.h>

namespace netblk::server {
namespace {

io::Address from(uint8_t last) {
  io::Address address;
  address.ip = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, last};
  return address;
}

io::Address local() {
  io::Address address;
  address.unix_name = "pid=1,uid=0";
  return address;
}

TEST(Gate, AtTheLimitTheOldestHalfOpenOneGoes) {
  Gate gate;
  gate.set_limits({.connections = 3, .per_address = 100});
  for (uint64_t number = 1; number <= 3; ++number) EXPECT_FALSE(gate.enter(number, from(1), true).shed);
  gate.opened(1);
  const Gate::Answer fourth = gate.enter(4, from(2), true);
  EXPECT_TRUE(fourth.refusal.empty());
  EXPECT_EQ(fourth.shed, 2u);
  EXPECT_EQ(gate.connections(), 3u);
  gate.leave(2);  // its connection ends later, and is not counted twice
  EXPECT_EQ(gate.connections(), 3u);
  gate.opened(2);
}

TEST(Gate, WhoIsOpenIsNeverSentAway) {
  Gate gate;
  gate.set_limits({.connections = 2, .per_address = 100});
  for (uint64_t number = 1; number <= 2; ++number) {
    gate.enter(number, from(1), true);
    gate.opened(number);
  }
  const Gate::Answer third = gate.enter(3, from(2), true);
  EXPECT_NE(third.refusal.find("2 connections"), std::string::npos) << third.refusal;
  EXPECT_FALSE(third.shed);
  gate.leave(1);
  EXPECT_TRUE(gate.enter(4, from(2), true).refusal.empty());
}

TEST(Gate, AnAddressHasItsOwnLimit) {
  Gate gate;
  gate.set_limits({.connections = 100, .per_address = 2});
  gate.enter(1, from(1), true);
  gate.enter(2, from(2), true);  // older than 3, but not of this address
  gate.enter(3, from(1), true);
  gate.opened(1);
  const Gate::Answer next = gate.enter(4, from(1), true);
  EXPECT_TRUE(next.refusal.empty());
  EXPECT_EQ(next.shed, 3u);
  gate.opened(4);
  EXPECT_NE(gate.enter(5, from(1), true).refusal.find("its address"), std::string::npos);
  EXPECT_TRUE(gate.enter(6, from(3), true).refusal.empty()) << "another address is another matter";
  for (uint64_t number = 10; number < 20; ++number) EXPECT_TRUE(gate.enter(number, local(), true).refusal.empty());
}

TEST(Gate, ThereAreOnlySoManyHandshakesAtATime) {
  Gate gate;
  uint64_t number = 0;
  gate.enter(++number, from(1), false);  // silent, of netblk: it has no handshake and stays
  for (uint32_t i = 0; i < limits::kMaxHandshakes; ++i) EXPECT_FALSE(gate.enter(++number, from(1), true).shed);
  EXPECT_EQ(gate.enter(++number, from(1), true).shed, 2u);
  EXPECT_FALSE(gate.enter(++number, from(1), false).shed);
}

TEST(Gate, ForDescriptorsTheOldestGoes) {
  Gate gate;
  EXPECT_FALSE(gate.shed());
  gate.enter(1, from(1), false);
  gate.enter(2, local(), true);
  gate.enter(3, from(1), true);
  gate.opened(1);
  EXPECT_EQ(gate.shed(), 2u);
  EXPECT_EQ(gate.shed(), 3u);
  EXPECT_FALSE(gate.shed());
  EXPECT_EQ(gate.connections(), 1u);
}

TEST(Gate, ALowerLimitHoldsForThoseThatCome) {
  Gate gate;
  for (uint64_t number = 1; number <= 5; ++number) {
    gate.enter(number, from(1), true);
    gate.opened(number);
  }
  gate.set_limits({.connections = 2, .per_address = 100});
  EXPECT_EQ(gate.connections(), 5u);
  EXPECT_FALSE(gate.enter(6, from(1), true).refusal.empty());
}

}  // namespace
}  // namespace netblk::server
