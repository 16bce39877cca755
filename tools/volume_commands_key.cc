// SPDX-License-Identifier: GPL-2.0-only
// Keys of an encrypted volume.
#include <cerrno>
#include <utility>

#include "volume_commands.h"

namespace netblk::tools {
namespace {

namespace volume = store::volume;
using volume::UserKey;

int digit_of(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

}  // namespace

Json key_json(const UserKey& key) {
  std::string hex;
  for (const std::byte byte : key.secret.bytes()) hex += fmt::format("{:02x}", std::to_integer<unsigned>(byte));
  return Json{{"kind", key.kind == UserKey::Kind::kFile ? "file" : "passphrase"}, {"hex", hex}};
}

Result<SharedKey> key_in(const Json& asked, const char* member) {
  const auto found = asked.is_object() ? asked.find(member) : asked.end();
  if (!asked.is_object() || found == asked.end()) return make_error(EINVAL, "what is asked has no key '{}'", member);
  const auto kind = text_in(*found, "kind"), hex = text_in(*found, "hex");
  if (!kind || !hex || hex.value().size() % 2 != 0 || hex.value().size() > 2 * volume::kMaxKeyBytes ||
      (kind.value() != "file" && kind.value() != "passphrase"))
    return make_error(EINVAL, "what is asked has no key '{}'", member);
  volume::Secret secret(hex.value().size() / 2);
  for (size_t i = 0; i < secret.bytes().size(); ++i) {
    const int high = digit_of(hex.value()[2 * i]), low = digit_of(hex.value()[2 * i + 1]);
    if (high < 0 || low < 0) return make_error(EINVAL, "what is asked has no key '{}'", member);
    secret.bytes()[i] = static_cast<std::byte>(high << 4 | low);
  }
  return SharedKey(std::make_shared<const UserKey>(
      UserKey{kind.value() == "file" ? UserKey::Kind::kFile : UserKey::Kind::kPassphrase, std::move(secret)}));
}

coro::Task<Result<Json>> volume_key_add(VolumeWork& on, const Json& asked) {
  const auto known = key_in(asked, "known"), another = key_in(asked, "another");
  if (!known.ok()) co_return known.error();
  if (!another.ok()) co_return another.error();
  const auto slot = co_await on.volume.add_key(*known.value(), *another.value());
  if (!slot.ok()) co_return slot.error();
  const Json answer = {{"slot", slot.value()}};
  co_return answer;
}

coro::Task<Result<Json>> volume_key_change(VolumeWork& on, const Json& asked) {
  const auto known = key_in(asked, "known"), another = key_in(asked, "another");
  if (!known.ok()) co_return known.error();
  if (!another.ok()) co_return another.error();
  const auto slot = co_await on.volume.change_key(*known.value(), *another.value());
  if (!slot.ok()) co_return slot.error();
  const Json answer = {{"slot", slot.value()}};
  co_return answer;
}

coro::Task<Result<Json>> volume_key_remove(VolumeWork& on, const Json& asked) {
  const auto known = key_in(asked, "known");
  if (!known.ok()) co_return known.error();
  const auto slot = number_in(asked, "slot");
  if (!slot.ok()) co_return slot.error();
  if (slot.value() >= volume::kKeySlotCount) co_return make_error(EINVAL, "there are slots 0 to {}, and no {}", volume::kKeySlotCount - 1, slot.value());
  const auto number = static_cast<uint32_t>(slot.value());
  const Status removed = co_await on.volume.remove_key(*known.value(), number);
  if (!removed.ok()) co_return removed.error();
  const Json answer = {{"slot", number}};
  co_return answer;
}

}  // namespace netblk::tools
