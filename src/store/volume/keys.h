// SPDX-License-Identifier: GPL-2.0-only
// Key slots: the volume's key, wrapped by the keys of those who may open it (docs/volume-format.md, "Encryption").
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "base/result.h"
#include "store/volume/crypt.h"
#include "store/volume/format.h"

namespace netblk::store::volume {

inline constexpr uint32_t kKeySlotCount = 8;
inline constexpr uint32_t kKeySlotBytes = 128;
static_assert(kKeySlotCount * kKeySlotBytes == sizeof(KeySlots));

// What a user has. kFile: the bytes of a key file, which are random.
struct UserKey {
  enum class Kind : uint32_t { kFile = 1, kPassphrase = 2 };
  Kind kind = Kind::kFile;
  Secret secret;
};
inline constexpr size_t kMinKeyFileBytes = 16;
inline constexpr size_t kMaxKeyBytes = 64u << 10;

// N = 2^log2_n, r = 8, p = 1. What a slot asks for is bounded: whoever can write in the file must not use up the memory.
inline constexpr uint32_t kMinScryptLog2N = 14;
inline constexpr uint32_t kScryptLog2N = 17;
inline constexpr uint32_t kMaxScryptLog2N = 20;
inline constexpr uint32_t kScryptR = 8, kScryptP = 1;

struct KeySlotInfo {
  uint32_t number = 0;
  UserKey::Kind kind = UserKey::Kind::kFile;
  uint64_t time_ns = 0;  // when it was written
};

using RandomBytes = std::function<void(std::span<std::byte>)>;

std::vector<KeySlotInfo> used_slots(const KeySlots& slots);

struct Unlocked {
  Secret volume_key;
  uint32_t slot = 0;
};
// EKEYREJECTED: the key opens none of the slots.
Result<Unlocked> unlock(const KeySlots& slots, const UserKey& key);

// What a key that was given, or not (null), is to these slots: ENOKEY, EKEYREJECTED. EINVAL: there are no slots, and yet a key.
Result<Unlocked> open_slots(bool encrypted, const KeySlots& slots, const UserKey* key);

// EINVAL: the key is too short or too long; ENOSPC: all slots are taken. Returns its number.
Result<uint32_t> add_key(KeySlots& slots, const Secret& volume_key, const UserKey& key, uint64_t time_ns, const RandomBytes& random,
                         uint32_t scrypt_log2_n = kScryptLog2N);
// ENOENT; EBUSY: it is the only one, and without it nobody could open the volume.
Status remove_key(KeySlots& slots, uint32_t number);
// In the slot that there is.
Status replace_key(KeySlots& slots, uint32_t number, const Secret& volume_key, const UserKey& key, uint64_t time_ns,
                   const RandomBytes& random, uint32_t scrypt_log2_n = kScryptLog2N);

}  // namespace netblk::store::volume
