// SPDX-License-Identifier: GPL-2.0-only
// NbdGreeting: the client's half of NBD's negotiation (the public protocol text, "Fixed newstyle negotiation"), without
// I/O: whoever has a connection sends what it says and hands it what it wants. The server is not believed anything.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "protocol/nbd_wire.h"

namespace netblk::proto {

struct NbdWish {
  enum class Purpose : uint8_t {
    kUse,   // ends in the transmission phase
    kInfo,  // learns what the export is, and leaves
    kList,  // learns which exports there are and what they are, and leaves
  };
  Purpose purpose = Purpose::kUse;
  std::string export_name{};  // empty: the server's default
  // What is asked for; it is in force if the server agrees. Extended headers include structured replies.
  bool structured = true;
  bool extended = true;
  bool allocation = true;  // the meta context base:allocation; needs one of them
};

// What a client may do, and what it knows.
struct NbdExport {
  std::string name{};         // as the server calls it; else as it was asked
  std::string description{};
  uint64_t size_bytes = 0;
  uint16_t flags = 0;  // NBD_FLAG_...
  // Offsets and lengths are multiples of min_block_bytes; no READ or WRITE is longer than max_payload_bytes.
  // constraints_told: the server has said so; otherwise these are what every server takes.
  uint32_t min_block_bytes = NBD_DEFAULT_MIN_BLOCK;
  uint32_t preferred_block_bytes = NBD_DEFAULT_PREFERRED_BLOCK;
  uint32_t max_payload_bytes = NBD_DEFAULT_MAX_PAYLOAD;
  bool constraints_told = false;
  bool structured = false;
  bool extended = false;
  // Of base:allocation, if it was agreed on.
  std::optional<uint32_t> allocation_id{};
  // kInfo: every meta context that the server offers.
  std::vector<std::string> contexts{};

  bool has(unsigned flag) const { return (flags & flag) != 0; }
  bool read_only() const { return has(NBD_FLAG_READ_ONLY); }
};

struct NbdListed {
  std::string name;
  std::string description;
  std::optional<NbdExport> about{};  // nothing: the server does not say
};

class NbdGreeting {
 public:
  // No answer to an option is longer.
  static constexpr size_t kMaxPiece = 4 + 2 * NBD_MAX_STRING;
  // A server that lists more, or longer, is not believed.
  static constexpr size_t kMaxListed = 16384;
  static constexpr size_t kMaxListedBytes = 4u << 20;
  // Answers to one option that is no list: kinds of information, contexts.
  static constexpr unsigned kMaxReplies = 1024;

  explicit NbdGreeting(NbdWish wish);

  // To be sent before anything else is received; emptied by the call. At the end it may be a farewell.
  std::vector<std::byte> take_output() { return std::exchange(output_, {}); }
  // How many bytes come next; 0: it is over.
  size_t wanted() const { return wanted_; }
  // Exactly wanted() bytes.
  void take(std::span<const std::byte> piece);
  // The server has closed the connection instead: result() says what that means.
  void closed();

  bool over() const { return wanted_ == 0; }
  // After it is over. ENOENT: no such export; EPERM: it is refused; EPROTONOSUPPORT: what is there speaks no NBD that is
  // spoken here, or wants TLS; ESHUTDOWN; EPROTO: its answers make no sense.
  const Status& result() const { return result_; }
  const NbdExport& found() const { return found_; }
  const std::vector<NbdListed>& listed() const { return listed_; }

 private:
  enum class Await : uint8_t { kMagic, kFlags, kReplyHeader, kReplyBody, kExportName };

  void want(Await what, size_t bytes);
  void fail(Error error);
  void leave();
  void option(uint32_t code, std::span<const std::byte> data);
  void after_headers();
  void after_contexts();
  void ask_by_name();
  void ask_next_listed();
  void take_magic(std::span<const std::byte> piece);
  void take_flags(std::span<const std::byte> piece);
  void take_header(std::span<const std::byte> piece);
  void take_reply(std::span<const std::byte> body);
  void take_ack();
  void take_error(std::span<const std::byte> text);
  void take_info(std::span<const std::byte> body);
  void take_context(std::span<const std::byte> body);
  void take_listed(std::span<const std::byte> body);
  void take_by_name(std::span<const std::byte> piece);
  void take_constraints(std::span<const std::byte> body);
  bool is_sound(const NbdExport& found);

  const NbdWish wish_;
  std::vector<std::byte> output_;
  Await await_ = Await::kMagic;
  size_t wanted_ = 0;
  Status result_ = Ok{};
  uint32_t client_flags_ = 0;
  uint32_t option_ = 0;      // that is being answered
  uint32_t reply_type_ = 0;  // whose body comes
  unsigned replies_ = 0;     // to this option
  bool size_told_ = false;   // in answer to this option
  size_t listed_bytes_ = 0;
  size_t next_listed_ = 0;
  NbdExport found_;  // kList: the one that is being asked about
  std::vector<NbdListed> listed_;
};

}  // namespace netblk::proto
