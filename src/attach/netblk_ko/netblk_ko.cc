// SPDX-License-Identifier: GPL-2.0-only
#include "attach/netblk_ko/netblk_ko.h"

#include <netlink/attr.h>

#include <cerrno>
#include <optional>
#include <utility>

#include "protocol/netblk_genl.h"

namespace netblk::attach {
namespace {

Error refusal(Error error) {
  error.message = "the driver refuses: " + error.message;
  return error;
}

}  // namespace

Result<NetblkKo> NetblkKo::open() {
  auto family = Genl::open(NETBLK_GENL_NAME, NETBLK_GENL_VERSION, NETBLK_A_MAX);
  if (!family && family.error().code == ENOENT)
    return make_error(ENOENT, "{}: the driver is not loaded", family.error().message);
  if (!family) return std::move(family).error();
  return NetblkKo(std::move(family).value());
}

Result<uint32_t> NetblkKo::add(const std::string& options) {
  std::optional<uint32_t> number;
  Status done = family_.ask(
      NETBLK_GENL_ADD, [&](nl_msg* message) { return nla_put_string(message, NETBLK_A_OPTIONS, options.c_str()); },
      [&](std::span<nlattr* const> answer) {
        if (answer[NETBLK_A_NUMBER] != nullptr) number = nla_get_u32(answer[NETBLK_A_NUMBER]);
      });
  if (!done) return refusal(std::move(done).error());
  if (!number) return make_error(EPROTO, "the driver's answer names no disk");
  return *number;
}

Status NetblkKo::remove(uint32_t number) {
  Status done = family_.ask(NETBLK_GENL_REMOVE,
                            [&](nl_msg* message) { return nla_put_u32(message, NETBLK_A_NUMBER, number); });
  if (!done) return refusal(std::move(done).error());
  return Ok{};
}

}  // namespace netblk::attach
