// SPDX-License-Identifier: GPL-2.0-only
#include "server/owners.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/endian.h"

namespace netblk::server {
namespace {

// "owners" u32 version | u32 shared | u32 count | count × (client id, session id)
constexpr uint32_t kVersion = 1;
constexpr size_t kHeader = 12;
constexpr size_t kEntry = 32;

}  // namespace

bool Owners::has(const Id& client_id, const Id& session_id) const {
  return std::find(list.begin(), list.end(), Owner{client_id, session_id}) != list.end();
}

const Owner* Owners::other_than(const Id& client_id) const {
  for (const Owner& owner : list)
    if (owner.client_id != client_id) return &owner;
  return nullptr;
}

void Owners::remove_client(const Id& client_id) {
  std::erase_if(list, [&](const Owner& owner) { return owner.client_id == client_id; });
}

std::vector<std::byte> encode_owners(const Owners& owners) {
  std::vector<std::byte> record(kHeader + owners.list.size() * kEntry);
  store_be<uint32_t>(record.data(), kVersion);
  store_be<uint32_t>(record.data() + 4, owners.shared ? 1 : 0);
  store_be<uint32_t>(record.data() + 8, static_cast<uint32_t>(owners.list.size()));
  std::byte* to = record.data() + kHeader;
  for (const Owner& owner : owners.list) {
    std::memcpy(to, owner.client_id.bytes.data(), 16);
    std::memcpy(to + 16, owner.session_id.bytes.data(), 16);
    to += kEntry;
  }
  return record;
}

Result<Owners> decode_owners(std::span<const std::byte> record) {
  Owners owners;
  if (record.empty()) return owners;
  if (record.size() < kHeader || load_be<uint32_t>(record.data()) != kVersion)
    return make_error(EINVAL, "the record of who owns the store is of no version that this server knows");
  const uint32_t shared = load_be<uint32_t>(record.data() + 4);
  const uint32_t count = load_be<uint32_t>(record.data() + 8);
  if (shared > 1 || count > limits::kMaxOwners || record.size() != kHeader + count * kEntry || (shared == 0 && count > 1))
    return make_error(EINVAL, "the record of who owns the store is damaged");
  owners.shared = shared == 1;
  for (uint32_t i = 0; i < count; ++i) {
    const std::byte* from = record.data() + kHeader + i * kEntry;
    Owner owner;
    std::memcpy(owner.client_id.bytes.data(), from, 16);
    std::memcpy(owner.session_id.bytes.data(), from + 16, 16);
    owners.list.push_back(owner);
  }
  return owners;
}

}  // namespace netblk::server
