// SPDX-License-Identifier: GPL-2.0-only
// An NBD client against a hostile server: any bytes as a negotiation, and any bytes as replies to requests in flight. Each
// request ends once at most; data land where a READ asked for them alone; what is kept is bounded.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <span>
#include <vector>

#include "proto/nbd/client_greeting.h"
#include "proto/nbd/client_replies.h"

namespace {

using netblk::proto::NbdGreeting;
using netblk::proto::NbdInFlight;
using netblk::proto::NbdReplies;
using netblk::proto::NbdWish;

constexpr size_t kRequests = 8;
constexpr uint64_t kBytes = 1024;

void check(bool holds) {
  if (!holds) std::abort();
}

class Sink final : public netblk::proto::NbdReplySink {
 public:
  Sink() {
    constexpr std::array<uint16_t, 4> kTypes = {NBD_CMD_READ, NBD_CMD_BLOCK_STATUS, NBD_CMD_WRITE, NBD_CMD_FLUSH};
    for (size_t i = 0; i < kRequests; ++i) {
      requests_[i].type = kTypes[i % kTypes.size()];
      requests_[i].cookie = i;
      requests_[i].offset = i * kBytes;
      requests_[i].length = requests_[i].type == NBD_CMD_FLUSH ? 0 : kBytes;
      memory_[i].resize(kBytes);  // of its own, so that the address sanitizer sees its ends
      requests_[i].data = memory_[i].data();
      requests_[i].begin();
    }
  }
  NbdInFlight* find(uint64_t cookie) override { return cookie < kRequests && !ended_[cookie] ? &requests_[cookie] : nullptr; }
  bool is_sent(const NbdInFlight&) override { return true; }
  bool extent(NbdInFlight& request, uint64_t length, uint64_t) override {
    check(request.type == NBD_CMD_BLOCK_STATUS && length > 0 && request.came <= request.length);
    return true;
  }
  void answered(NbdInFlight& request, int error) override {
    check(!ended_[request.cookie]);
    check(error != 0 || request.type != NBD_CMD_READ || request.came == request.length);
    check(request.scattered.size() <= NbdReplies::kMaxScattered);
    ended_[request.cookie] = true;
  }

 private:
  std::array<NbdInFlight, kRequests> requests_;
  std::array<std::vector<std::byte>, kRequests> memory_;
  std::array<bool, kRequests> ended_{};
};

void replies(std::span<const std::byte> bytes, bool extended, bool structured, size_t step) {
  Sink sink;
  NbdReplies reader(sink);
  reader.begin({.structured = structured || extended, .extended = extended, .allocation_id = 0});
  std::vector<std::byte> left;
  while (!bytes.empty() && reader.failed() == nullptr) {
    const auto now = bytes.first(std::min(step, bytes.size()));
    bytes = bytes.subspan(now.size());
    left.insert(left.end(), now.begin(), now.end());
    const size_t taken = reader.take(left);
    check(taken <= left.size());
    left.erase(left.begin(), left.begin() + static_cast<std::ptrdiff_t>(taken));
    check(reader.failed() != nullptr || left.size() < NbdReplies::kMaxPiece + step);
  }
}

void negotiation(std::span<const std::byte> bytes, NbdWish wish) {
  NbdGreeting greeting(std::move(wish));
  while (!greeting.over()) {
    const size_t wanted = greeting.wanted();
    check(wanted <= NbdGreeting::kMaxPiece);
    if (bytes.size() < wanted) {
      greeting.closed();
      break;
    }
    greeting.take(bytes.first(wanted));
    bytes = bytes.subspan(wanted);
    check(greeting.take_output().size() <= 3 * NbdGreeting::kMaxPiece);
  }
  check(greeting.over());
  check(greeting.listed().size() <= NbdGreeting::kMaxListed);
  if (greeting.result()) check(greeting.found().max_payload_bytes >= greeting.found().min_block_bytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const uint8_t choice = data[0];
  const std::span bytes(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  if (choice & 1) {
    replies(bytes, (choice & 2) != 0, (choice & 4) != 0, (choice & 8) != 0 ? 1 + (choice >> 4) : 4096);
    return 0;
  }
  constexpr std::array kPurposes = {NbdWish::Purpose::kUse, NbdWish::Purpose::kInfo, NbdWish::Purpose::kList};
  negotiation(bytes, {.purpose = kPurposes[(choice >> 1) % kPurposes.size()],
                      .export_name = "disk",
                      .structured = (choice & 16) != 0,
                      .extended = (choice & 32) != 0,
                      .allocation = (choice & 64) != 0});
  return 0;
}
