// SPDX-License-Identifier: GPL-2.0-only
// What of ublk's interface is not in the headers of the oldest kernel that we build with, and how a command's number is
// written.
#pragma once

#include <linux/ublk_cmd.h>
#include <sys/ioctl.h>

#include <cstdint>

#include "attach/ublk/ublk_control.h"

namespace netblk::attach::abi {

inline constexpr uint32_t kGetFeatures = 0x13;
inline constexpr uint32_t kUpdateSize = 0x15;
inline constexpr uint64_t kFeatureUpdateSize = uint64_t{1} << 10;

// The old number as it is, or in ioctl()'s form. `reads`: the kernel only gives.
inline uint32_t control_number(uint32_t command, bool encoded, bool reads) {
  if (!encoded) return command;
  return reads ? _IOR('u', command, ublksrv_ctrl_cmd) : _IOWR('u', command, ublksrv_ctrl_cmd);
}
inline uint32_t queue_number(uint32_t command, bool encoded) {
  return encoded ? _IOWR('u', command, ublksrv_io_cmd) : command;
}

ublk_params params_of(const UblkTraits& traits);

}  // namespace netblk::attach::abi
