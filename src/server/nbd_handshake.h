// SPDX-License-Identifier: GPL-2.0-only
// NbdHandshake: the fixed newstyle handshake of NBD on one connection, from the greeting to the first request.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "coro/task.h"
#include "proto/nbd/server_options.h"
#include "proto/nbd/server_requests.h"
#include "server/exports.h"
#include "server/link.h"

namespace netblk::server {

// The id of base:allocation, the one context there is. Those of a volume's snapshots will be in `netblk:`.
inline constexpr uint32_t kNbdAllocation = 1;

// What the client negotiated. STARTTLS will have to forget it all (assign an empty one), with the bytes that were received.
struct NbdAgreement {
  proto::NbdHeaders headers = proto::NbdHeaders::kSimple;
  // The export that base:allocation was selected for; it counts if that is the one served.
  std::shared_ptr<Export> allocation_of;
  // A client that asked for block sizes keeps to them; another cannot know them.
  bool knows_block_size = false;

  bool allocation(const std::shared_ptr<Export>& served) const { return allocation_of == served; }
};

class NbdHandshake {
 public:
  NbdHandshake(Link& link, const ExportTable& exports, const io::Address& peer)
      : link_(link), exports_(exports), peer_(peer) {}

  // The export that the client has chosen, which was entered; null: the connection is over.
  coro::Task<std::shared_ptr<Export>> run();
  const NbdAgreement& agreement() const { return agreement_; }
  // What the client was told of the export, as far as it depends on the agreement.
  uint16_t transmission_flags(const std::shared_ptr<Export>& served) const;

  // It was ended by the server: the client broke the rules, or may not have what it asked for.
  bool refused() const { return refused_; }

 private:
  enum class Next { kOption, kServe, kOver };

  coro::Task<Next> option();
  coro::Task<bool> need(uint32_t bytes);
  coro::Task<bool> reply();
  coro::Task<void> list();
  // These fill replies_.
  Next answer(uint32_t option, std::span<const std::byte> data);
  Next describe(bool go, std::span<const std::byte> data);
  Next contexts(bool set, std::span<const std::byte> data);
  Next name_export(const std::string& name);
  Next fail(uint32_t type, std::string_view text);
  Next close(std::string reason);
  std::string enter(std::shared_ptr<Export> wanted);

  Link& link_;
  const ExportTable& exports_;
  const io::Address& peer_;
  NbdAgreement agreement_;
  proto::NbdOptionReplies replies_;
  std::shared_ptr<Export> served_;  // entered
  uint32_t client_flags_ = 0;
  uint32_t option_ = 0;  // the one that is answered
  uint32_t failures_ = 0;
  bool refused_ = false;
};

}  // namespace netblk::server
