// SPDX-License-Identifier: GPL-2.0-only
#include "server/owners.h"

#include <gtest/gtest.h>

namespace netblk::server {
namespace {

TEST(Owners, RecordAndBack) {
  EXPECT_EQ(decode_owners({}).value(), Owners{});
  EXPECT_EQ(decode_owners(encode_owners({})).value(), Owners{});
  const Owners one{false, {{random_id(), random_id()}}};
  EXPECT_EQ(decode_owners(encode_owners(one)).value(), one);
  const Owners many{true, {{random_id(), random_id()}, {random_id(), random_id()}}};
  EXPECT_EQ(decode_owners(encode_owners(many)).value(), many);
}

TEST(Owners, ARecordThatIsNoneIsRefused) {
  const Owners one{false, {{random_id(), random_id()}}};
  auto record = encode_owners(one);
  for (size_t bytes = 1; bytes < record.size(); ++bytes) EXPECT_FALSE(decode_owners(std::span(record).first(bytes))) << bytes;
  record.push_back(std::byte{0});
  EXPECT_FALSE(decode_owners(record));
  record = encode_owners(one);
  record[3] = std::byte{2};
  EXPECT_FALSE(decode_owners(record)) << "a version that is not known";
  EXPECT_FALSE(decode_owners(encode_owners({false, {{random_id(), random_id()}, {random_id(), random_id()}}})))
      << "two exclusive owners";
}

TEST(Owners, WhoIsWho) {
  const Owner mine{random_id(), random_id()};
  const Owner other{random_id(), random_id()};
  Owners owners{true, {mine, other}};
  EXPECT_TRUE(owners.has(mine.client_id, mine.session_id));
  EXPECT_FALSE(owners.has(mine.client_id, other.session_id));
  EXPECT_EQ(*owners.other_than(mine.client_id), other);
  owners.remove_client(other.client_id);
  EXPECT_EQ(owners.other_than(mine.client_id), nullptr);
}

}  // namespace
}  // namespace netblk::server
