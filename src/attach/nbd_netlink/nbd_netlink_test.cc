// SPDX-License-Identifier: GPL-2.0-only
// What goes to the kernel's nbd, byte by byte, and what is made of its answers. The kernel is a netlink socket of this
// process.
#include "attach/nbd_netlink/nbd_netlink.h"

#include <gtest/gtest.h>
#include <linux/genetlink.h>
#include <linux/nbd-netlink.h>
#include <linux/netlink.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <thread>
#include <vector>

namespace netblk::attach {
namespace {

constexpr int kFamily = 33;

// Integers as this machine has them, as netlink does; attributes are padded to four bytes.
struct Bytes : std::vector<uint8_t> {
  template <class T>
  Bytes& put(T value) {
    resize(size() + sizeof value);
    std::memcpy(data() + size() - sizeof value, &value, sizeof value);
    return *this;
  }
  Bytes& more(const Bytes& bytes) {
    insert(end(), bytes.begin(), bytes.end());
    return *this;
  }
  Bytes& raw(uint16_t type, const Bytes& payload) {
    put(static_cast<uint16_t>(4 + payload.size())).put(type).more(payload);
    resize((size() + 3) / 4 * 4);
    return *this;
  }
  Bytes& u32(uint16_t type, uint32_t value) { return raw(type, Bytes().put(value)); }
  Bytes& u64(uint16_t type, uint64_t value) { return raw(type, Bytes().put(value)); }
  Bytes& text(uint16_t type, const char* words) {
    Bytes payload;
    payload.insert(payload.end(), words, words + std::strlen(words) + 1);
    return raw(type, payload);
  }
  Bytes& nest(uint16_t type, const Bytes& inside) { return raw(static_cast<uint16_t>(type | NLA_F_NESTED), inside); }
};

Bytes command(uint8_t number, const Bytes& attributes) {
  return Bytes().put(genlmsghdr{.cmd = number, .version = NBD_GENL_VERSION, .reserved = 0}).more(attributes);
}

class FakeKernel {
 public:
  FakeKernel() : fd_(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_USERSOCK)) {
    sockaddr_nl own{};
    own.nl_family = AF_NETLINK;
    socklen_t length = sizeof own;
    EXPECT_EQ(::bind(fd_, reinterpret_cast<const sockaddr*>(&own), sizeof own), 0);
    EXPECT_EQ(::getsockname(fd_, reinterpret_cast<sockaddr*>(&own), &length), 0);
    port_ = own.nl_pid;
  }
  ~FakeKernel() { ::close(fd_); }
  FakeKernel(const FakeKernel&) = delete;
  FakeKernel& operator=(const FakeKernel&) = delete;

  NetlinkSocket client() {
    NetlinkSocket socket(nl_socket_alloc());
    EXPECT_EQ(nl_connect(socket.get(), NETLINK_USERSOCK), 0);
    nl_socket_set_peer_port(socket.get(), port_);
    client_port_ = nl_socket_get_local_port(socket.get());
    return socket;
  }
  NbdNetlink nbd() { return NbdNetlink(Genl(client(), kFamily, NBD_GENL_VERSION, NBD_ATTR_MAX)); }

  void say(uint16_t type, uint16_t flags, const Bytes& payload) {
    const nlmsghdr header{.nlmsg_len = static_cast<uint32_t>(sizeof(nlmsghdr) + payload.size()), .nlmsg_type = type,
                          .nlmsg_flags = flags, .nlmsg_seq = heard_.nlmsg_seq, .nlmsg_pid = client_port_};
    const Bytes message = Bytes().put(header).more(payload);
    sockaddr_nl to{};
    to.nl_family = AF_NETLINK;
    to.nl_pid = client_port_;
    EXPECT_EQ(::sendto(fd_, message.data(), message.size(), 0, reinterpret_cast<const sockaddr*>(&to), sizeof to),
              static_cast<ssize_t>(message.size()));
  }
  void answer(const Bytes& attributes, uint8_t number = NBD_CMD_CONNECT) { say(kFamily, 0, command(number, attributes)); }
  // 0: an acknowledgement. Without the refused message behind it, but its header.
  void end(int error, const Bytes& extended = {}, uint16_t flags = NLM_F_CAPPED) {
    say(NLMSG_ERROR, static_cast<uint16_t>(flags | (extended.empty() ? 0 : NLM_F_ACK_TLVS)),
        Bytes().put(nlmsgerr{.error = -error, .msg = heard_}).more(extended));
  }

  Bytes hear() {
    Bytes heard;
    std::array<uint8_t, 8192> buffer{};
    const ssize_t got = ::recv(fd_, buffer.data(), buffer.size(), 0);
    if (got >= static_cast<ssize_t>(sizeof heard_)) {
      std::memcpy(&heard_, buffer.data(), sizeof heard_);
      heard.insert(heard.end(), buffer.begin() + sizeof heard_, buffer.begin() + got);
    }
    return heard;
  }

  // `act` asks; the kernel hears it and does `then`. What was heard behind netlink's own header.
  template <class Act, class Then>
  Bytes while_asked(Act act, Then then, int asked = 1) {
    Bytes heard;
    std::thread kernel([&] {
      heard = hear();
      then();
    });
    act();
    kernel.join();
    EXPECT_EQ(heard_.nlmsg_type, kFamily);
    EXPECT_EQ(heard_.nlmsg_flags, NLM_F_REQUEST | NLM_F_ACK);
    if (asked == 1) {
      EXPECT_EQ(heard_.nlmsg_len, sizeof heard_ + heard.size());
    }
    return heard;
  }

 private:
  const int fd_;
  uint32_t port_ = 0, client_port_ = 0;
  nlmsghdr heard_{};
};

const NbdSetup kSetup{.number = 3, .size_bytes = uint64_t{5} << 32, .block_bytes = 4096, .timeout_s = 10,
                      .dead_conn_timeout_s = 120, .server_flags = 0x1ed, .backend = "netblk"};

Bytes setup_attributes() {
  return Bytes().u64(NBD_ATTR_SIZE_BYTES, uint64_t{5} << 32).u64(NBD_ATTR_BLOCK_SIZE_BYTES, 4096).u64(NBD_ATTR_TIMEOUT, 10)
      .u64(NBD_ATTR_DEAD_CONN_TIMEOUT, 120).u64(NBD_ATTR_SERVER_FLAGS, 0x1ed).u64(NBD_ATTR_CLIENT_FLAGS, 0);
}
Bytes sockets(const std::vector<uint32_t>& numbers) {
  Bytes items;
  for (const uint32_t number : numbers) items.nest(NBD_SOCK_ITEM, Bytes().u32(NBD_SOCK_FD, number));
  return Bytes().nest(NBD_ATTR_SOCKETS, items);
}

TEST(NbdNetlinkTest, Connect) {
  FakeKernel kernel;
  NbdNetlink nbd = kernel.nbd();
  const std::array<int, 2> fds = {7, 260};
  const Bytes heard = kernel.while_asked(
      [&] {
        const auto number = nbd.connect(kSetup, fds);
        ASSERT_TRUE(number) << number.error().message;
        EXPECT_EQ(number.value(), 3u);
      },
      [&] {
        kernel.answer(Bytes().u32(NBD_ATTR_INDEX, 3));
        kernel.end(0);
      });
  EXPECT_EQ(heard, command(NBD_CMD_CONNECT, setup_attributes().u32(NBD_ATTR_INDEX, 3)
                                                .text(NBD_ATTR_BACKEND_IDENTIFIER, "netblk").more(sockets({7, 260}))));
}

TEST(NbdNetlinkTest, ConnectWhereTheKernelPicks) {
  FakeKernel kernel;
  NbdNetlink nbd = kernel.nbd();
  NbdSetup setup = kSetup;
  setup.number.reset();
  const int fd = 9;
  const Bytes heard = kernel.while_asked([&] { EXPECT_EQ(nbd.connect(setup, std::span(&fd, 1)).value(), 15u); },
                                         [&] {
                                           kernel.answer(Bytes().u32(NBD_ATTR_INDEX, 15));
                                           kernel.end(0);
                                         });
  EXPECT_EQ(heard, command(NBD_CMD_CONNECT,
                           setup_attributes().text(NBD_ATTR_BACKEND_IDENTIFIER, "netblk").more(sockets({9}))));
}

TEST(NbdNetlinkTest, ReplaceDisconnectAndAsk) {
  FakeKernel kernel;
  NbdNetlink nbd = kernel.nbd();
  const Bytes who = Bytes().u32(NBD_ATTR_INDEX, 4).text(NBD_ATTR_BACKEND_IDENTIFIER, "mine");
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  Bytes heard = kernel.while_asked([&] { EXPECT_FALSE(nbd.replace_dead(4, "mine", fd, false).value()) << "the kernel left it alone"; },
                                   [&] { kernel.end(0); });
  EXPECT_EQ(heard, command(NBD_CMD_RECONFIGURE, Bytes(who).more(sockets({static_cast<uint32_t>(fd)}))));
  kernel.while_asked([&] { EXPECT_TRUE(nbd.replace_dead(4, "mine", fd, false).value()); },
                     [&] {
                       const timeval taken{.tv_sec = 10, .tv_usec = 0};  // as the kernel does
                       EXPECT_EQ(::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &taken, sizeof taken), 0);
                       kernel.end(0);
                     });
  kernel.while_asked([&] { EXPECT_EQ(nbd.replace_dead(4, "mine", fd, false).error().code, EINVAL); }, [&] { kernel.end(EINVAL); });
  ::close(fd);
  heard = kernel.while_asked([&] { EXPECT_TRUE(nbd.resize(4, "mine", uint64_t{7} << 33)); }, [&] { kernel.end(0); });
  EXPECT_EQ(heard, command(NBD_CMD_RECONFIGURE, Bytes(who).u64(NBD_ATTR_SIZE_BYTES, uint64_t{7} << 33)));
  kernel.while_asked([&] { EXPECT_EQ(nbd.resize(4, "mine", 512).error().code, EINVAL); }, [&] { kernel.end(EINVAL); });
  heard = kernel.while_asked([&] { EXPECT_TRUE(nbd.is_ours(4, "mine").value()); }, [&] { kernel.end(0); });
  EXPECT_EQ(heard, command(NBD_CMD_RECONFIGURE, who));
  kernel.while_asked([&] { EXPECT_FALSE(nbd.is_ours(4, "mine").value()); }, [&] { kernel.end(EINVAL); });
  kernel.while_asked([&] { EXPECT_EQ(nbd.is_ours(4, "mine").error().code, EPERM); }, [&] { kernel.end(EPERM); });
  heard = kernel.while_asked([&] { EXPECT_TRUE(nbd.disconnect(4)); }, [&] { kernel.end(0); });
  EXPECT_EQ(heard, command(NBD_CMD_DISCONNECT, Bytes().u32(NBD_ATTR_INDEX, 4)));
  kernel.while_asked([&] { EXPECT_EQ(nbd.disconnect(4).error().code, EPERM); }, [&] { kernel.end(EPERM); });
}

// A disk without a time-out has one for the moment, and neither it nor its socket keeps it.
TEST(NbdNetlinkTest, ReplaceWhereThereIsNoTimeOut) {
  FakeKernel kernel;
  NbdNetlink nbd = kernel.nbd();
  const Bytes who = Bytes().u32(NBD_ATTR_INDEX, 4).text(NBD_ATTR_BACKEND_IDENTIFIER, "mine");
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  for (const bool taken : {true, false}) {
    Bytes last;
    const Bytes first = kernel.while_asked([&] { EXPECT_EQ(nbd.replace_dead(4, "mine", fd, true).value(), taken); },
                                           [&] {
                                             const timeval limit{.tv_sec = 30, .tv_usec = 0};
                                             if (taken) (void)::setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
                                             kernel.end(0);
                                             last = kernel.hear();
                                             kernel.end(0);
                                           },
                                           2);
    EXPECT_EQ(first, command(NBD_CMD_RECONFIGURE,
                             Bytes(who).u64(NBD_ATTR_TIMEOUT, 30).more(sockets({static_cast<uint32_t>(fd)}))));
    EXPECT_EQ(last, command(NBD_CMD_RECONFIGURE, Bytes(who).u64(NBD_ATTR_TIMEOUT, 0)));
    timeval left{};
    socklen_t length = sizeof left;
    EXPECT_EQ(::getsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &left, &length), 0);
    EXPECT_EQ(left.tv_sec, 0);
  }
  ::close(fd);
}

TEST(NbdNetlinkTest, AnswersThatMakeNoSense) {
  FakeKernel kernel;
  NbdNetlink nbd = kernel.nbd();
  const auto refused = [&](const Bytes& attributes) {
    Error error{0, {}};
    kernel.while_asked(
        [&] {
          const auto number = nbd.connect(kSetup, {});
          EXPECT_FALSE(number);
          if (!number) error = number.error();
        },
        [&] {
          kernel.answer(attributes);
          kernel.end(0);
        });
    return error.code;
  };
  EXPECT_EQ(refused({}), EPROTO) << "no number";
  EXPECT_EQ(refused(Bytes().raw(NBD_ATTR_INDEX, {})), EPROTO) << "an empty one";
  EXPECT_EQ(refused(Bytes().raw(NBD_ATTR_INDEX, Bytes().put(uint16_t{1}))), EPROTO) << "half a one";
  EXPECT_EQ(refused(Bytes().u32(NBD_ATTR_MAX + 5, 1)), EPROTO) << "an attribute that nobody knows";
  EXPECT_EQ(refused(Bytes().put(uint16_t{200}).put(uint16_t{NBD_ATTR_INDEX}).put(uint32_t{3})), EPROTO) << "longer than the message";
  EXPECT_EQ(refused(Bytes().put(uint16_t{3}).put(uint16_t{NBD_ATTR_INDEX})), EPROTO) << "shorter than its header";
}

TEST(NbdNetlinkTest, TheKernelsWordsAreTold) {
  FakeKernel kernel;
  NbdNetlink nbd = kernel.nbd();
  const auto message = [&](int code, const Bytes& extended, uint16_t flags = NLM_F_CAPPED) {
    std::string words;
    kernel.while_asked(
        [&] {
          const auto number = nbd.connect(kSetup, {});
          EXPECT_FALSE(number);
          if (number) return;
          EXPECT_EQ(number.error().code, code);
          words = number.error().message;
        },
        [&] { kernel.end(code, extended, flags); });
    return words;
  };
  EXPECT_NE(message(EBUSY, {}).find("/dev/nbd3"), std::string::npos);
  EXPECT_NE(message(EINVAL, Bytes().text(NLMSGERR_ATTR_MSG, "no such thing")).find("no such thing"), std::string::npos);
  const Bytes endless = Bytes().raw(NLMSGERR_ATTR_MSG, Bytes().put(uint32_t{0x41414141}));
  EXPECT_NE(message(EINVAL, endless).find("AAAA ("), std::string::npos) << "a text without its end";
  EXPECT_FALSE(message(EINVAL, Bytes().put(uint16_t{900}).put(uint16_t{NLMSGERR_ATTR_MSG})).empty()) << "longer than the message";
  EXPECT_FALSE(message(EINVAL, Bytes().put(uint32_t{0}), 0).empty()) << "the refused message is not behind its header";
}

TEST(NbdNetlinkTest, EventsOfThisDiskAndOfOthers) {
  FakeKernel kernel;
  NetlinkSocket socket = kernel.client();
  ASSERT_EQ(nl_socket_set_nonblocking(socket.get()), 0);
  const NbdEvents events(GenlEvents(std::move(socket), NBD_ATTR_MAX));
  EXPECT_FALSE(events.link_died(3)) << "nothing was said";
  kernel.answer(Bytes().u32(NBD_ATTR_INDEX, 4), NBD_CMD_LINK_DEAD);
  kernel.answer(Bytes().u32(NBD_ATTR_INDEX, 3), NBD_CMD_STATUS);
  kernel.answer({}, NBD_CMD_LINK_DEAD);
  kernel.answer(Bytes().raw(NBD_ATTR_INDEX, Bytes().put(uint16_t{3})), NBD_CMD_LINK_DEAD);
  EXPECT_FALSE(events.link_died(3)) << "another disk, another word, no number, half a number";
  kernel.answer(Bytes().u32(NBD_ATTR_INDEX, 4), NBD_CMD_LINK_DEAD);
  kernel.answer(Bytes().u32(NBD_ATTR_INDEX, 3), NBD_CMD_LINK_DEAD);
  EXPECT_TRUE(events.link_died(3));
  EXPECT_FALSE(events.link_died(3)) << "it was told";
}

TEST(NbdNetlinkTest, NamesOfNodes) {
  EXPECT_EQ(nbd_node(0), "/dev/nbd0");
  EXPECT_EQ(nbd_number("/dev/nbd17"), 17u);
  for (const char* bad : {"/dev/nbd", "/dev/nbd1p1", "/dev/nbd01", "/dev/nbd-1", "/dev/nbd1048576", "nbd1", "/dev/nbd 1", ""})
    EXPECT_FALSE(nbd_number(bad)) << bad;
}

}  // namespace
}  // namespace netblk::attach
