// SPDX-License-Identifier: GPL-2.0-only
// Crypt: what an encrypted volume seals its records, index pages and manifests with (docs/volume-format.md, "Encryption").
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "base/id.h"
#include "store/volume/format.h"

struct evp_cipher_ctx_st;

namespace netblk::store::volume {

// Bytes in memory that is not swapped where the system allows that, goes into no core dump, and is wiped.
class Secret {
 public:
  Secret() = default;
  explicit Secret(size_t size);
  explicit Secret(std::span<const std::byte> copied);
  Secret(Secret&& other) noexcept : bytes_(std::exchange(other.bytes_, {})), mapped_(std::exchange(other.mapped_, 0)) {}
  Secret& operator=(Secret&& other) noexcept;
  ~Secret() { wipe(); }

  std::span<std::byte> bytes() { return bytes_; }
  std::span<const std::byte> bytes() const { return bytes_; }
  bool empty() const { return bytes_.empty(); }
  void shorten(size_t size) { bytes_ = bytes_.first(size); }

 private:
  void wipe();
  std::span<std::byte> bytes_;
  size_t mapped_ = 0;
};

inline constexpr size_t kVolumeKeyBytes = 32;

// HKDF-SHA256.
void derive(std::span<const std::byte> key, std::span<const std::byte> salt, std::string_view info, std::span<std::byte> into);

// AES-256-GCM by keys that are derived from the volume's. Thread-safe.
class Cipher {
 public:
  explicit Cipher(Secret volume_key);
  ~Cipher();

  enum class Purpose : uint8_t { kRecords, kMetadata };
  using Nonce = std::array<std::byte, 12>;

  // A key that is at hand, for one thread.
  class Use {
   public:
    Use(Cipher& cipher, Purpose purpose, const Id& incarnation, bool seals);
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    ~Use();
    // `into` may be `from`. Nothing may be sealed twice with one nonce.
    void seal(const Nonce& nonce, std::span<const std::byte> bound, std::span<const std::byte> from, std::span<std::byte> into,
              Tag& tag);
    // False: it is not what was sealed, and `into` is not to be used.
    bool open(const Nonce& nonce, std::span<const std::byte> bound, std::span<const std::byte> from, std::span<std::byte> into,
              const Tag& tag);

   private:
    Cipher& cipher_;
    std::shared_ptr<struct CipherKey> key_;
    evp_cipher_ctx_st* context_ = nullptr;
    bool seals_;
  };

  const Secret& volume_key() const { return volume_key_; }

 private:
  using KeyName = std::pair<Purpose, Id>;
  std::shared_ptr<struct CipherKey> key(const KeyName& name);

  const Secret volume_key_;
  void* algorithm_ = nullptr;  // fetched once: that takes longer than to seal a block
  std::mutex mutex_;           // a leaf
  std::map<KeyName, std::shared_ptr<struct CipherKey>> keys_;
  uint64_t uses_ = 0;
};

// --- Records --------------------------------------------------------------------------------------------------------

// What is sealed as one: a block of a plain data record, the payload of a compressed one or of a change, or nothing, for the
// header's sake. Each in place. A copy of a record, or of some of its blocks, keeps them as they are.
void seal_record(Cipher::Use& use, RecordHeader& header, std::span<std::byte> payload);
// One block of a plain data record: `index` in it.
void seal_block(Cipher::Use& use, RecordHeader& header, uint32_t index, std::span<const std::byte> from, std::span<std::byte> into);
bool open_block(Cipher::Use& use, const RecordHeader& header, uint32_t index, std::span<std::byte> block);
// The payload of any other record.
bool open_payload(Cipher::Use& use, const RecordHeader& header, std::span<std::byte> payload);

// --- Pages and manifests --------------------------------------------------------------------------------------------

// Seals what an opening for writing writes beside its log: under its incarnation, with a number that only goes up.
class MetadataCipher {
 public:
  explicit MetadataCipher(std::shared_ptr<Cipher> cipher) : cipher_(std::move(cipher)) {}

  // What a sealed manifest is longer by: incarnation, number, tag.
  static constexpr size_t kPrefixBytes = 40;

  // The incarnation is a new one: nothing has been sealed under it.
  void begin(const Id& incarnation);

  // A page as it is in memory, but for its CRC field, becomes what is on the disk; and back. It has no more than
  // kSealedLeafEntries or kSealedInnerEntries.
  void seal_page(uint64_t offset, std::span<std::byte, kPageBytes> page);
  bool open_page(uint64_t offset, std::span<std::byte, kPageBytes> page) const;

  std::vector<std::byte> seal_manifest(const Superblock& of, std::span<const std::byte> manifest);
  std::optional<std::vector<std::byte>> open_manifest(const Superblock& of, std::span<const std::byte> bytes) const;

 private:
  void seal(std::span<const std::byte> bound, std::span<std::byte> prefix, std::span<std::byte> bytes);
  bool open(std::span<const std::byte> bound, std::span<const std::byte> prefix, std::span<std::byte> bytes) const;

  const std::shared_ptr<Cipher> cipher_;
  Id incarnation_;
  std::atomic<uint64_t> next_{0};
};

}  // namespace netblk::store::volume
