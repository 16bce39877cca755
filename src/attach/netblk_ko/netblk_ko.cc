// SPDX-License-Identifier: GPL-2.0-only
#include "attach/netblk_ko/netblk_ko.h"

#include <netlink/attr.h>
#include <netlink/genl/ctrl.h>
#include <netlink/genl/genl.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
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

std::string text_of(nlattr* attribute) { return attribute != nullptr ? nla_get_string(attribute) : std::string(); }
uint32_t u32_of(nlattr* attribute) { return attribute != nullptr ? nla_get_u32(attribute) : 0; }
uint64_t u64_of(nlattr* attribute) { return attribute != nullptr ? nla_get_u64(attribute) : 0; }

std::optional<KoDevice> device_of(nl_msg* message) {
  std::array<nlattr*, NETBLK_A_MAX + 1> a{};
  if (genlmsg_parse(nlmsg_hdr(message), 0, a.data(), NETBLK_A_MAX, nullptr) < 0) return std::nullopt;
  if (a[NETBLK_A_NUMBER] == nullptr || a[NETBLK_A_NAME] == nullptr) return std::nullopt;
  KoDevice device;
  device.number = nla_get_u32(a[NETBLK_A_NUMBER]);
  device.name = text_of(a[NETBLK_A_NAME]);
  device.state = text_of(a[NETBLK_A_STATE]);
  device.why = text_of(a[NETBLK_A_WHY]);
  device.error = a[NETBLK_A_ERROR] != nullptr ? -nla_get_s32(a[NETBLK_A_ERROR]) : 0;
  device.protocol = u32_of(a[NETBLK_A_PROTOCOL]);
  device.size_bytes = u64_of(a[NETBLK_A_SIZE_BYTES]);
  device.reconnects = u64_of(a[NETBLK_A_RECONNECTS]);
  device.handed_over = a[NETBLK_A_HANDED_OVER] != nullptr;
  device.lost = a[NETBLK_A_LOST] != nullptr;
  return device;
}

// What one request brought.
struct Exchange {
  std::vector<KoDevice> devices;
  int refused = 0;  // errno of the kernel's refusal
  std::string words;
  bool done = false;
};

int take_device(nl_msg* message, void* argument) {
  if (auto device = device_of(message)) static_cast<Exchange*>(argument)->devices.push_back(std::move(*device));
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

int any_sequence(nl_msg*, void*) { return NL_OK; }

void put_id(nl_msg* message, int attribute, const Id& id) {
  // the room of a message is checked once, at its end
  (void)nla_put(message, attribute, static_cast<int>(id.bytes.size()), id.bytes.data());
}

}  // namespace

struct NetblkKo::Sockets {
  Socket commands, listener;
  int family = 0;

  Result<Exchange> ask(uint8_t command, int flags, const std::function<int(nl_msg*)>& fill) const {
    Message message(nlmsg_alloc());
    if (!message) return make_error(ENOMEM, "no memory for a netlink message");
    if (genlmsg_put(message.get(), NL_AUTO_PORT, NL_AUTO_SEQ, family, 0, flags, command, NETBLK_GENL_VERSION) == nullptr ||
        fill(message.get()) < 0)
      return make_error(EMSGSIZE, "a netlink message became too long");
    Callbacks callbacks(nl_cb_alloc(NL_CB_DEFAULT));
    if (!callbacks) return make_error(ENOMEM, "no memory for a netlink message");
    Exchange exchange;
    nl_cb_set(callbacks.get(), NL_CB_VALID, NL_CB_CUSTOM, take_device, &exchange);
    nl_cb_set(callbacks.get(), NL_CB_FINISH, NL_CB_CUSTOM, take_end, &exchange);
    nl_cb_set(callbacks.get(), NL_CB_ACK, NL_CB_CUSTOM, take_end, &exchange);
    nl_cb_err(callbacks.get(), NL_CB_CUSTOM, take_refusal, &exchange);
    int done = nl_send_auto(commands.get(), message.get());
    while (done >= 0 && !exchange.done) done = nl_recvmsgs(commands.get(), callbacks.get());
    if (exchange.refused != 0) {
      const std::string words = errno_text(exchange.refused);
      return make_error(exchange.refused, "the driver refuses: {}",
                        exchange.words.empty() ? words : exchange.words + " (" + words + ")");
    }
    if (done < 0) return of_libnl(done);
    return exchange;
  }

  Result<KoDevice> ask_for_one(uint8_t command, const std::function<int(nl_msg*)>& fill) const {
    auto answer = ask(command, NLM_F_REQUEST | NLM_F_ACK, fill);
    if (!answer) return std::move(answer).error();
    if (answer.value().devices.size() != 1) return make_error(EPROTO, "the driver's answer names no device");
    return std::move(answer.value().devices.front());
  }
};

NetblkKo::NetblkKo(std::unique_ptr<Sockets> sockets) : sockets_(std::move(sockets)) {}
NetblkKo::NetblkKo(NetblkKo&&) noexcept = default;
NetblkKo& NetblkKo::operator=(NetblkKo&&) noexcept = default;
NetblkKo::~NetblkKo() = default;

Result<NetblkKo> NetblkKo::open() {
  auto sockets = std::make_unique<Sockets>();
  sockets->commands.reset(nl_socket_alloc());
  if (!sockets->commands) return make_error(ENOMEM, "no memory for a netlink socket");
  if (const int failed = genl_connect(sockets->commands.get()); failed < 0) return of_libnl(failed);
  const int on = 1;
  const int fd = nl_socket_get_fd(sockets->commands.get());
  (void)::setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &on, sizeof on);
  (void)::setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &on, sizeof on);
  sockets->family = genl_ctrl_resolve(sockets->commands.get(), NETBLK_GENL_NAME);
  if (sockets->family < 0)
    return make_error(ENOENT, "the kernel has no netlink family \"{}\": the driver is not loaded", NETBLK_GENL_NAME);
  return NetblkKo(std::move(sockets));
}

Result<KoDevice> NetblkKo::add(const std::string& options) {
  return sockets_->ask_for_one(NETBLK_GENL_ADD, [&](nl_msg* message) {
    return nla_put_string(message, NETBLK_A_OPTIONS, options.c_str());
  });
}

Status NetblkKo::remove(uint32_t number) {
  auto answer = sockets_->ask(NETBLK_GENL_REMOVE, NLM_F_REQUEST | NLM_F_ACK,
                              [&](nl_msg* message) { return nla_put_u32(message, NETBLK_A_NUMBER, number); });
  if (!answer) return std::move(answer).error();
  return Ok{};
}

Status NetblkKo::disconnect(uint32_t number) {
  auto answer = sockets_->ask(NETBLK_GENL_DISCONNECT, NLM_F_REQUEST | NLM_F_ACK,
                              [&](nl_msg* message) { return nla_put_u32(message, NETBLK_A_NUMBER, number); });
  if (!answer) return std::move(answer).error();
  return Ok{};
}

Result<KoDevice> NetblkKo::status(uint32_t number) {
  return sockets_->ask_for_one(NETBLK_GENL_STATUS, [&](nl_msg* message) {
    return nla_put_u32(message, NETBLK_A_NUMBER, number);
  });
}

Result<std::vector<KoDevice>> NetblkKo::devices() {
  auto answer = sockets_->ask(NETBLK_GENL_STATUS, NLM_F_REQUEST | NLM_F_DUMP, [](nl_msg*) { return 0; });
  if (!answer) return std::move(answer).error();
  return std::move(answer.value().devices);
}

Result<KoDevice> NetblkKo::hand_over(uint32_t number, const KoSession& session) {
  return sockets_->ask_for_one(NETBLK_GENL_CONNECT, [&](nl_msg* message) {
    nla_put_u32(message, NETBLK_A_NUMBER, number);
    nla_put_u32(message, NETBLK_A_PROTOCOL, 2);
    nla_put_u64(message, NETBLK_A_SIZE_BYTES, session.size_bytes);
    nla_put_u32(message, NETBLK_A_BLOCK_BYTES, session.block_bytes);
    nla_put_u32(message, NETBLK_A_PREFERRED_BYTES, session.preferred_bytes);
    nla_put_u32(message, NETBLK_A_MAX_PAYLOAD_BYTES, session.max_payload_bytes);
    nla_put_u32(message, NETBLK_A_SLOTS, session.slots);
    nla_put_u32(message, NETBLK_A_FLAGS, session.welcome_flags);
    nla_put_u32(message, NETBLK_A_FEATURES, session.features);
    if (session.heartbeat_ms != 0) nla_put_u32(message, NETBLK_A_HEARTBEAT_MS, session.heartbeat_ms);
    put_id(message, NETBLK_A_SESSION_ID, session.session_id);
    put_id(message, NETBLK_A_CLIENT_ID, session.client_id);
    put_id(message, NETBLK_A_STORE_UUID, session.store_uuid);
    nla_put_u64(message, NETBLK_A_GENERATION, session.generation);
    nlattr* const sockets = nla_nest_start(message, NETBLK_A_SOCKETS);
    if (sockets == nullptr) return -NLE_NOMEM;
    for (const KoConnection& connection : session.connections) {
      nlattr* const socket = nla_nest_start(message, NETBLK_A_SOCKET);
      if (socket == nullptr || nla_put_s32(message, NETBLK_A_FD, connection.fd) < 0 ||
          nla_put_u64(message, NETBLK_A_EPOCH, connection.epoch) < 0)
        return -NLE_NOMEM;
      nla_nest_end(message, socket);
    }
    nla_nest_end(message, sockets);
    return 0;
  });
}

Result<KoDevice> NetblkKo::hand_over1(uint32_t number, int fd, std::optional<uint64_t> size_bytes) {
  return sockets_->ask_for_one(NETBLK_GENL_CONNECT, [&](nl_msg* message) {
    nla_put_u32(message, NETBLK_A_NUMBER, number);
    nla_put_u32(message, NETBLK_A_PROTOCOL, 1);
    if (size_bytes) nla_put_u64(message, NETBLK_A_SIZE_BYTES, *size_bytes);
    nlattr* const sockets = nla_nest_start(message, NETBLK_A_SOCKETS);
    nlattr* const socket = sockets != nullptr ? nla_nest_start(message, NETBLK_A_SOCKET) : nullptr;
    if (socket == nullptr || nla_put_s32(message, NETBLK_A_FD, fd) < 0) return -NLE_NOMEM;
    nla_nest_end(message, socket);
    nla_nest_end(message, sockets);
    return 0;
  });
}

Status NetblkKo::listen() {
  Socket listener(nl_socket_alloc());
  if (!listener) return make_error(ENOMEM, "no memory for a netlink socket");
  nl_socket_disable_seq_check(listener.get());
  if (const int failed = genl_connect(listener.get()); failed < 0) return of_libnl(failed);
  const int group = genl_ctrl_resolve_grp(listener.get(), NETBLK_GENL_NAME, NETBLK_GENL_GROUP);
  if (group < 0) return of_libnl(group);
  if (const int failed = nl_socket_add_membership(listener.get(), group); failed < 0) return of_libnl(failed);
  if (const int failed = nl_socket_set_nonblocking(listener.get()); failed < 0) return of_libnl(failed);
  sockets_->listener = std::move(listener);
  return Ok{};
}

int NetblkKo::event_fd() const { return nl_socket_get_fd(sockets_->listener.get()); }

Result<std::vector<KoDevice>> NetblkKo::events() {
  Callbacks callbacks(nl_cb_alloc(NL_CB_DEFAULT));
  if (!callbacks) return make_error(ENOMEM, "no memory for a netlink message");
  Exchange exchange;
  nl_cb_set(callbacks.get(), NL_CB_VALID, NL_CB_CUSTOM, take_device, &exchange);
  nl_cb_set(callbacks.get(), NL_CB_SEQ_CHECK, NL_CB_CUSTOM, any_sequence, nullptr);
  const int failed = nl_recvmsgs(sockets_->listener.get(), callbacks.get());
  if (failed == -NLE_NOMEM) return make_error(ENOBUFS, "events were missed");
  if (failed < 0 && failed != -NLE_AGAIN) return of_libnl(failed);
  return std::move(exchange.devices);
}

}  // namespace netblk::attach
