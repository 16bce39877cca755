// SPDX-License-Identifier: GPL-2.0-only
#include "base/result.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>

namespace netblk {
namespace {

class ResultDeath : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST(Result, HoldsAValue) {
  const Result<int> seven = 7;
  EXPECT_TRUE(seven.ok());
  EXPECT_TRUE(static_cast<bool>(seven));
  EXPECT_EQ(seven.value(), 7);
}

TEST(Result, HoldsAnErrorInWords) {
  const Result<int> failed = make_error(ENOENT, "cannot open {}: {}", "/nowhere", errno_text(ENOENT));
  EXPECT_FALSE(failed.ok());
  EXPECT_EQ(failed.error().code, ENOENT);
  EXPECT_EQ(failed.error().message, "cannot open /nowhere: No such file or directory");
}

TEST(Result, MovesWhatCannotBeCopied) {
  Result<std::unique_ptr<int>> made = std::make_unique<int>(3);
  const std::unique_ptr<int> taken = std::move(made).value();
  EXPECT_EQ(*taken, 3);
}

TEST(Result, StatusIsOkWithoutAValue) {
  const Status fine = Ok{};
  EXPECT_TRUE(fine.ok());
}

TEST_F(ResultDeath, ValueOfAFailureAborts) {
  EXPECT_DEATH(
      {
        Result<int> failed = make_error(EIO, "it broke");
        (void)failed.value();
      },
      "value\\(\\) of a failed Result");
  EXPECT_DEATH((void)Result<int>(make_error(EIO, "it broke")).value(), "value\\(\\) of a failed Result");
}

TEST_F(ResultDeath, ErrorOfASuccessAborts) {
  EXPECT_DEATH(
      {
        const Result<int> fine = 1;
        (void)fine.error();
      },
      "error\\(\\) of a successful Result");
  EXPECT_DEATH((void)Result<int>(1).error(), "error\\(\\) of a successful Result");
}

TEST_F(ResultDeath, AFailedCheckNamesFileLineAndReason) {
  EXPECT_DEATH(NETBLK_CHECK(1 + 1 == 3, "arithmetic"), "result_test\\.cc:[0-9]+: check failed: arithmetic");
}

}  // namespace
}  // namespace netblk
