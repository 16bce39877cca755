// SPDX-License-Identifier: GPL-2.0-only
// Any bytes as a stream of netblk/2 requests, through decoder, decompression and ledger, and as a stream of replies. What
// is accepted is what it was when encoded again; the ledger agrees with a plain model of protocol/netblk.md, 7.1.
#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <span>
#include <vector>

#include "base/crc32c.h"
#include "base/endian.h"
#include "proto/netblk/codec2.h"
#include "proto/netblk/compress.h"
#include "server/ledger.h"

namespace {

using netblk::proto::Framing2;
using netblk::server::Ledger;

constexpr uint32_t kSlots = NETBLK2_MIN_SLOTS;
constexpr uint32_t kLongestUnpacked = 64u << 10;

void check(bool holds) {
  if (!holds) std::abort();
}

// The header at the front of `bytes`, its checksum put right if the framing has one and `mend` says so.
template <size_t kSize>
std::array<std::byte, kSize> header_of(std::span<const std::byte> bytes, bool mend) {
  std::array<std::byte, kSize> header;
  std::copy_n(bytes.begin(), kSize, header.begin());
  if (mend) netblk::store_be(header.data() + kSize - 4, netblk::crc32c(std::span(header).first(kSize - 4)));
  return header;
}

struct Known {
  uint32_t sequence = 0;
  uint32_t status = 0;
  bool running = false;
};

// A session's ledger beside its model.
class Slots {
 public:
  // False: the connection is closed.
  bool take(const netblk::proto::Request2& request, uint32_t status, uint8_t how) {
    const bool reads = request.type == NETBLK2_READ;
    const Ledger::Taken taken = ledger_.take(request.slot, request.sequence, reads);
    if (request.slot >= kSlots) {
      check(taken.verdict == Ledger::Verdict::kNoSuchSlot);
      return false;
    }
    const auto known = model_.find(request.slot);
    if (known != model_.end() && known->second.running) {
      check(taken.verdict == Ledger::Verdict::kRunning);
      return false;
    }
    const bool repeated = known != model_.end() && known->second.sequence == request.sequence;
    if (repeated && !reads) {
      check(taken.verdict == Ledger::Verdict::kRepeated && taken.status == known->second.status);
      return true;
    }
    if (known != model_.end() && !repeated && request.sequence != known->second.sequence + 1) {
      check(taken.verdict == Ledger::Verdict::kOutOfOrder);
      return false;
    }
    check(taken.verdict == Ledger::Verdict::kNew);
    switch (how % 3) {
      case 0:  // it ended
        ledger_.finish(request.slot, status);
        model_[request.slot] = {request.sequence, status, false};
        break;
      case 1:  // a fence discarded it
        ledger_.restore(request.slot, taken.before);
        break;
      default:  // it runs for now
        model_[request.slot] = {request.sequence, 0, true};
    }
    return true;
  }
  // A new connection: everything that ran has ended.
  void fence(uint32_t status) {
    for (auto& [slot, known] : model_) {
      if (!known.running) continue;
      ledger_.finish(slot, status);
      known.running = false;
      known.status = status;
    }
  }

 private:
  Ledger ledger_{kSlots};
  std::map<uint16_t, Known> model_;
};

void requests(std::span<const std::byte> bytes, const Framing2& framing, bool mend, netblk::proto::Compressor& compressor) {
  Slots slots;
  while (bytes.size() >= NETBLK2_REQUEST_SIZE) {
    const auto header = header_of<NETBLK2_REQUEST_SIZE>(bytes, framing.crc && mend);
    const auto how = static_cast<uint8_t>(bytes[NETBLK2_REQUEST_SIZE - 1]);
    bytes = bytes.subspan(NETBLK2_REQUEST_SIZE);
    netblk::proto::Request2 request;
    const char* const wrong = netblk::proto::decode_request(header, framing, request);
    if (wrong != nullptr) {
      check(*wrong != '\0');
      slots.fence(how);
      continue;
    }
    std::array<std::byte, NETBLK2_REQUEST_SIZE> again;
    netblk::proto::encode_request(request, framing.crc, again.data());
    check(std::memcmp(again.data(), header.data(), again.size() - (framing.crc ? 0 : 4)) == 0);
    check(request.type >= NETBLK2_READ && request.type <= NETBLK2_HEARTBEAT);
    check(request.payload_length <= framing.max_payload_bytes && request.payload_length <= request.length);
    const auto payload = bytes.first(std::min<size_t>(bytes.size(), request.payload_length));
    bytes = bytes.subspan(payload.size());
    const auto packed = static_cast<uint8_t>(request.flags & (NETBLK2_LZ4 | NETBLK2_ZSTD));
    if (packed != 0 && request.length <= kLongestUnpacked) {
      // What is behind the end is seen by the address sanitizer.
      std::vector<std::byte> plain(request.length);
      (void)compressor.decompress(packed, payload, plain);
    }
    if (request.type == NETBLK2_GOODBYE || request.type == NETBLK2_HEARTBEAT) continue;
    if (!slots.take(request, how, how)) slots.fence(how);
  }
}

void replies(std::span<const std::byte> bytes, const Framing2& framing, bool mend) {
  while (bytes.size() >= NETBLK2_REPLY_SIZE) {
    const auto header = header_of<NETBLK2_REPLY_SIZE>(bytes, framing.crc && mend);
    bytes = bytes.subspan(NETBLK2_REPLY_SIZE);
    netblk::proto::Reply2 reply;
    const char* const wrong = netblk::proto::decode_reply(header, framing, reply);
    if (wrong != nullptr) {
      check(*wrong != '\0');
      continue;
    }
    if (reply.type == NETBLK2_TIMES) {
      netblk::proto::Times2 times;
      const char* const impossible = netblk::proto::decode_times(header, times);
      if (impossible != nullptr) {
        check(*impossible != '\0');
        continue;
      }
      check(times.count != 0 && times.request_type >= NETBLK2_READ && times.request_type <= NETBLK2_NOP);
      std::array<std::byte, NETBLK2_TIMES_SIZE> same;
      netblk::proto::encode_times(times, framing.crc, same.data());
      check(std::memcmp(same.data(), header.data(), same.size() - (framing.crc ? 0 : 4)) == 0);
      continue;
    }
    std::array<std::byte, NETBLK2_REPLY_SIZE> again;
    netblk::proto::encode_reply(reply, framing.crc, again.data());
    check(std::memcmp(again.data(), header.data(), again.size() - (framing.crc ? 0 : 4)) == 0);
    check(reply.payload_length <= framing.max_payload_bytes);
    check((reply.payload_length != 0) == (reply.type == NETBLK2_READ && reply.status == NETBLK2_OK));
    check(netblk::proto::error_of(reply.status) >= 0);
    bytes = bytes.subspan(std::min<size_t>(bytes.size(), reply.payload_length));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  static netblk::proto::Compressor compressor;
  const uint8_t choice = data[0];
  const std::span bytes(reinterpret_cast<const std::byte*>(data) + 1, size - 1);
  const Framing2 framing{.crc = (choice & 1) != 0,
                         .lz4 = (choice & 2) != 0,
                         .zstd = (choice & 4) != 0,
                         .times = (choice & 64) != 0,
                         .max_payload_bytes = (choice & 8) != 0 ? NETBLK2_MAX_PAYLOAD : NETBLK2_MIN_MAX_PAYLOAD};
  const bool mend = (choice & 16) == 0;
  if (choice & 32) {
    replies(bytes, framing, mend);
  } else {
    requests(bytes, framing, mend, compressor);
  }
  return 0;
}
