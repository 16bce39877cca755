// SPDX-License-Identifier: GPL-2.0-only
#include "base/id.h"

#include <gtest/gtest.h>

namespace netblk {
namespace {

TEST(Id, TextAndBack) {
  const Id id = random_id();
  EXPECT_FALSE(id.is_zero());
  EXPECT_EQ(id_text(id).size(), 32u);
  EXPECT_EQ(parse_id(id_text(id)).value(), id);
  EXPECT_EQ(id_text(parse_id("00010203-0405-0607-0809-0A0B0C0D0E0F").value()), "000102030405060708090a0b0c0d0e0f");
  EXPECT_NE(random_id(), random_id());
}

TEST(Id, RefusesWhatIsNotOne) {
  for (const char* text : {"", "00", "000102030405060708090a0b0c0d0e0g", "000102030405060708090a0b0c0d0e0f0"})
    EXPECT_FALSE(parse_id(text)) << text;
}

}  // namespace
}  // namespace netblk
