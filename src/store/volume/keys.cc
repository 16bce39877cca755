// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/keys.h"

#include <openssl/evp.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "base/check.h"
#include "base/endian.h"

namespace netblk::store::volume {
namespace {

constexpr size_t kSaltBytes = 32;
constexpr size_t kWrappedBytes = kVolumeKeyBytes + 8;
constexpr std::string_view kFileInfo = "netblk volume key file";

struct Slot {
  uint32_t kind = 0;  // 0: free
  uint32_t log2_n = 0, r = 0, p = 0;
  std::array<std::byte, kSaltBytes> salt{};
  std::array<std::byte, kWrappedBytes> wrapped{};
  uint64_t time_ns = 0;
};

Slot slot_at(const KeySlots& slots, uint32_t number) {
  const std::byte* const from = slots.data() + size_t{number} * kKeySlotBytes;
  Slot slot;
  slot.kind = load_le<uint32_t>(from);
  slot.log2_n = load_le<uint32_t>(from + 4);
  slot.r = load_le<uint32_t>(from + 8);
  slot.p = load_le<uint32_t>(from + 12);
  std::copy_n(from + 16, kSaltBytes, slot.salt.begin());
  std::copy_n(from + 48, kWrappedBytes, slot.wrapped.begin());
  slot.time_ns = load_le<uint64_t>(from + 88);
  return slot;
}

void put_slot(KeySlots& slots, uint32_t number, const Slot& slot) {
  std::byte* const to = slots.data() + size_t{number} * kKeySlotBytes;
  std::fill_n(to, kKeySlotBytes, std::byte{0});
  store_le(to, slot.kind);
  store_le(to + 4, slot.log2_n);
  store_le(to + 8, slot.r);
  store_le(to + 12, slot.p);
  std::copy(slot.salt.begin(), slot.salt.end(), to + 16);
  std::copy(slot.wrapped.begin(), slot.wrapped.end(), to + 48);
  store_le(to + 88, slot.time_ns);
}

bool is_used(const Slot& slot) {
  return slot.kind == static_cast<uint32_t>(UserKey::Kind::kFile) || slot.kind == static_cast<uint32_t>(UserKey::Kind::kPassphrase);
}

const unsigned char* in(std::span<const std::byte> bytes) { return reinterpret_cast<const unsigned char*>(bytes.data()); }
unsigned char* out(std::span<std::byte> bytes) { return reinterpret_cast<unsigned char*>(bytes.data()); }

// What wraps the volume's key in this slot; none: the slot asks for what is not allowed, or there is no memory for it.
std::optional<Secret> wrapping_key(const Slot& slot, const UserKey& key) {
  Secret wrapping(kVolumeKeyBytes);
  if (key.kind == UserKey::Kind::kFile) {
    derive(key.secret.bytes(), slot.salt, kFileInfo, wrapping.bytes());
    return wrapping;
  }
  if (slot.log2_n < kMinScryptLog2N || slot.log2_n > kMaxScryptLog2N || slot.r != kScryptR || slot.p != kScryptP) return std::nullopt;
  const uint64_t n = uint64_t{1} << slot.log2_n;
  const uint64_t most_memory = 128 * n * kScryptR + (1u << 20);
  const auto secret = key.secret.bytes();
  if (EVP_PBE_scrypt(reinterpret_cast<const char*>(secret.data()), secret.size(), in(slot.salt), slot.salt.size(), n, kScryptR, kScryptP,
                     most_memory, out(wrapping.bytes()), wrapping.bytes().size()) != 1)
    return std::nullopt;
  return wrapping;
}

// AES-256 key wrap with padding (RFC 5649). The number of bytes; 0: that is no key that was wrapped so.
size_t wrapped(const Secret& by, std::span<const std::byte> from, std::span<std::byte> into, bool wraps) {
  EVP_CIPHER_CTX* const context = EVP_CIPHER_CTX_new();
  if (context == nullptr) return 0;
  EVP_CIPHER_CTX_set_flags(context, EVP_CIPHER_CTX_FLAG_WRAP_ALLOW);
  // (Its buffer is to have room for a block more.)
  std::array<unsigned char, kWrappedBytes + 16> room;
  int moved = 0, last = 0;
  const bool done = EVP_CipherInit_ex(context, EVP_aes_256_wrap_pad(), nullptr, in(by.bytes()), nullptr, wraps ? 1 : 0) == 1 &&
                    EVP_CipherUpdate(context, room.data(), &moved, in(from), static_cast<int>(from.size())) == 1 &&
                    EVP_CipherFinal_ex(context, room.data() + moved, &last) == 1;
  EVP_CIPHER_CTX_free(context);
  const size_t bytes = done ? static_cast<size_t>(moved + last) : 0;
  if (bytes == into.size()) std::copy_n(reinterpret_cast<const std::byte*>(room.data()), bytes, into.begin());
  OPENSSL_cleanse(room.data(), room.size());
  return bytes == into.size() ? bytes : 0;
}

Status check_length(const UserKey& key) {
  const size_t bytes = key.secret.bytes().size();
  if (key.kind == UserKey::Kind::kFile && bytes < kMinKeyFileBytes)
    return make_error(EINVAL, "a key file of {} bytes is too short: it has at least {} random ones, such as of `head -c 32 /dev/urandom`",
                      bytes, kMinKeyFileBytes);
  if (bytes == 0) return make_error(EINVAL, "the passphrase is empty");
  if (bytes > kMaxKeyBytes) return make_error(EINVAL, "a key has at most {} bytes, and this one has {}", kMaxKeyBytes, bytes);
  return Ok{};
}

}  // namespace

std::vector<KeySlotInfo> used_slots(const KeySlots& slots) {
  std::vector<KeySlotInfo> used;
  for (uint32_t number = 0; number < kKeySlotCount; ++number) {
    const Slot slot = slot_at(slots, number);
    if (is_used(slot)) used.push_back({number, static_cast<UserKey::Kind>(slot.kind), slot.time_ns});
  }
  return used;
}

Result<Unlocked> unlock(const KeySlots& slots, const UserKey& key) {
  for (const KeySlotInfo& info : used_slots(slots)) {
    if (info.kind != key.kind) continue;
    const Slot slot = slot_at(slots, info.number);
    const std::optional<Secret> wrapping = wrapping_key(slot, key);
    if (!wrapping) continue;
    Unlocked unlocked{Secret(kVolumeKeyBytes), info.number};
    if (wrapped(*wrapping, slot.wrapped, unlocked.volume_key.bytes(), false) != 0) return unlocked;
  }
  return make_error(EKEYREJECTED, "it is encrypted, and this {} opens none of its key slots: nothing has been touched",
                    key.kind == UserKey::Kind::kFile ? "key file" : "passphrase");
}

Result<Unlocked> open_slots(bool encrypted, const KeySlots& slots, const UserKey* key) {
  if (!encrypted && key != nullptr) return make_error(EINVAL, "it is not encrypted, and a key was given: is it the right volume?");
  if (!encrypted) return Unlocked{};
  if (key == nullptr)
    return make_error(ENOKEY, "it is encrypted: give its key with --key-file or --passphrase-file (of a vol: store: ?key-file=, ?passphrase-file=)");
  return unlock(slots, *key);
}

Result<uint32_t> add_key(KeySlots& slots, const Secret& volume_key, const UserKey& key, uint64_t time_ns, const RandomBytes& random,
                         uint32_t scrypt_log2_n) {
  for (uint32_t number = 0; number < kKeySlotCount; ++number) {
    // One of a kind that this program does not know is somebody's.
    if (slot_at(slots, number).kind != 0) continue;
    Status put = replace_key(slots, number, volume_key, key, time_ns, random, scrypt_log2_n);
    if (!put) return std::move(put).error();
    return number;
  }
  return make_error(ENOSPC, "all {} key slots are taken: remove one", kKeySlotCount);
}

Status replace_key(KeySlots& slots, uint32_t number, const Secret& volume_key, const UserKey& key, uint64_t time_ns,
                   const RandomBytes& random, uint32_t scrypt_log2_n) {
  if (Status good = check_length(key); !good) return good;
  Slot slot;
  slot.kind = static_cast<uint32_t>(key.kind);
  slot.time_ns = time_ns;
  if (key.kind == UserKey::Kind::kPassphrase) {
    slot.log2_n = scrypt_log2_n;
    slot.r = kScryptR;
    slot.p = kScryptP;
  }
  random(slot.salt);
  const std::optional<Secret> wrapping = wrapping_key(slot, key);
  if (!wrapping) return make_error(ENOMEM, "there is no memory to make a key from a passphrase ({} MiB)", (uint64_t{1} << slot.log2_n) >> 10);
  if (wrapped(*wrapping, volume_key.bytes(), slot.wrapped, true) == 0) return make_error(EIO, "OpenSSL cannot wrap a key");
  put_slot(slots, number, slot);
  return Ok{};
}

Status remove_key(KeySlots& slots, uint32_t number) {
  const auto used = used_slots(slots);
  if (std::none_of(used.begin(), used.end(), [&](const KeySlotInfo& each) { return each.number == number; }))
    return make_error(ENOENT, "there is no key in slot {}: `netblk volume key list` tells which there are", number);
  if (used.size() == 1) return make_error(EBUSY, "slot {} has the only key, and without it nobody could open the volume: add another first", number);
  std::fill_n(slots.begin() + size_t{number} * kKeySlotBytes, kKeySlotBytes, std::byte{0});
  return Ok{};
}

}  // namespace netblk::store::volume
