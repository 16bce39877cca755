// SPDX-License-Identifier: GPL-2.0-only
// Owners: who may write to an export, as the store keeps it (DESIGN 4.2, "Identity").
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "base/id.h"
#include "base/limits.h"
#include "base/result.h"

namespace netblk::server {

struct Owner {
  Id client_id;
  Id session_id;
  bool operator==(const Owner&) const = default;
};

// Exclusive: at most one owner. Shared: several, all of which asked for it.
struct Owners {
  bool shared = false;
  std::vector<Owner> list;  // oldest first; limits::kMaxOwners at most

  bool has(const Id& client_id, const Id& session_id) const;
  const Owner* other_than(const Id& client_id) const;
  void remove_client(const Id& client_id);

  bool operator==(const Owners&) const = default;
};

// The record that block::Device::keep_owners() takes. An empty one is nobody. EINVAL: it is none of ours, or of a
// version that this server does not know.
std::vector<std::byte> encode_owners(const Owners& owners);
Result<Owners> decode_owners(std::span<const std::byte> record);

}  // namespace netblk::server
