// SPDX-License-Identifier: GPL-2.0-only
// NbdHandshake: the fixed newstyle handshake of NBD on one connection, from the greeting to the first request.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "coro/task.h"
#include "proto/nbd/server_options.h"
#include "proto/nbd/server_requests.h"
#include "server/exports.h"
#include "server/link.h"

namespace netblk::server {

// The id of base:allocation. What has changed since some moment has the ids behind it.
inline constexpr uint32_t kNbdAllocation = 1;

struct NbdContext {
  uint32_t id = kNbdAllocation;
  std::shared_ptr<const block::Base> since;  // null: base:allocation
};

// What the client negotiated. STARTTLS will have to forget it all (assign an empty one), with the bytes that were received.
struct NbdAgreement {
  proto::NbdHeaders headers = proto::NbdHeaders::kSimple;
  // What was selected, and for which export; it counts if that is the one served.
  std::vector<NbdContext> contexts;
  std::shared_ptr<Export> contexts_of;
  // A client that asked for block sizes keeps to them; another cannot know them.
  bool knows_block_size = false;

  bool has_contexts(const std::shared_ptr<Export>& served) const { return contexts_of == served && !contexts.empty(); }
};

class NbdHandshake {
 public:
  NbdHandshake(Link& link, const ExportTable& exports, const io::Address& peer)
      : link_(link), exports_(exports), peer_(peer) {}

  // The export that the client has chosen, which was entered; null: the connection is over. The link is open before the
  // client is told.
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
  coro::Task<void> list_contexts(std::span<const std::byte> data);
  // These fill replies_.
  Next answer(uint32_t option, std::span<const std::byte> data);
  Next describe(bool go, std::span<const std::byte> data);
  Next select_contexts(std::span<const std::byte> data);
  std::shared_ptr<Export> contexts_of(std::span<const std::byte> data, proto::NbdContextQuery& query);
  Next name_export(const std::string& name);
  Next fail(uint32_t type, std::string_view text);
  Next close(std::string reason);
  std::string enter(std::shared_ptr<Export> wanted);
  std::string not_there(const std::string& name) const;

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
