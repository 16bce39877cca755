// SPDX-License-Identifier: GPL-2.0-only
#include "base/log.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

namespace netblk {
namespace {

class Log : public testing::Test {
 protected:
  void SetUp() override { testing::internal::CaptureStderr(); }
  void TearDown() override {
    if (!taken_) testing::internal::GetCapturedStderr();
    set_log_level(LogLevel::kInfo);
  }
  std::string written() {
    taken_ = true;
    return testing::internal::GetCapturedStderr();
  }

 private:
  bool taken_ = false;
};

TEST_F(Log, AnEventIsOneLineWithTimeAndLevel) {
  log_info("connection {} opened", 7);
  const std::string text = written();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1) << text;
  EXPECT_NE(text.find("info: connection 7 opened\n"), std::string::npos) << text;
  EXPECT_EQ(text.find("20"), 0u) << "a line starts with its year: " << text;
}

TEST_F(Log, ControlCharactersOfAPeerAreEscaped) {
  std::string hostile;
  for (int byte = 0; byte < 0x20; ++byte) hostile += static_cast<char>(byte);
  hostile += '\x7f';
  hostile += "end";
  log_line(LogLevel::kWarning, hostile);
  const std::string text = written();
  ASSERT_FALSE(text.empty());
  EXPECT_EQ(text.back(), '\n');
  for (const char c : text.substr(0, text.size() - 1)) {
    EXPECT_GE(static_cast<unsigned char>(c), 0x20u);
    EXPECT_NE(c, '\x7f');
  }
  for (const char* escaped : {"\\x00", "\\x07", "\\x09", "\\x0a", "\\x0d", "\\x1b", "\\x1f", "\\x7f", "end"})
    EXPECT_NE(text.find(escaped), std::string::npos) << escaped << " is not in " << text;
}

TEST_F(Log, BracesOfAPeerAreText) {
  log_line(LogLevel::kError, "{} {0} {:d} %s %n");
  EXPECT_NE(written().find("error: {} {0} {:d} %s %n\n"), std::string::npos);
}

TEST_F(Log, LinesBelowTheLevelAreDropped) {
  log_line(LogLevel::kDebug, "first");
  set_log_level(LogLevel::kError);
  log_line(LogLevel::kWarning, "second");
  log_line(LogLevel::kError, "third");
  set_log_level(LogLevel::kDebug);
  log_line(LogLevel::kDebug, "fourth");
  const std::string text = written();
  EXPECT_EQ(text.find("first"), std::string::npos);
  EXPECT_EQ(text.find("second"), std::string::npos);
  EXPECT_NE(text.find("error: third"), std::string::npos);
  EXPECT_NE(text.find("debug: fourth"), std::string::npos);
}

TEST_F(Log, LinesOfManyThreadsStayWhole) {
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread)
    threads.emplace_back([thread] {
      for (int i = 0; i < 100; ++i) log_info("<{}:{}>", thread, i);
    });
  for (std::thread& thread : threads) thread.join();
  const std::string text = written();
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 400);
  for (int thread = 0; thread < 4; ++thread)
    for (int i = 0; i < 100; ++i)
      EXPECT_NE(text.find(fmt::format("info: <{}:{}>\n", thread, i)), std::string::npos) << thread << ':' << i;
}

}  // namespace
}  // namespace netblk
