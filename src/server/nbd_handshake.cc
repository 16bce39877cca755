// SPDX-License-Identifier: GPL-2.0-only
#include "server/nbd_handshake.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <utility>

#include "base/endian.h"
#include "base/log.h"

namespace netblk::server {
namespace {

// Refused options of one connection that get a line of their own in the log.
constexpr uint32_t kLoggedFailures = 10;

// Replies of a list go out in pieces of about this size.
constexpr size_t kListPiece = 8u << 10;

constexpr std::string_view kBaseNamespace = "base:";
constexpr std::string_view kNetblkNamespace = "netblk:";
constexpr std::string_view kQemuNamespace = "qemu:";

// Names that are said back; "SHOULD be no longer than 256 bytes". A reply that is cut could end within a character.
constexpr size_t kSaidName = 256;

std::string no_such_export(const std::string& name) {
  if (name.size() > kSaidName || !proto::is_nbd_string(name)) return "there is no export of that name";
  return name.empty() ? "nothing is exported" : fmt::format("there is no export '{}'", name);
}

}  // namespace

coro::Task<std::shared_ptr<Export>> NbdHandshake::run() {
  std::array<std::byte, NBD_GREETING_SIZE> greeting = proto::nbd_greeting();
  std::array<iovec, 1> parts{{{greeting.data(), greeting.size()}}};
  bool open = co_await link_.send(parts);
  if (open) open = co_await need(NBD_CLIENT_FLAGS_SIZE);
  if (!open) co_return nullptr;
  client_flags_ = load_be<uint32_t>(link_.consume(NBD_CLIENT_FLAGS_SIZE));
  if ((client_flags_ & ~(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)) != 0) {
    close(fmt::format("unknown client flags 0x{:08x}", client_flags_));
    co_return nullptr;
  }
  for (uint32_t options = 0;; ++options) {
    if (options == limits::kMaxNbdOptions) {
      close(fmt::format("more than {} options in one handshake", limits::kMaxNbdOptions));
      co_return nullptr;
    }
    const Next next = co_await option();
    if (next == Next::kOver) co_return nullptr;
    if (next == Next::kServe) break;
  }
  co_return std::exchange(served_, nullptr);
}

NbdHandshake::Next NbdHandshake::close(std::string reason) {
  refused_ = true;
  link_.give_up(std::move(reason), false);
  link_.linger();
  return Next::kOver;
}

coro::Task<bool> NbdHandshake::need(uint32_t bytes) {
  while (link_.unread_bytes() < bytes) {
    const bool more = co_await link_.receive(false, 0);
    if (!more) co_return false;
  }
  co_return true;
}

coro::Task<bool> NbdHandshake::reply() {
  const std::span<std::byte> bytes = replies_.bytes();
  std::array<iovec, 1> parts{{{bytes.data(), bytes.size()}}};
  const bool sent = co_await link_.send(parts);
  replies_.clear();
  co_return sent;
}

NbdHandshake::Next NbdHandshake::fail(uint32_t type, std::string_view text) {
  if (++failures_ <= kLoggedFailures)
    log_info("{}: {} refused: {}", link_.name(), proto::nbd_option_text(option_), text);
  replies_.error(type, text);
  return Next::kOption;
}

coro::Task<NbdHandshake::Next> NbdHandshake::option() {
  bool here = co_await need(NBD_OPTION_SIZE);
  if (!here) co_return Next::kOver;
  proto::NbdOption header;
  if (const char* wrong = proto::decode_nbd_option(link_.consume(NBD_OPTION_SIZE), header)) co_return close(wrong);
  option_ = header.type;
  replies_.start(header.type);
  if (header.type != NBD_OPT_EXPORT_NAME && (client_flags_ & NBD_FLAG_C_FIXED_NEWSTYLE) == 0)
    co_return close(fmt::format("{} without NBD_FLAG_C_FIXED_NEWSTYLE", proto::nbd_option_text(header.type)));
  if (header.type == NBD_OPT_EXPORT_NAME && header.length > NBD_MAX_STRING)
    co_return close(fmt::format("NBD_OPT_EXPORT_NAME with a name of {} bytes", header.length));
  Next next = Next::kOption;
  if (header.type == NBD_OPT_ABORT) {
    // Whatever it carries, it is what ends the handshake.
    if (header.length <= limits::kMaxNbdSkippedBytes) {
      here = co_await link_.skip_data(header.length);
      if (!here) co_return Next::kOver;
    } else {
      link_.linger();
    }
    replies_.ack();
    link_.give_up("the client ended the handshake", false);
    next = Next::kOver;
  } else if (header.length > limits::kMaxNbdOptionBytes) {
    // No option of ours has as many. Some are read and dropped; with more the connection ends, so that nobody sends for
    // ever.
    const std::string text = fmt::format("{} bytes of data, more than {}", header.length, limits::kMaxNbdOptionBytes);
    fail(NBD_REP_ERR_TOO_BIG, text);
    if (header.length > limits::kMaxNbdSkippedBytes) {
      next = close(fmt::format("{} with {}", proto::nbd_option_text(header.type), text));
    } else {
      here = co_await link_.skip_data(header.length);
      if (!here) co_return Next::kOver;
    }
  } else {
    here = co_await need(header.length);
    if (!here) co_return Next::kOver;
    const std::span<const std::byte> data(link_.consume(header.length), header.length);
    if (header.type == NBD_OPT_LIST && data.empty()) {
      co_await list();
    } else if (header.type == NBD_OPT_LIST_META_CONTEXT) {
      co_await list_contexts(data);
    } else {
      next = answer(header.type, data);
    }
  }
  // Whoever has been told that it is served is not sent away for another.
  if (next == Next::kServe) link_.opened();
  const bool sent = co_await reply();
  if (sent) co_return next;
  if (served_ != nullptr) std::exchange(served_, nullptr)->leave();
  co_return Next::kOver;
}

NbdHandshake::Next NbdHandshake::answer(uint32_t option, std::span<const std::byte> data) {
  switch (option) {
    case NBD_OPT_EXPORT_NAME: return name_export({reinterpret_cast<const char*>(data.data()), data.size()});
    case NBD_OPT_GO: return describe(true, data);
    case NBD_OPT_INFO: return describe(false, data);
    case NBD_OPT_SET_META_CONTEXT: return select_contexts(data);
    case NBD_OPT_LIST:
    case NBD_OPT_STARTTLS:
    case NBD_OPT_STRUCTURED_REPLY:
    case NBD_OPT_EXTENDED_HEADERS: break;
    default: return fail(NBD_REP_ERR_UNSUP, "this server does not know that option");
  }
  if (!data.empty()) return fail(NBD_REP_ERR_INVALID, "an option that takes no data has some");
  if (option == NBD_OPT_STARTTLS) return fail(NBD_REP_ERR_UNSUP, "this server does not offer TLS");
  if (option == NBD_OPT_EXTENDED_HEADERS) {
    // Told apart from the first time, as by QEMU: libnbd's tests ask twice.
    if (agreement_.headers == proto::NbdHeaders::kExtended)
      return fail(NBD_REP_ERR_INVALID, "extended headers are in force already");
    agreement_.headers = proto::NbdHeaders::kExtended;
  } else if (agreement_.headers == proto::NbdHeaders::kExtended) {
    return fail(NBD_REP_ERR_EXT_HEADER_REQD, "extended headers are in force");
  } else {
    agreement_.headers = proto::NbdHeaders::kStructured;
  }
  replies_.ack();
  return Next::kOption;
}

// A long list goes out in pieces.
coro::Task<void> NbdHandshake::list() {
  for (const auto& entry : exports_.all()) {
    if (entry == nullptr || !entry->allows(peer_)) continue;
    replies_.server(entry->config().name, entry->description());
    if (replies_.bytes().size() < kListPiece) continue;
    const bool sent = co_await reply();
    if (!sent) co_return;
  }
  replies_.ack();
}

// Why not, or an empty text.
std::string NbdHandshake::enter(std::shared_ptr<Export> wanted) {
  std::string why = wanted->enter(peer_);
  if (why.empty()) served_ = std::move(wanted);
  return why;
}

uint16_t NbdHandshake::transmission_flags(const std::shared_ptr<Export>& served) const {
  const block::Geometry geometry = served->device().geometry();
  // Whoever shares a Device shares what it caches: a flush covers what was answered on every connection.
  uint16_t flags = NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_CAN_MULTI_CONN |
                   NBD_FLAG_SEND_CACHE;
  if (geometry.read_only) {
    flags |= NBD_FLAG_READ_ONLY;
  } else {
    flags |= NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
    if (geometry.can_trim) flags |= NBD_FLAG_SEND_TRIM;
  }
  if (geometry.rotational) flags |= NBD_FLAG_ROTATIONAL;
  if (agreement_.headers != proto::NbdHeaders::kSimple) flags |= NBD_FLAG_SEND_DF;
  if (agreement_.headers == proto::NbdHeaders::kExtended && agreement_.has_contexts(served))
    flags |= NBD_FLAG_BLOCK_STATUS_PAYLOAD;
  return flags;
}

std::string NbdHandshake::not_there(const std::string& name) const {
  return exports_.is_away(name) ? "the export is being changed: try again" : no_such_export(name);
}

// There is no answer but the export: whoever may not have it is hung up on.
NbdHandshake::Next NbdHandshake::name_export(const std::string& name) {
  if (agreement_.headers == proto::NbdHeaders::kExtended)
    return close("NBD_OPT_EXPORT_NAME after NBD_OPT_EXTENDED_HEADERS");
  std::shared_ptr<Export> wanted = exports_.find(name);
  if (wanted == nullptr) return close(not_there(name));
  if (const std::string why = enter(wanted); !why.empty())
    return close(fmt::format("export '{}': {}", wanted->config().name, why));
  replies_.export_reply(wanted->device().size_bytes(), transmission_flags(wanted),
                        (client_flags_ & NBD_FLAG_C_NO_ZEROES) == 0);
  return Next::kServe;
}

// NBD_OPT_INFO and NBD_OPT_GO.
NbdHandshake::Next NbdHandshake::describe(bool go, std::span<const std::byte> data) {
  proto::NbdGo wish;
  if (const char* wrong = proto::decode_nbd_go(data, wish)) return fail(NBD_REP_ERR_INVALID, wrong);
  std::shared_ptr<Export> wanted = exports_.find(wish.name);
  if (wanted == nullptr) return fail(NBD_REP_ERR_UNKNOWN, not_there(wish.name));
  std::string why;
  if (go) {
    why = enter(wanted);
  } else if (!wanted->allows(peer_)) {
    why = "the address is not in allow=";
  }
  if (!why.empty())
    return fail(NBD_REP_ERR_POLICY, fmt::format("export '{}': {}", wanted->config().name, why));
  replies_.info_export(wanted->device().size_bytes(), transmission_flags(wanted));
  if (wish.wants_name) replies_.info_text(NBD_INFO_NAME, wanted->config().name);
  if (wish.wants_description) replies_.info_text(NBD_INFO_DESCRIPTION, wanted->description());
  if (wish.wants_block_size)
    replies_.info_block_size(NBD_DEFAULT_MIN_BLOCK, NBD_DEFAULT_PREFERRED_BLOCK, limits::kNbdAdvertisedBytes);
  replies_.ack();
  if (!go) return Next::kOption;
  agreement_.knows_block_size = wish.wants_block_size;
  return Next::kServe;
}

// Null: it was refused.
std::shared_ptr<Export> NbdHandshake::contexts_of(std::span<const std::byte> data, proto::NbdContextQuery& query) {
  if (agreement_.headers == proto::NbdHeaders::kSimple) {
    fail(NBD_REP_ERR_INVALID, "contexts need NBD_OPT_STRUCTURED_REPLY or NBD_OPT_EXTENDED_HEADERS first");
    return nullptr;
  }
  if (const char* wrong = proto::decode_nbd_context_query(data, query)) {
    fail(NBD_REP_ERR_INVALID, wrong);
    return nullptr;
  }
  std::shared_ptr<Export> wanted = exports_.find(query.name);
  if (wanted == nullptr) {
    fail(NBD_REP_ERR_UNKNOWN, not_there(query.name));
  } else if (!wanted->allows(peer_)) {
    fail(NBD_REP_ERR_POLICY, fmt::format("export '{}': the address is not in allow=", query.name));
    wanted = nullptr;
  }
  return wanted;
}

// A namespace alone, or with the kind of context, is a wildcard here, and selects none. What nobody knows is passed over. A
// volume has thousands of snapshots: a long list goes out in pieces.
coro::Task<void> NbdHandshake::list_contexts(std::span<const std::byte> data) {
  proto::NbdContextQuery query;
  const std::shared_ptr<Export> wanted = contexts_of(data, query);
  if (wanted == nullptr) co_return;
  // The bytes that came are gone when the first piece has been sent.
  const std::vector<std::string> queries(query.queries.begin(), query.queries.end());
  const auto asked = [&](std::string_view name, std::initializer_list<std::string_view> wildcards) {
    if (queries.empty()) return true;
    return std::any_of(queries.begin(), queries.end(), [&](const std::string& text) {
      return text == name || std::find(wildcards.begin(), wildcards.end(), text) != wildcards.end();
    });
  };
  if (asked(NBD_CONTEXT_BASE_ALLOCATION, {kBaseNamespace})) replies_.context(0, NBD_CONTEXT_BASE_ALLOCATION);
  for (const std::string& base : wanted->device().bases()) {
    const std::string ours = NBD_CONTEXT_NETBLK_DIRTY + base, of_qemu = NBD_CONTEXT_QEMU_DIRTY + base;
    if (asked(ours, {kNetblkNamespace, NBD_CONTEXT_NETBLK_DIRTY})) replies_.context(0, ours);
    if (asked(of_qemu, {kQemuNamespace, NBD_CONTEXT_QEMU_DIRTY})) replies_.context(0, of_qemu);
    if (replies_.bytes().size() < kListPiece) continue;
    const bool sent = co_await reply();
    if (!sent) co_return;
  }
  replies_.ack();
}

NbdHandshake::Next NbdHandshake::select_contexts(std::span<const std::byte> data) {
  // "Issuing this command replaces all previously-set metadata contexts (including when this command fails)"
  agreement_.contexts.clear();
  agreement_.contexts_of = nullptr;
  proto::NbdContextQuery query;
  std::shared_ptr<Export> wanted = contexts_of(data, query);
  if (wanted == nullptr) return Next::kOption;
  std::vector<NbdContext> contexts;
  std::vector<std::string_view> names;
  uint32_t last_id = kNbdAllocation;
  for (const std::string_view name : query.queries) {
    if (std::find(names.begin(), names.end(), name) != names.end()) continue;
    NbdContext context;
    if (name != NBD_CONTEXT_BASE_ALLOCATION) {
      std::string_view base;
      for (const std::string_view kind : {NBD_CONTEXT_NETBLK_DIRTY, NBD_CONTEXT_QEMU_DIRTY})
        if (name.starts_with(kind)) base = name.substr(kind.size());
      if (!base.empty()) context.since = wanted->device().base(base);
      if (context.since == nullptr) continue;
      context.id = ++last_id;
    }
    if (contexts.size() == limits::kMaxNbdContexts)
      return fail(NBD_REP_ERR_TOO_BIG, fmt::format("more than {} contexts", limits::kMaxNbdContexts));
    names.push_back(name);
    contexts.push_back(std::move(context));
  }
  for (size_t i = 0; i < contexts.size(); ++i) replies_.context(contexts[i].id, names[i]);
  agreement_.contexts = std::move(contexts);
  agreement_.contexts_of = std::move(wanted);
  replies_.ack();
  return Next::kOption;
}

}  // namespace netblk::server
