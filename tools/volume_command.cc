// SPDX-License-Identifier: GPL-2.0-only
#include "volume_command.h"

#include <algorithm>
#include <array>
#include <cerrno>

#include "volume_commands.h"

namespace netblk::tools {
namespace {

constexpr std::array kCommands = {
    VolumeCommand{"info", false, VolumeBytes::kNone, volume_info},
    VolumeCommand{"list", false, VolumeBytes::kNone, volume_list},
    VolumeCommand{"snapshot", true, VolumeBytes::kNone, volume_snapshot},
    VolumeCommand{"delete", true, VolumeBytes::kNone, volume_delete},
    VolumeCommand{"clone", true, VolumeBytes::kNone, volume_clone},
    VolumeCommand{"rollback", true, VolumeBytes::kNone, volume_rollback},
    VolumeCommand{"rewind", true, VolumeBytes::kNone, volume_rewind},
    VolumeCommand{"resize", true, VolumeBytes::kNone, volume_resize},
    VolumeCommand{"get", false, VolumeBytes::kNone, volume_get},
    VolumeCommand{"set", true, VolumeBytes::kNone, volume_set},
    VolumeCommand{"key add", true, VolumeBytes::kNone, volume_key_add},
    VolumeCommand{"key remove", true, VolumeBytes::kNone, volume_key_remove},
    VolumeCommand{"key change", true, VolumeBytes::kNone, volume_key_change},
    VolumeCommand{"check", false, VolumeBytes::kNone, volume_check},
    VolumeCommand{"scrub", false, VolumeBytes::kNone, volume_scrub, true},
    VolumeCommand{"send", false, VolumeBytes::kOut, volume_send},
    VolumeCommand{"export", false, VolumeBytes::kOut, volume_export},
    VolumeCommand{"receive", true, VolumeBytes::kIn, volume_receive},
    VolumeCommand{"receive-status", false, VolumeBytes::kNone, volume_receive_status},
    VolumeCommand{"receive-abort", true, VolumeBytes::kNone, volume_receive_abort},
};

const Json* member_of(const Json& asked, const char* member) {
  if (!asked.is_object()) return nullptr;
  const auto found = asked.find(member);
  return found == asked.end() || found->is_null() ? nullptr : &*found;
}

Error bad_member(const char* member, const char* kind) {
  return make_error(EINVAL, "what is asked of a volume has no '{}', or it is no {}", member, kind);
}

}  // namespace

bool BranchTurn::has_come() const {
  const auto first = std::find_if(running_.turns.begin(), running_.turns.end(), [this](const BranchTurn* each) { return each->branch_ == branch_; });
  return *first == this;
}

coro::Task<void> BranchTurn::come() {
  while (!has_come()) co_await moved_.wait();
}

BranchTurn::~BranchTurn() {
  running_.turns.remove(this);
  for (BranchTurn* const each : running_.turns)
    if (each->branch_ == branch_) each->moved_.set();
}

const VolumeCommand* find_volume_command(std::string_view name) {
  const auto found = std::find_if(kCommands.begin(), kCommands.end(), [&](const VolumeCommand& each) { return name == each.name; });
  return found == kCommands.end() ? nullptr : &*found;
}

Result<std::string> text_in(const Json& asked, const char* member) {
  const Json* const found = member_of(asked, member);
  if (found == nullptr || !found->is_string()) return bad_member(member, "text");
  return found->get<std::string>();
}

Result<std::string> text_in(const Json& asked, const char* member, std::string otherwise) {
  return member_of(asked, member) == nullptr ? Result<std::string>(std::move(otherwise)) : text_in(asked, member);
}

Result<uint64_t> number_in(const Json& asked, const char* member) {
  const Json* const found = member_of(asked, member);
  if (found == nullptr || !found->is_number_unsigned()) return bad_member(member, "number");
  return found->get<uint64_t>();
}

Result<uint64_t> number_in(const Json& asked, const char* member, uint64_t otherwise) {
  return member_of(asked, member) == nullptr ? Result<uint64_t>(otherwise) : number_in(asked, member);
}

Result<bool> flag_in(const Json& asked, const char* member, bool otherwise) {
  const Json* const found = member_of(asked, member);
  if (found == nullptr) return otherwise;
  if (!found->is_boolean()) return bad_member(member, "true or false");
  return found->get<bool>();
}

}  // namespace netblk::tools
