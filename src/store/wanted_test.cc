// SPDX-License-Identifier: GPL-2.0-only
#include "store/wanted.h"

#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <limits>
#include <string>

namespace netblk::store {
namespace {

class WantedTest : public testing::Test {
 protected:
  WantedTest() : fd_(::mkstemp(path_.data())) {}
  ~WantedTest() override { ::unlink(path_.c_str()); }

  // What is said where the look finds such a lock.
  bool is_set_by(short kind, off_t start, off_t length) {
    const Wanted wanted(path_, [=](int, struct flock& lock) {
      // It is asked as one who would only read.
      EXPECT_EQ(lock.l_type, F_RDLCK);
      EXPECT_EQ(lock.l_start, kWantedAt);
      lock.l_type = kind;
      lock.l_start = start;
      lock.l_len = length;
      return 0;
    });
    return wanted.is_set();
  }

  std::string path_ = testing::TempDir() + "wantedXXXXXX";
  io::UniqueFd fd_;
};

TEST_F(WantedTest, OnlyTheLockOfThatByteIsOneWhoWaits) {
  EXPECT_TRUE(is_set_by(F_WRLCK, kWantedAt, 1));
  EXPECT_FALSE(is_set_by(F_UNLCK, kWantedAt, 1));
  EXPECT_FALSE(is_set_by(F_RDLCK, kWantedAt, 1));
}

// Its own, by which it has the file: a lock of all bytes, as file systems of the network make one of a flock().
TEST_F(WantedTest, ALockOfTheWholeFileIsNobodyWhoWaits) {
  EXPECT_FALSE(is_set_by(F_WRLCK, 0, 0));
  EXPECT_FALSE(is_set_by(F_WRLCK, 0, std::numeric_limits<off_t>::max()));
  EXPECT_FALSE(is_set_by(F_WRLCK, kWantedAt, 0));
  EXPECT_FALSE(is_set_by(F_WRLCK, kWantedAt - 1, 2));
}

TEST_F(WantedTest, WhereThereIsNothingToLookAtNobodyWaits) {
  EXPECT_FALSE(Wanted().is_set());
  EXPECT_FALSE(Wanted(path_ + ".not").is_set());
  const Wanted failing(path_, [](int, struct flock& lock) {
    lock.l_type = F_WRLCK;
    errno = ENOLCK;
    return -1;
  });
  EXPECT_FALSE(failing.is_set());
}

TEST_F(WantedTest, ItIsSeenAsLongAsItIsThere) {
  ASSERT_TRUE(fd_.valid());
  const Wanted wanted(path_);
  ASSERT_EQ(::flock(fd_.get(), LOCK_EX), 0);
  EXPECT_FALSE(wanted.is_set()) << "the file is only locked";
  {
    const io::UniqueFd set = Wanted::set(path_);
    ASSERT_TRUE(set.valid());
    EXPECT_TRUE(wanted.is_set());
    EXPECT_FALSE(Wanted::set(path_).valid()) << "one who waits is enough";
  }
  EXPECT_FALSE(wanted.is_set());
}

}  // namespace
}  // namespace netblk::store
