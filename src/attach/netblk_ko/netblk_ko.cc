// SPDX-License-Identifier: GPL-2.0-only
#include "attach/netblk_ko/netblk_ko.h"

#include <netlink/attr.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>

#include <array>
#include <cerrno>
#include <functional>
#include <optional>
#include <utility>

#include "protocol/netblk_genl.h"

namespace netblk::attach {
namespace {

struct FreeMessage {
  void operator()(nl_msg* message) const { nlmsg_free(message); }
};
struct FreeSocket {
  void operator()(nl_sock* socket) const { nl_socket_free(socket); }
};
struct PutCallbacks {
  void operator()(nl_cb* callbacks) const { nl_cb_put(callbacks); }
};
using Message = std::unique_ptr<nl_msg, FreeMessage>;
using Socket = std::unique_ptr<nl_sock, FreeSocket>;
using Callbacks = std::unique_ptr<nl_cb, PutCallbacks>;

// libnl's errors are its own numbers; those that a kernel sent come through Exchange::refused.
Error of_libnl(int error) {
  const int code = -error == NLE_OBJ_NOTFOUND ? ENOENT : -error == NLE_NOMEM ? ENOMEM : EIO;
  return make_error(code, "netlink: {}", nl_geterror(error));
}

// What one request brought.
struct Exchange {
  std::optional<uint32_t> number;  // of the disk in the answer
  int refused = 0;  // errno of the kernel's refusal
  std::string words;
  bool done = false;
};

int take_answer(nl_msg* message, void* argument) {
  std::array<nlattr*, NETBLK_A_MAX + 1> attributes{};
  if (genlmsg_parse(nlmsg_hdr(message), 0, attributes.data(), NETBLK_A_MAX, nullptr) == 0 &&
      attributes[NETBLK_A_NUMBER] != nullptr)
    static_cast<Exchange*>(argument)->number = nla_get_u32(attributes[NETBLK_A_NUMBER]);
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
  const size_t skipped = sizeof *error + ((header->nlmsg_flags & NLM_F_CAPPED) != 0
                                              ? 0
                                              : error->msg.nlmsg_len - static_cast<uint32_t>(NLMSG_HDRLEN));
  const size_t length = header->nlmsg_len - static_cast<uint32_t>(NLMSG_HDRLEN);
  if (skipped >= length) return NL_STOP;
  auto* first = reinterpret_cast<nlattr*>(reinterpret_cast<char*>(error) + skipped);
  nlattr* words = nla_find(first, static_cast<int>(length - skipped), NLMSGERR_ATTR_MSG);
  if (words != nullptr) exchange->words = nla_get_string(words);
  return NL_STOP;
}

}  // namespace

struct NetblkKo::Family {
  Socket socket;
  int number = 0;

  Result<Exchange> ask(uint8_t command, const std::function<int(nl_msg*)>& fill) const {
    Message message(nlmsg_alloc());
    Callbacks callbacks(nl_cb_alloc(NL_CB_DEFAULT));
    if (!message || !callbacks) return make_error(ENOMEM, "no memory for a netlink message");
    if (genlmsg_put(message.get(), NL_AUTO_PORT, NL_AUTO_SEQ, number, 0, NLM_F_REQUEST | NLM_F_ACK, command,
                    NETBLK_GENL_VERSION) == nullptr ||
        fill(message.get()) < 0)
      return make_error(EMSGSIZE, "a netlink message became too long");
    Exchange exchange;
    nl_cb_set(callbacks.get(), NL_CB_VALID, NL_CB_CUSTOM, take_answer, &exchange);
    nl_cb_set(callbacks.get(), NL_CB_ACK, NL_CB_CUSTOM, take_end, &exchange);
    nl_cb_err(callbacks.get(), NL_CB_CUSTOM, take_refusal, &exchange);
    int done = nl_send_auto(socket.get(), message.get());
    while (done >= 0 && !exchange.done) done = nl_recvmsgs(socket.get(), callbacks.get());
    if (exchange.refused != 0) {
      const std::string words = errno_text(exchange.refused);
      return make_error(exchange.refused, "the driver refuses: {}",
                        exchange.words.empty() ? words : exchange.words + " (" + words + ")");
    }
    if (done < 0) return of_libnl(done);
    return exchange;
  }
};

NetblkKo::NetblkKo(std::unique_ptr<Family> family) : family_(std::move(family)) {}
NetblkKo::NetblkKo(NetblkKo&&) noexcept = default;
NetblkKo& NetblkKo::operator=(NetblkKo&&) noexcept = default;
NetblkKo::~NetblkKo() = default;

Result<NetblkKo> NetblkKo::open() {
  auto family = std::make_unique<Family>();
  family->socket.reset(nl_socket_alloc());
  if (!family->socket) return make_error(ENOMEM, "no memory for a netlink socket");
  if (const int failed = genl_connect(family->socket.get()); failed < 0) return of_libnl(failed);
  const int on = 1;
  const int fd = nl_socket_get_fd(family->socket.get());
  (void)::setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  (void)::setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
  family->number = genl_ctrl_resolve(family->socket.get(), NETBLK_GENL_NAME);
  if (family->number < 0)
    return make_error(ENOENT, "the kernel has no netlink family \"{}\": the driver is not loaded", NETBLK_GENL_NAME);
  return NetblkKo(std::move(family));
}

Result<uint32_t> NetblkKo::add(const std::string& options) {
  auto answer = family_->ask(NETBLK_GENL_ADD, [&](nl_msg* message) {
    return nla_put_string(message, NETBLK_A_OPTIONS, options.c_str());
  });
  if (!answer) return std::move(answer).error();
  if (!answer.value().number) return make_error(EPROTO, "the driver's answer names no disk");
  return *answer.value().number;
}

Status NetblkKo::remove(uint32_t number) {
  auto answer = family_->ask(NETBLK_GENL_REMOVE,
                             [&](nl_msg* message) { return nla_put_u32(message, NETBLK_A_NUMBER, number); });
  if (!answer) return std::move(answer).error();
  return Ok{};
}

}  // namespace netblk::attach
