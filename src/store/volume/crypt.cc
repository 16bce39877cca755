// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/crypt.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "base/endian.h"

namespace netblk::store::volume {
namespace {

using Bytes = std::span<const std::byte>;

// Volumes that were opened often have records of many incarnations.
constexpr size_t kMostKeys = 256;
constexpr size_t kMostIdle = 16;  // of one key

constexpr std::string_view kInfo[] = {"netblk volume records", "netblk volume metadata"};

constexpr size_t kPrefixBytes = MetadataCipher::kPrefixBytes;
static_assert(kSealedPageHeaderBytes == kPageHeaderBytes + kPrefixBytes + 8);

const unsigned char* in(Bytes bytes) { return reinterpret_cast<const unsigned char*>(bytes.data()); }
unsigned char* out(std::span<std::byte> bytes) { return reinterpret_cast<unsigned char*>(bytes.data()); }
int length(Bytes bytes) { return static_cast<int>(bytes.size()); }

}  // namespace

// --- Secrets --------------------------------------------------------------------------------------------------------

Secret::Secret(size_t size) {
  if (size == 0) return;
  mapped_ = (size + 4095) / 4096 * 4096;
  void* const memory = ::mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  NETBLK_CHECK(memory != MAP_FAILED, "there is no memory for a key");
  // Where the limit of locked memory is used up it may be swapped: better than no volume.
  (void)::mlock(memory, mapped_);
  (void)::madvise(memory, mapped_, MADV_DONTDUMP);
  bytes_ = {static_cast<std::byte*>(memory), size};
}

Secret::Secret(Bytes copied) : Secret(copied.size()) { std::copy(copied.begin(), copied.end(), bytes_.begin()); }

Secret& Secret::operator=(Secret&& other) noexcept {
  if (this == &other) return *this;
  wipe();
  bytes_ = std::exchange(other.bytes_, {});
  mapped_ = std::exchange(other.mapped_, 0);
  return *this;
}

void Secret::wipe() {
  if (mapped_ == 0) return;
  OPENSSL_cleanse(bytes_.data(), mapped_);
  ::munmap(bytes_.data(), mapped_);
  bytes_ = {};
  mapped_ = 0;
}

void derive(Bytes key, Bytes salt, std::string_view info, std::span<std::byte> into) {
  EVP_KDF* const kdf = EVP_KDF_fetch(nullptr, "HKDF", nullptr);
  EVP_KDF_CTX* const context = EVP_KDF_CTX_new(kdf);
  char digest[] = "SHA256";
  OSSL_PARAM parameters[] = {
      OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, digest, 0),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, const_cast<std::byte*>(key.data()), key.size()),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, const_cast<std::byte*>(salt.data()), salt.size()),
      OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, const_cast<char*>(info.data()), info.size()),
      OSSL_PARAM_construct_end()};
  const bool done = context != nullptr && EVP_KDF_derive(context, out(into), into.size(), parameters) == 1;
  EVP_KDF_CTX_free(context);
  EVP_KDF_free(kdf);
  NETBLK_CHECK(done, "HKDF-SHA256 is not to be had from OpenSSL");
}

// --- Keys -----------------------------------------------------------------------------------------------------------

struct CipherKey {
  ~CipherKey() {
    for (const auto& list : idle)
      for (EVP_CIPHER_CTX* const context : list) EVP_CIPHER_CTX_free(context);
  }
  explicit CipherKey(Secret of) : secret(std::move(of)) {}
  const Secret secret;
  std::vector<EVP_CIPHER_CTX*> idle[2];  // that open, that seal; the cipher's mutex guards them
  uint64_t last_use = 0;
};

Cipher::Cipher(Secret volume_key) : volume_key_(std::move(volume_key)) {
  NETBLK_CHECK(volume_key_.bytes().size() == kVolumeKeyBytes, "a volume's key is 32 bytes");
  algorithm_ = EVP_CIPHER_fetch(nullptr, "AES-256-GCM", nullptr);
  NETBLK_CHECK(algorithm_ != nullptr, "AES-256-GCM is not to be had from OpenSSL");
}

Cipher::~Cipher() { EVP_CIPHER_free(static_cast<EVP_CIPHER*>(algorithm_)); }

std::shared_ptr<CipherKey> Cipher::key(const KeyName& name) {
  {
    const std::lock_guard lock(mutex_);
    const auto at = keys_.find(name);
    if (at != keys_.end()) {
      at->second->last_use = ++uses_;
      return at->second;
    }
  }
  Secret derived(kVolumeKeyBytes);
  derive(volume_key_.bytes(), std::as_bytes(std::span(name.second.bytes)), kInfo[static_cast<size_t>(name.first)], derived.bytes());
  auto made = std::make_shared<CipherKey>(std::move(derived));
  std::shared_ptr<CipherKey> oldest;  // freed without the lock
  const std::lock_guard lock(mutex_);
  const auto [at, is_new] = keys_.emplace(name, made);
  at->second->last_use = ++uses_;
  const auto found = at->second;
  if (is_new && keys_.size() > kMostKeys) {
    const auto least = std::min_element(keys_.begin(), keys_.end(), [](const auto& a, const auto& b) {
      return a.second->last_use < b.second->last_use;
    });
    oldest = std::move(least->second);
    keys_.erase(least);
  }
  return found;
}

Cipher::Use::Use(Cipher& cipher, Purpose purpose, const Id& incarnation, bool seals)
    : cipher_(cipher), key_(cipher.key({purpose, incarnation})), seals_(seals) {
  {
    const std::lock_guard lock(cipher_.mutex_);
    auto& idle = key_->idle[seals_];
    if (!idle.empty()) {
      context_ = idle.back();
      idle.pop_back();
      return;
    }
  }
  context_ = EVP_CIPHER_CTX_new();
  const auto* const algorithm = static_cast<const EVP_CIPHER*>(cipher_.algorithm_);
  const bool ready = context_ != nullptr &&
                     EVP_CipherInit_ex2(context_, algorithm, in(key_->secret.bytes()), nullptr, seals_ ? 1 : 0, nullptr) == 1;
  NETBLK_CHECK(ready, "OpenSSL has no memory for a key");
}

Cipher::Use::~Use() {
  {
    const std::lock_guard lock(cipher_.mutex_);
    auto& idle = key_->idle[seals_];
    if (idle.size() < kMostIdle) {
      idle.push_back(context_);
      return;
    }
  }
  EVP_CIPHER_CTX_free(context_);
}

void Cipher::Use::seal(const Nonce& nonce, Bytes bound, Bytes from, std::span<std::byte> into, Tag& tag) {
  int moved = 0;
  std::byte none;
  bool done = EVP_EncryptInit_ex2(context_, nullptr, nullptr, in(nonce), nullptr) == 1 &&
              EVP_EncryptUpdate(context_, nullptr, &moved, in(bound), length(bound)) == 1;
  if (!from.empty()) done = done && EVP_EncryptUpdate(context_, out(into), &moved, in(from), length(from)) == 1;
  done = done && EVP_EncryptFinal_ex(context_, out({&none, 1}), &moved) == 1 &&
         EVP_CIPHER_CTX_ctrl(context_, EVP_CTRL_AEAD_GET_TAG, static_cast<int>(tag.size()), tag.data()) == 1;
  // A message of a disk's block under a key that is there: nothing that can happen in use.
  NETBLK_CHECK(done, "OpenSSL did not seal");
}

bool Cipher::Use::open(const Nonce& nonce, Bytes bound, Bytes from, std::span<std::byte> into, const Tag& tag) {
  int moved = 0;
  std::byte none;
  Tag expected = tag;
  bool done = EVP_DecryptInit_ex2(context_, nullptr, nullptr, in(nonce), nullptr) == 1 &&
              EVP_DecryptUpdate(context_, nullptr, &moved, in(bound), length(bound)) == 1;
  if (!from.empty()) done = done && EVP_DecryptUpdate(context_, out(into), &moved, in(from), length(from)) == 1;
  return done && EVP_CIPHER_CTX_ctrl(context_, EVP_CTRL_AEAD_SET_TAG, static_cast<int>(expected.size()), expected.data()) == 1 &&
         EVP_DecryptFinal_ex(context_, out({&none, 1}), &moved) == 1;
}

// --- Records --------------------------------------------------------------------------------------------------------

namespace {

// What a tag binds beside the bytes, and the nonce. A record has an LSN of its own, and no two blocks of it have the same low
// half of their number: so no nonce is used twice under one incarnation.
struct Piece {
  std::array<std::byte, 64> bound{};
  Cipher::Nonce nonce{};

  // `blocks` from the record's `index`th on; payload_bytes: of the piece.
  Piece(const RecordHeader& header, uint32_t index, uint32_t blocks, uint64_t payload_bytes) {
    const bool is_data = header.type == RecordType::kData;
    const uint64_t block = header.block + index;
    bound[0] = static_cast<std::byte>(header.type);
    bound[1] = static_cast<std::byte>(header.flags & kCompressed);
    store_le(&bound[4], blocks);
    store_le(&bound[8], header.lsn);
    std::memcpy(&bound[16], header.incarnation.bytes.data(), header.incarnation.bytes.size());
    store_le(&bound[32], header.branch);
    store_le(&bound[40], block);
    store_le(&bound[48], payload_bytes);
    // A change has its time from it.
    store_le(&bound[56], is_data ? uint64_t{0} : header.time_ns);
    store_le(&nonce[0], header.lsn);
    store_le(&nonce[8], is_data ? static_cast<uint32_t>(block) : uint32_t{0});
  }
};

Piece whole(const RecordHeader& header) { return {header, 0, header.blocks, header.payload_bytes}; }

}  // namespace

void seal_record(Cipher::Use& use, RecordHeader& header, std::span<std::byte> payload) {
  const Piece piece = whole(header);
  use.seal(piece.nonce, piece.bound, payload, payload, header.tags[0]);
}

void seal_block(Cipher::Use& use, RecordHeader& header, uint32_t index, Bytes from, std::span<std::byte> into) {
  const Piece piece(header, index, 1, kBlockBytes);
  use.seal(piece.nonce, piece.bound, from, into, header.tags[index]);
}

bool open_block(Cipher::Use& use, const RecordHeader& header, uint32_t index, std::span<std::byte> block) {
  const Piece piece(header, index, 1, kBlockBytes);
  return use.open(piece.nonce, piece.bound, block, block, header.tags[index]);
}

bool open_payload(Cipher::Use& use, const RecordHeader& header, std::span<std::byte> payload) {
  const Piece piece = whole(header);
  return use.open(piece.nonce, piece.bound, payload, payload, header.tags[0]);
}

// --- Pages and manifests --------------------------------------------------------------------------------------------

namespace {

Cipher::Nonce nonce_of(uint64_t number) {
  Cipher::Nonce nonce{};
  store_le(nonce.data(), number);
  return nonce;
}

std::array<std::byte, 48> bound_to_page(uint64_t offset, std::span<const std::byte, kPageBytes> page) {
  std::array<std::byte, 48> bound{};
  bound[0] = std::byte{'P'};
  store_le(&bound[8], offset);
  std::memcpy(&bound[16], page.data(), kPageHeaderBytes);
  store_le(&bound[20], uint32_t{0});  // the CRC field
  return bound;
}

std::array<std::byte, 40> bound_to_manifest(const Superblock& of) {
  std::array<std::byte, 40> bound{};
  bound[0] = std::byte{'M'};
  std::memcpy(&bound[8], of.uuid.bytes.data(), of.uuid.bytes.size());
  store_le(&bound[24], of.checkpoint);
  store_le(&bound[32], of.manifest_offset);
  return bound;
}

}  // namespace

void MetadataCipher::begin(const Id& incarnation) {
  incarnation_ = incarnation;
  next_.store(0, std::memory_order_relaxed);
}

void MetadataCipher::seal(Bytes bound, std::span<std::byte> prefix, std::span<std::byte> bytes) {
  NETBLK_CHECK(!incarnation_.is_zero(), "something is sealed by who has not opened the volume for writing");
  const uint64_t number = next_.fetch_add(1, std::memory_order_relaxed);
  std::memcpy(prefix.data(), incarnation_.bytes.data(), incarnation_.bytes.size());
  store_le(&prefix[16], number);
  Tag tag;
  Cipher::Use use(*cipher_, Cipher::Purpose::kMetadata, incarnation_, true);
  use.seal(nonce_of(number), bound, bytes, bytes, tag);
  std::memcpy(&prefix[24], tag.data(), tag.size());
}

bool MetadataCipher::open(Bytes bound, Bytes prefix, std::span<std::byte> bytes) const {
  Id incarnation;
  std::memcpy(incarnation.bytes.data(), prefix.data(), incarnation.bytes.size());
  Tag tag;
  std::memcpy(tag.data(), &prefix[24], tag.size());
  Cipher::Use use(*cipher_, Cipher::Purpose::kMetadata, incarnation, false);
  return use.open(nonce_of(load_le<uint64_t>(&prefix[16])), bound, bytes, bytes, tag);
}

void MetadataCipher::seal_page(uint64_t offset, std::span<std::byte, kPageBytes> page) {
  const auto entries = page.subspan(kSealedPageHeaderBytes);
  std::memmove(entries.data(), page.data() + kPageHeaderBytes, entries.size());
  const auto prefix = page.subspan(kPageHeaderBytes, kSealedPageHeaderBytes - kPageHeaderBytes);
  std::fill(prefix.begin(), prefix.end(), std::byte{0});
  seal(bound_to_page(offset, page), prefix, entries);
}

bool MetadataCipher::open_page(uint64_t offset, std::span<std::byte, kPageBytes> page) const {
  const auto entries = page.subspan(kSealedPageHeaderBytes);
  const bool good = open(bound_to_page(offset, page), page.subspan(kPageHeaderBytes, kPrefixBytes), entries);
  std::memmove(page.data() + kPageHeaderBytes, entries.data(), entries.size());
  std::fill(page.end() - (kSealedPageHeaderBytes - kPageHeaderBytes), page.end(), std::byte{0});
  return good;
}

std::vector<std::byte> MetadataCipher::seal_manifest(const Superblock& of, Bytes manifest) {
  std::vector<std::byte> sealed(kPrefixBytes + manifest.size());
  const std::span bytes(sealed);
  std::copy(manifest.begin(), manifest.end(), sealed.begin() + kPrefixBytes);
  seal(bound_to_manifest(of), bytes.first(kPrefixBytes), bytes.subspan(kPrefixBytes));
  return sealed;
}

std::optional<std::vector<std::byte>> MetadataCipher::open_manifest(const Superblock& of, Bytes bytes) const {
  if (bytes.size() < kPrefixBytes) return std::nullopt;
  std::vector<std::byte> manifest(bytes.begin() + kPrefixBytes, bytes.end());
  if (!open(bound_to_manifest(of), bytes.first(kPrefixBytes), manifest)) return std::nullopt;
  return manifest;
}

}  // namespace netblk::store::volume
