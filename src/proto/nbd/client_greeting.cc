// SPDX-License-Identifier: GPL-2.0-only
#include "proto/nbd/client_greeting.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <string_view>

#include "base/check.h"
#include "base/endian.h"
#include "base/limits.h"
#include "proto/nbd/client_replies.h"

namespace netblk::proto {
namespace {

using Bytes = std::span<const std::byte>;

template <class T>
T get(Bytes from, size_t at) {
  return load_be<T>(from.data() + at);
}

template <class T>
void put(std::vector<std::byte>& to, T value) {
  to.resize(to.size() + sizeof value);
  store_be(to.data() + to.size() - sizeof value, value);
}

void put_text(std::vector<std::byte>& to, std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  to.insert(to.end(), bytes.begin(), bytes.end());
}

void put_string(std::vector<std::byte>& to, std::string_view text) {
  put(to, static_cast<uint32_t>(text.size()));
  put_text(to, text);
}

std::string text_of(Bytes bytes) { return {reinterpret_cast<const char*>(bytes.data()), bytes.size()}; }

// A server's words inside a message of ours: one line that no terminal obeys.
std::string quoted(Bytes bytes) {
  constexpr size_t kMost = 200;
  std::string text = text_of(bytes.first(std::min(bytes.size(), kMost)));
  for (char& c : text)
    if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) c = '?';
  return bytes.size() > kMost ? text + "..." : text;
}

const char* option_text(uint32_t option) {
  switch (option) {
    case NBD_OPT_EXPORT_NAME: return "EXPORT_NAME";
    case NBD_OPT_LIST: return "LIST";
    case NBD_OPT_INFO: return "INFO";
    case NBD_OPT_GO: return "GO";
    case NBD_OPT_STRUCTURED_REPLY: return "STRUCTURED_REPLY";
    case NBD_OPT_LIST_META_CONTEXT: return "LIST_META_CONTEXT";
    case NBD_OPT_SET_META_CONTEXT: return "SET_META_CONTEXT";
    case NBD_OPT_EXTENDED_HEADERS: return "EXTENDED_HEADERS";
    default: return "an option";
  }
}

std::vector<std::byte> info_request(const std::string& name) {
  constexpr std::array<uint16_t, 3> kKinds = {NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE};
  std::vector<std::byte> data;
  put_string(data, name);
  put(data, static_cast<uint16_t>(kKinds.size()));
  for (const uint16_t kind : kKinds) put(data, kind);
  return data;
}

std::vector<std::byte> context_request(const std::string& name, std::string_view query) {
  std::vector<std::byte> data;
  put_string(data, name);
  put(data, static_cast<uint32_t>(query.empty() ? 0 : 1));
  if (!query.empty()) put_string(data, query);
  return data;
}

}  // namespace

NbdGreeting::NbdGreeting(NbdWish wish) : wish_(std::move(wish)) {
  found_.name = wish_.export_name;
  want(Await::kMagic, 2 * sizeof(uint64_t));
  if (wish_.export_name.size() > NBD_MAX_STRING || wish_.export_name.find('\0') != std::string::npos)
    fail(make_error(EINVAL, "an export's name has up to {} bytes, none of them zero", NBD_MAX_STRING));
}

void NbdGreeting::want(Await what, size_t bytes) {
  await_ = what;
  wanted_ = bytes;
}

void NbdGreeting::fail(Error error) {
  result_ = std::move(error);
  wanted_ = 0;
}

// A friendly end. Where the transmission phase has begun, it is said there.
void NbdGreeting::leave() {
  if (wish_.purpose == NbdWish::Purpose::kList) {
    option(NBD_OPT_ABORT, {});
  } else {
    std::array<std::byte, NBD_EXTENDED_REQUEST_SIZE> bye;
    NbdInFlight disconnect;
    disconnect.type = NBD_CMD_DISC;
    const size_t size = encode_nbd_request(disconnect, found_.extended, bye.data());
    output_.insert(output_.end(), bye.begin(), bye.begin() + static_cast<std::ptrdiff_t>(size));
  }
  wanted_ = 0;
}

void NbdGreeting::option(uint32_t code, Bytes data) {
  put(output_, uint64_t{NBD_OPTS_MAGIC});
  put(output_, code);
  put(output_, static_cast<uint32_t>(data.size()));
  output_.insert(output_.end(), data.begin(), data.end());
  option_ = code;
  replies_ = 0;
  size_told_ = false;
  want(Await::kReplyHeader, NBD_OPTION_REPLY_SIZE);
}

void NbdGreeting::closed() {
  if (over()) return;
  if (option_ == NBD_OPT_EXPORT_NAME)
    return fail(make_error(ENOENT, "the server closed the connection when it was asked for the export \"{}\": it has none "
                                   "of this name, or refuses it", wish_.export_name));
  if (await_ == Await::kMagic)
    return fail(make_error(ECONNRESET, "the server closed the connection before it said anything"));
  fail(make_error(ECONNRESET, "the server closed the connection in the negotiation{}{}", option_ == 0 ? "" : ", upon ",
                  option_ == 0 ? "" : option_text(option_)));
}

void NbdGreeting::take(Bytes piece) {
  NETBLK_CHECK(!over() && piece.size() == wanted_, "a greeting is handed what it did not ask for");
  switch (await_) {
    case Await::kMagic: return take_magic(piece);
    case Await::kFlags: return take_flags(piece);
    case Await::kReplyHeader: return take_header(piece);
    case Await::kReplyBody: return take_reply(piece);
    case Await::kExportName: return take_by_name(piece);
  }
}

void NbdGreeting::take_magic(Bytes piece) {
  if (get<uint64_t>(piece, 0) != NBD_INIT_PASSWD)
    return fail(make_error(EPROTONOSUPPORT, "what answers there does not speak NBD"));
  const auto magic = get<uint64_t>(piece, sizeof(uint64_t));
  if (magic == NBD_OLDSTYLE_MAGIC)
    return fail(make_error(EPROTONOSUPPORT, "the server speaks NBD's oldstyle negotiation, which is not supported: "
                                            "it needs one that speaks the (fixed) newstyle"));
  if (magic != NBD_OPTS_MAGIC) return fail(make_error(EPROTONOSUPPORT, "the server's second magic number is wrong"));
  want(Await::kFlags, sizeof(uint16_t));
}

void NbdGreeting::take_flags(Bytes piece) {
  const auto flags = get<uint16_t>(piece, 0);
  if ((flags & NBD_FLAG_FIXED_NEWSTYLE) != 0) client_flags_ |= NBD_FLAG_C_FIXED_NEWSTYLE;
  if ((flags & NBD_FLAG_NO_ZEROES) != 0) client_flags_ |= NBD_FLAG_C_NO_ZEROES;
  put(output_, client_flags_);
  if ((client_flags_ & NBD_FLAG_C_FIXED_NEWSTYLE) == 0) return ask_by_name();
  if (wish_.purpose == NbdWish::Purpose::kList) return option(NBD_OPT_LIST, {});
  if (wish_.extended) return option(NBD_OPT_EXTENDED_HEADERS, {});
  if (wish_.structured) return option(NBD_OPT_STRUCTURED_REPLY, {});
  after_headers();
}

void NbdGreeting::after_headers() {
  const bool info = wish_.purpose == NbdWish::Purpose::kInfo;
  if (!found_.structured || (!info && !wish_.allocation)) return after_contexts();
  if (info) return option(NBD_OPT_LIST_META_CONTEXT, context_request(wish_.export_name, {}));
  option(NBD_OPT_SET_META_CONTEXT, context_request(wish_.export_name, NBD_CONTEXT_BASE_ALLOCATION));
}

void NbdGreeting::after_contexts() {
  // kInfo, too: some servers know an export's size only when they have opened it.
  option(NBD_OPT_GO, info_request(wish_.export_name));
}

// The one option that every server has, and that no server answers when it says no: it closes.
void NbdGreeting::ask_by_name() {
  if (wish_.purpose == NbdWish::Purpose::kList)
    return fail(make_error(EOPNOTSUPP, "the server is too old to list its exports"));
  // What was said of contexts counts for GO only.
  found_.allocation_id.reset();
  option(NBD_OPT_EXPORT_NAME, std::as_bytes(std::span(wish_.export_name)));
  const size_t zeroes = (client_flags_ & NBD_FLAG_C_NO_ZEROES) != 0 ? 0 : NBD_EXPORT_ZEROES;
  want(Await::kExportName, NBD_EXPORT_REPLY_SIZE + zeroes);
}

void NbdGreeting::take_header(Bytes piece) {
  if (get<uint64_t>(piece, 0) != NBD_OPT_REPLY_MAGIC)
    return fail(make_error(EPROTO, "the server's answer to {} has a wrong magic number", option_text(option_)));
  if (get<uint32_t>(piece, 8) != option_)
    return fail(make_error(EPROTO, "the server answers option {} when {} was asked", get<uint32_t>(piece, 8),
                           option_text(option_)));
  reply_type_ = get<uint32_t>(piece, 12);
  const auto length = get<uint32_t>(piece, 16);
  const size_t most = reply_type_ == NBD_REP_SERVER ? kMaxPiece : sizeof(uint32_t) + NBD_MAX_STRING;
  if (length > most)
    return fail(make_error(EPROTO, "the server's answer to {} has {} bytes; {} at most", option_text(option_), length, most));
  const bool listing = option_ == NBD_OPT_LIST;
  if (++replies_ > (listing ? kMaxListed + 1 : kMaxReplies))
    return fail(make_error(EPROTO, "the server's answers to {} do not end", option_text(option_)));
  if (length == 0) return take_reply({});
  want(Await::kReplyBody, length);
}

void NbdGreeting::take_reply(Bytes body) {
  // Unless something else is asked below, another answer to this option comes.
  want(Await::kReplyHeader, NBD_OPTION_REPLY_SIZE);
  if ((reply_type_ & NBD_REP_IS_ERROR) != 0) return take_error(body);
  const bool about_export = option_ == NBD_OPT_GO || option_ == NBD_OPT_INFO;
  const bool about_contexts = option_ == NBD_OPT_SET_META_CONTEXT || option_ == NBD_OPT_LIST_META_CONTEXT;
  if (reply_type_ == NBD_REP_ACK && body.empty()) return take_ack();
  if (reply_type_ == NBD_REP_INFO && about_export) return take_info(body);
  if (reply_type_ == NBD_REP_META_CONTEXT && about_contexts) return take_context(body);
  if (reply_type_ == NBD_REP_SERVER && option_ == NBD_OPT_LIST) return take_listed(body);
  fail(make_error(EPROTO, "the server's answer to {} is of type {} and {} bytes", option_text(option_), reply_type_, body.size()));
}

void NbdGreeting::take_ack() {
  switch (option_) {
    case NBD_OPT_EXTENDED_HEADERS:
      found_.extended = true;
      [[fallthrough]];
    case NBD_OPT_STRUCTURED_REPLY:
      found_.structured = true;
      return after_headers();
    case NBD_OPT_SET_META_CONTEXT:
    case NBD_OPT_LIST_META_CONTEXT: return after_contexts();
    case NBD_OPT_LIST: return ask_next_listed();
    default: break;
  }
  if (!size_told_)
    return fail(make_error(EPROTO, "the server agrees to the export without telling its size"));
  if (!is_sound(found_)) return;
  if (wish_.purpose == NbdWish::Purpose::kUse) {
    wanted_ = 0;
  } else if (wish_.purpose == NbdWish::Purpose::kInfo) {
    leave();
  } else {
    // See after_contexts(): nothing is what such a server says.
    if (found_.size_bytes != 0) listed_[next_listed_ - 1].about = found_;
    ask_next_listed();
  }
}

void NbdGreeting::take_error(Bytes text) {
  const std::string words = text.empty() ? "" : ": " + quoted(text);
  const std::string& name = wish_.export_name;
  if (reply_type_ == NBD_REP_ERR_TLS_REQD)
    return fail(make_error(EPROTONOSUPPORT, "the server wants TLS, which netblk does not speak yet{}", words));
  if (reply_type_ == NBD_REP_ERR_SHUTDOWN) return fail(make_error(ESHUTDOWN, "the server is shutting down{}", words));
  // Of what may be done without, every other refusal means: without.
  switch (option_) {
    case NBD_OPT_EXTENDED_HEADERS:
      if (wish_.structured) return option(NBD_OPT_STRUCTURED_REPLY, {});
      return after_headers();
    case NBD_OPT_STRUCTURED_REPLY: return after_headers();
    case NBD_OPT_SET_META_CONTEXT:
    case NBD_OPT_LIST_META_CONTEXT:
      found_.allocation_id.reset();
      return after_contexts();
    case NBD_OPT_LIST:
      return fail(make_error(reply_type_ == NBD_REP_ERR_POLICY ? EPERM : EOPNOTSUPP,
                             "the server does not list its exports{}", words));
    default: break;
  }
  if (wish_.purpose == NbdWish::Purpose::kList) {
    // A server that cannot tell of one cannot tell of the others.
    if (reply_type_ == NBD_REP_ERR_UNSUP) next_listed_ = listed_.size();
    return ask_next_listed();
  }
  switch (reply_type_) {
    case NBD_REP_ERR_UNSUP: return ask_by_name();
    case NBD_REP_ERR_UNKNOWN: return fail(make_error(ENOENT, "the server has no export \"{}\"{}", name, words));
    case NBD_REP_ERR_POLICY: return fail(make_error(EPERM, "the server refuses the export \"{}\"{}", name, words));
    default:
      return fail(make_error(EINVAL, "the server refuses the export \"{}\" with error {}{}", name,
                             reply_type_ & ~NBD_REP_IS_ERROR, words));
  }
}

void NbdGreeting::take_info(Bytes body) {
  if (body.size() < sizeof(uint16_t)) return fail(make_error(EPROTO, "an empty piece of information about the export"));
  const auto kind = get<uint16_t>(body, 0);
  const Bytes text = body.subspan(sizeof kind);
  if (kind == NBD_INFO_EXPORT) {
    if (body.size() != NBD_INFO_EXPORT_SIZE)
      return fail(make_error(EPROTO, "the size of the export is told in {} bytes", body.size()));
    found_.size_bytes = get<uint64_t>(body, 2);
    found_.flags = get<uint16_t>(body, 10);
    size_told_ = true;
  } else if (kind == NBD_INFO_BLOCK_SIZE) {
    take_constraints(body);
  } else if ((kind == NBD_INFO_NAME || kind == NBD_INFO_DESCRIPTION) && text.size() > NBD_MAX_STRING) {
    fail(make_error(EPROTO, "a text about the export has {} bytes", text.size()));
  } else if (kind == NBD_INFO_NAME) {
    found_.name = text_of(text);
  } else if (kind == NBD_INFO_DESCRIPTION) {
    found_.description = text_of(text);
  }
}

void NbdGreeting::take_constraints(Bytes body) {
  if (body.size() != NBD_INFO_BLOCK_SIZE_SIZE)
    return fail(make_error(EPROTO, "the block sizes are told in {} bytes", body.size()));
  const auto least = get<uint32_t>(body, 2), preferred = get<uint32_t>(body, 6), most = get<uint32_t>(body, 10);
  if (!std::has_single_bit(least) || least > NBD_MAX_MIN_BLOCK || most < least)
    return fail(make_error(EPROTO, "the server's block sizes make no sense: at least {}, preferably {}, at most {}", least,
                           preferred, most));
  found_.constraints_told = true;
  found_.min_block_bytes = least;
  // Advice, not law: nonsense is no reason to do without the disk.
  found_.preferred_block_bytes =
      std::has_single_bit(preferred) && preferred >= least ? preferred : std::max<uint32_t>(least, NBD_DEFAULT_PREFERRED_BLOCK);
  found_.max_payload_bytes = std::min<uint32_t>(most, NBD_DEFAULT_MAX_PAYLOAD) / least * least;
}

void NbdGreeting::take_context(Bytes body) {
  if (body.size() <= sizeof(uint32_t)) return fail(make_error(EPROTO, "a meta context without a name"));
  const std::string name = text_of(body.subspan(sizeof(uint32_t)));
  if (option_ == NBD_OPT_LIST_META_CONTEXT) {
    found_.contexts.push_back(name);
    return;
  }
  // What was not asked for is not used, but nothing speaks against hearing of it once.
  if (name != NBD_CONTEXT_BASE_ALLOCATION) return;
  if (found_.allocation_id) return fail(make_error(EPROTO, "the server agrees to {} twice", name));
  found_.allocation_id = get<uint32_t>(body, 0);
}

void NbdGreeting::take_listed(Bytes body) {
  if (body.size() < sizeof(uint32_t)) return fail(make_error(EPROTO, "an export without a name in the list"));
  const auto length = get<uint32_t>(body, 0);
  const Bytes rest = body.subspan(sizeof length);
  if (length > rest.size() || length > NBD_MAX_STRING)
    return fail(make_error(EPROTO, "an export's name of {} bytes in {} bytes of the list", length, rest.size()));
  listed_bytes_ += rest.size();
  if (listed_bytes_ > kMaxListedBytes) return fail(make_error(EPROTO, "the server's list of exports does not end"));
  listed_.push_back({.name = text_of(rest.first(length)), .description = text_of(rest.subspan(length))});
}

void NbdGreeting::ask_next_listed() {
  if (next_listed_ == listed_.size()) return leave();
  const std::string& name = listed_[next_listed_++].name;
  found_ = {};
  found_.name = name;
  option(NBD_OPT_INFO, info_request(name));
}

void NbdGreeting::take_by_name(Bytes piece) {
  found_.size_bytes = get<uint64_t>(piece, 0);
  found_.flags = get<uint16_t>(piece, 8);
  if (!is_sound(found_)) return;
  wanted_ = 0;
  if (wish_.purpose == NbdWish::Purpose::kInfo) leave();
}

bool NbdGreeting::is_sound(const NbdExport& found) {
  if (found.size_bytes <= limits::kMaxDeviceBytes) return true;
  fail(make_error(EPROTO, "the server says that the export has {} bytes", found.size_bytes));
  return false;
}

}  // namespace netblk::proto
