// SPDX-License-Identifier: GPL-2.0-only
// What can be said without the module: tests/vm/cases/ublk.sh is where there is one.
#include "attach/ublk/ublk_control.h"

#include <gtest/gtest.h>

#include "attach/ublk/ublk_abi.h"

namespace netblk::attach {
namespace {

TEST(UblkNode, NamesDisksAndNothingElse) {
  EXPECT_EQ(ublk_number("/dev/ublkb0"), 0u);
  EXPECT_EQ(ublk_number("/dev/ublkb1048575"), 1048575u);
  EXPECT_EQ(ublk_node(17), "/dev/ublkb17");
  for (const char* other : {"", "/dev/ublkb", "/dev/ublkb01", "/dev/ublkb-1", "/dev/ublkb1p1", "/dev/ublkb1048576", "/dev/ublkc0",
                            "/dev/nbd0", "ublkb0"})
    EXPECT_FALSE(ublk_number(other)) << other;
}

// Linux 6.1 knows the plain numbers only; those in ioctl()'s form are of <linux/ublk_cmd.h> since 6.4.
TEST(UblkAbi, WritesNumbersInBothForms) {
  EXPECT_EQ(abi::control_number(UBLK_CMD_ADD_DEV, false, false), 0x04u);
  EXPECT_EQ(abi::control_number(UBLK_CMD_ADD_DEV, true, false), 0xc0207504u);
  EXPECT_EQ(abi::control_number(UBLK_CMD_GET_DEV_INFO, true, true), 0x80207502u);
  EXPECT_EQ(abi::control_number(abi::kGetFeatures, true, true), 0x80207513u);
  EXPECT_EQ(abi::control_number(abi::kUpdateSize, true, false), 0xc0207515u);
  EXPECT_EQ(abi::queue_number(UBLK_IO_FETCH_REQ, false), 0x20u);
  EXPECT_EQ(abi::queue_number(UBLK_IO_COMMIT_AND_FETCH_REQ, true), 0xc0107521u);
}

TEST(UblkParams, SayWhatTheSourceCan) {
  const ublk_params params = abi::params_of({.size_bytes = 10ull << 40,
                                             .logical_bytes = 512,
                                             .physical_bytes = 4096,
                                             .optimal_bytes = 65536,
                                             .max_io_bytes = 256u << 10,
                                             .volatile_cache = true,
                                             .fua = true,
                                             .can_trim = true,
                                             .can_write_zeroes = true});
  EXPECT_EQ(params.len, sizeof params);
  EXPECT_EQ(params.types, static_cast<uint32_t>(UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DISCARD));
  EXPECT_EQ(params.basic.attrs, static_cast<uint32_t>(UBLK_ATTR_VOLATILE_CACHE | UBLK_ATTR_FUA));
  EXPECT_EQ(params.basic.logical_bs_shift, 9);
  EXPECT_EQ(params.basic.physical_bs_shift, 12);
  EXPECT_EQ(params.basic.io_min_shift, 12);
  EXPECT_EQ(params.basic.io_opt_shift, 16);
  EXPECT_EQ(params.basic.max_sectors, 512u);
  EXPECT_EQ(params.basic.dev_sectors, (10ull << 40) / 512);
  EXPECT_EQ(params.discard.max_discard_sectors, 2097152u);
  EXPECT_EQ(params.discard.max_discard_segments, 1);
  EXPECT_EQ(params.discard.max_write_zeroes_sectors, 2097152u);
  EXPECT_EQ(params.discard.discard_granularity, 4096u);
}

TEST(UblkParams, DoNotPromiseWhatIsNotThere) {
  const ublk_params plain = abi::params_of({.size_bytes = 1u << 20, .fua = true});
  EXPECT_EQ(plain.basic.attrs, 0u) << "FUA says nothing without a cache";
  EXPECT_EQ(plain.discard.max_discard_sectors, 0u);
  EXPECT_EQ(plain.discard.max_discard_segments, 0);
  EXPECT_EQ(plain.discard.max_write_zeroes_sectors, 0u);
  EXPECT_NE(plain.discard.discard_granularity, 0u) << "the kernel refuses zero";
  const ublk_params fixed =
      abi::params_of({.size_bytes = 1u << 20, .read_only = true, .rotational = true, .can_trim = true, .can_write_zeroes = true});
  EXPECT_EQ(fixed.basic.attrs, static_cast<uint32_t>(UBLK_ATTR_READ_ONLY | UBLK_ATTR_ROTATIONAL));
  EXPECT_EQ(fixed.discard.max_discard_sectors, 0u);
  EXPECT_EQ(fixed.discard.max_write_zeroes_sectors, 0u);
}

// The end of an export that is no whole block cannot be reached.
TEST(UblkParams, CountWholeBlocks) {
  const ublk_params params =
      abi::params_of({.size_bytes = 4096 * 5 + 1024, .logical_bytes = 4096, .physical_bytes = 4096, .optimal_bytes = 4096});
  EXPECT_EQ(params.basic.dev_sectors, 40u);
  EXPECT_EQ(params.basic.logical_bs_shift, 12);
}

TEST(UblkParamsDeathTest, RefusesBlocksThatNoDiskHas) {
  EXPECT_DEATH((void)abi::params_of({.size_bytes = 1u << 20, .logical_bytes = 768}), "block sizes");
  EXPECT_DEATH((void)abi::params_of({.size_bytes = 1u << 20, .logical_bytes = 8192, .physical_bytes = 4096}), "block sizes");
  EXPECT_DEATH((void)abi::params_of({.size_bytes = 1u << 20, .logical_bytes = 256}), "block sizes");
}

}  // namespace
}  // namespace netblk::attach
