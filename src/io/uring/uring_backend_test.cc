// SPDX-License-Identifier: GPL-2.0-only
// DESIGN 3: "Probe features at start ... and fall back where io_uring is forbidden, as in most containers."
#include "io/uring/uring_backend.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>

#include "coro/task.h"
#include "io/epoll/epoll_backend.h"

namespace netblk::io {
namespace {

// From here on io_uring_setup fails with this errno value in this process, as a container's profile has it.
bool refuse_io_uring(unsigned error) {
  sock_filter filter[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error & SECCOMP_RET_DATA)),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {.len = sizeof filter / sizeof filter[0], .filter = filter};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

coro::Task<void> sleep_a_little(Loop& loop, bool& ended) {
  co_await SleepUntil(loop, loop.now_ms() + 1);
  ended = true;
}

[[noreturn]] void try_both(unsigned error) {
  if (!refuse_io_uring(error)) ::_exit(10);
  const auto uring = make_uring_backend();
  if (uring.ok()) ::_exit(11);
  std::fprintf(stderr, "refusal: %s\n", uring.error().message.c_str());
  if (uring.error().code != static_cast<int>(error)) ::_exit(12);
  auto epoll = make_epoll_backend(1);
  if (!epoll.ok()) ::_exit(13);
  const SteadyClock clock;
  const auto loop = epoll.value()->make_loop(clock).value();
  bool ended = false;
  loop->run(sleep_a_little(*loop, ended));
  ::_exit(ended ? 0 : 14);
}

class UringRefused : public testing::Test {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "threadsafe"); }
};

TEST_F(UringRefused, ByPolicyIsSaidInWordsAndEpollServes) {
  EXPECT_EXIT(try_both(EPERM), testing::ExitedWithCode(0), "refusal: .*io_uring.*Operation not permitted");
}

TEST_F(UringRefused, ByAnOldKernelIsSaidInWordsAndEpollServes) {
  EXPECT_EXIT(try_both(ENOSYS), testing::ExitedWithCode(0), "refusal: .*io_uring.*not implemented");
}

TEST(Uring, SaysWhichFeaturesItFound) {
  auto made = make_uring_backend();
  if (!made) GTEST_SKIP() << "no io_uring here: " << made.error().message;
  const SteadyClock clock;
  const auto loop = made.value()->make_loop(clock).value();
  const std::string text = loop->description();
  EXPECT_EQ(text.find("io_uring ("), 0u) << text;
  std::fprintf(stderr, "%s\n", text.c_str());
}

}  // namespace
}  // namespace netblk::io
