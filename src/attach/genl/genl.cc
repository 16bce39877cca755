// SPDX-License-Identifier: GPL-2.0-only
#include "attach/genl/genl.h"

#include <netlink/attr.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

namespace netblk::attach {
namespace {

struct FreeMessage {
  void operator()(nl_msg* message) const { nlmsg_free(message); }
};
struct PutCallbacks {
  void operator()(nl_cb* callbacks) const { nl_cb_put(callbacks); }
};
using Message = std::unique_ptr<nl_msg, FreeMessage>;
using Callbacks = std::unique_ptr<nl_cb, PutCallbacks>;

// libnl's errors are its own numbers; those that a kernel sent come through Exchange::refused.
Error of_libnl(int error) {
  const int code = -error == NLE_OBJ_NOTFOUND ? ENOENT : -error == NLE_NOMEM ? ENOMEM : EIO;
  return make_error(code, "netlink: {}", nl_geterror(error));
}

using Attributes = std::vector<nlattr*>;

bool parsed(nl_msg* message, Attributes& attributes) {
  return genlmsg_parse(nlmsg_hdr(message), 0, attributes.data(), static_cast<int>(attributes.size()) - 1, nullptr) == 0;
}

// What one command brought.
struct Exchange {
  Attributes attributes;
  const Genl::Take* take = nullptr;
  int refused = 0;  // errno of the kernel's refusal
  std::string words;
  bool done = false;
};

int take_answer(nl_msg* message, void* argument) {
  auto* exchange = static_cast<Exchange*>(argument);
  if (*exchange->take && parsed(message, exchange->attributes)) (*exchange->take)(exchange->attributes);
  return NL_OK;
}

int take_end(nl_msg*, void* argument) {
  static_cast<Exchange*>(argument)->done = true;
  return NL_STOP;
}

// The extended acknowledgement follows the refused message, which NETLINK_CAP_ACK cuts to its header.
int take_refusal(sockaddr_nl*, nlmsgerr* error, void* argument) {
  auto* exchange = static_cast<Exchange*>(argument);
  exchange->refused = -error->error;
  exchange->done = true;
  auto* header = reinterpret_cast<nlmsghdr*>(reinterpret_cast<char*>(error) - NLMSG_HDRLEN);
  if ((header->nlmsg_flags & NLM_F_ACK_TLVS) == 0) return NL_STOP;
  const bool capped = (header->nlmsg_flags & NLM_F_CAPPED) != 0;
  if (!capped && error->msg.nlmsg_len < NLMSG_HDRLEN) return NL_STOP;
  const size_t skipped = sizeof *error + (capped ? 0 : error->msg.nlmsg_len - static_cast<uint32_t>(NLMSG_HDRLEN));
  const size_t length = header->nlmsg_len - static_cast<uint32_t>(NLMSG_HDRLEN);
  if (skipped >= length) return NL_STOP;
  auto* first = reinterpret_cast<nlattr*>(reinterpret_cast<char*>(error) + skipped);
  nlattr* words = nla_find(first, static_cast<int>(length - skipped), NLMSGERR_ATTR_MSG);
  if (words != nullptr) {
    const auto* text = static_cast<const char*>(nla_data(words));
    exchange->words.assign(text, ::strnlen(text, static_cast<size_t>(nla_len(words))));
  }
  return NL_STOP;
}

Result<NetlinkSocket> connected() {
  NetlinkSocket socket(nl_socket_alloc());
  if (!socket) return make_error(ENOMEM, "no memory for a netlink socket");
  if (const int failed = genl_connect(socket.get()); failed < 0) return of_libnl(failed);
  return socket;
}

struct Heard {
  Attributes attributes;
  const std::function<void(uint8_t, std::span<nlattr* const>)>& tell;
};

int take_event(nl_msg* message, void* argument) {
  auto* heard = static_cast<Heard*>(argument);
  if (parsed(message, heard->attributes))
    heard->tell(genlmsg_hdr(nlmsg_hdr(message))->cmd, heard->attributes);
  return NL_OK;
}

int take_any(nl_msg*, void*) { return NL_OK; }

}  // namespace

void FreeNetlinkSocket::operator()(nl_sock* socket) const { nl_socket_free(socket); }

std::optional<uint32_t> u32_of(const nlattr* attribute) {
  if (attribute == nullptr || nla_len(attribute) < static_cast<int>(sizeof(uint32_t))) return std::nullopt;
  return nla_get_u32(attribute);
}

Result<Genl> Genl::open(const std::string& name, uint8_t version, int max_attribute) {
  auto socket = connected();
  if (!socket) return std::move(socket).error();
  const int on = 1;
  const int fd = nl_socket_get_fd(socket.value().get());
  (void)::setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  (void)::setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
  const int number = genl_ctrl_resolve(socket.value().get(), name.c_str());
  if (number < 0) return make_error(ENOENT, "the kernel has no netlink family \"{}\"", name);
  return Genl(std::move(socket).value(), number, version, max_attribute);
}

Status Genl::ask(uint8_t command, const Fill& fill, const Take& take) const {
  Message message(nlmsg_alloc());
  Callbacks callbacks(nl_cb_alloc(NL_CB_DEFAULT));
  if (!message || !callbacks) return make_error(ENOMEM, "no memory for a netlink message");
  if (genlmsg_put(message.get(), NL_AUTO_PORT, NL_AUTO_SEQ, number_, 0, NLM_F_REQUEST | NLM_F_ACK, command, version_) ==
          nullptr ||
      fill(message.get()) < 0)
    return make_error(EMSGSIZE, "a netlink message became too long");
  Exchange exchange;
  exchange.attributes.resize(static_cast<size_t>(max_attribute_) + 1);
  exchange.take = &take;
  nl_cb_set(callbacks.get(), NL_CB_VALID, NL_CB_CUSTOM, take_answer, &exchange);
  nl_cb_set(callbacks.get(), NL_CB_ACK, NL_CB_CUSTOM, take_end, &exchange);
  nl_cb_err(callbacks.get(), NL_CB_CUSTOM, take_refusal, &exchange);
  int done = nl_send_auto(socket_.get(), message.get());
  while (done >= 0 && !exchange.done) done = nl_recvmsgs(socket_.get(), callbacks.get());
  if (exchange.refused != 0) {
    const std::string words = errno_text(exchange.refused);
    return make_error(exchange.refused, "{}", exchange.words.empty() ? words : exchange.words + " (" + words + ")");
  }
  if (done < 0) return of_libnl(done);
  return Ok{};
}

Result<GenlEvents> GenlEvents::open(const std::string& name, const std::string& group, int max_attribute) {
  auto socket = connected();
  if (!socket) return std::move(socket).error();
  nl_sock* const raw = socket.value().get();
  const int number = genl_ctrl_resolve_grp(raw, name.c_str(), group.c_str());
  if (number < 0) return make_error(ENOENT, "the kernel has no netlink group \"{}\" of \"{}\"", group, name);
  if (const int failed = nl_socket_add_membership(raw, number); failed < 0) return of_libnl(failed);
  if (const int failed = nl_socket_set_nonblocking(raw); failed < 0) return of_libnl(failed);
  return GenlEvents(std::move(socket).value(), max_attribute);
}

int GenlEvents::fd() const { return nl_socket_get_fd(socket_.get()); }

bool GenlEvents::take(const std::function<void(uint8_t, std::span<nlattr* const>)>& heard) const {
  Callbacks callbacks(nl_cb_alloc(NL_CB_DEFAULT));
  if (!callbacks) return false;
  Heard ear{Attributes(static_cast<size_t>(max_attribute_) + 1), heard};
  // What is said to a group is not numbered.
  nl_cb_set(callbacks.get(), NL_CB_SEQ_CHECK, NL_CB_CUSTOM, take_any, nullptr);
  nl_cb_set(callbacks.get(), NL_CB_VALID, NL_CB_CUSTOM, take_event, &ear);
  for (;;) {
    const int done = nl_recvmsgs(socket_.get(), callbacks.get());
    if (done == -NLE_AGAIN) return true;
    if (done < 0) return false;
  }
}

}  // namespace netblk::attach
