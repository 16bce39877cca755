// SPDX-License-Identifier: GPL-2.0-only
// The driver's generic netlink family (protocol/netblk_genl.h): disks made and removed. It needs CAP_NET_ADMIN. Errors
// carry the kernel's own words.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "attach/genl/genl.h"
#include "base/result.h"

namespace netblk::attach {

class NetblkKo {
 public:
  // ENOENT: the driver is not loaded.
  static Result<NetblkKo> open();

  // options: as written to /sys/bus/netblk/add. The disk is connected to nothing; its number.
  Result<uint32_t> add(const std::string& options);
  // EBUSY: it is open.
  Status remove(uint32_t number);

 private:
  explicit NetblkKo(Genl family) : family_(std::move(family)) {}

  Genl family_;
};

}  // namespace netblk::attach
