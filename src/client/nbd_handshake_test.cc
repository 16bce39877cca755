// SPDX-License-Identifier: GPL-2.0-only
#include "client/nbd_handshake.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <thread>

#include "base/endian.h"
#include "io/backends_test.h"

namespace netblk::client {
namespace {

template <class T>
void put(std::vector<std::byte>& to, T value) {
  to.resize(to.size() + sizeof value);
  store_be(to.data() + to.size() - sizeof value, value);
}

void say(int fd, const std::vector<std::byte>& bytes) {
  ASSERT_EQ(::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
}

std::vector<std::byte> greeting() {
  std::vector<std::byte> bytes;
  put(bytes, uint64_t{NBD_INIT_PASSWD});
  put(bytes, uint64_t{NBD_OPTS_MAGIC});
  put(bytes, uint16_t{NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES});
  return bytes;
}

void add_reply(std::vector<std::byte>& bytes, uint32_t type, const std::vector<std::byte>& data) {
  put(bytes, uint64_t{NBD_OPT_REPLY_MAGIC});
  put(bytes, uint32_t{NBD_OPT_GO});
  put(bytes, type);
  put(bytes, static_cast<uint32_t>(data.size()));
  bytes.insert(bytes.end(), data.begin(), data.end());
}

TEST(NbdHandshakeTest, TheSocketIsReadUpToItsEndAndNoFurther) {
  const test::FdPair pair = test::unix_pair();
  std::vector<std::byte> all = greeting();
  std::vector<std::byte> info;
  put(info, uint16_t{NBD_INFO_EXPORT});
  put(info, uint64_t{1u << 20});
  put(info, uint16_t{NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH});
  add_reply(all, NBD_REP_INFO, info);
  add_reply(all, NBD_REP_ACK, {});
  all.push_back(std::byte{42});  // a reply, say
  say(pair.peer.get(), all);
  const auto found = nbd_handshake(pair.ours.get(), nbd_kernel_wish("disk"));
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(found.value().size_bytes, 1u << 20);
  EXPECT_EQ(found.value().flags, NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH);
  EXPECT_FALSE(found.value().structured);
  std::array<std::byte, 8> rest{};
  ASSERT_EQ(::recv(pair.ours.get(), rest.data(), rest.size(), 0), 1);
  EXPECT_EQ(rest[0], std::byte{42});
}

TEST(NbdHandshakeTest, AServerThatIsSilentOrClosesIsNotWaitedFor) {
  {
    const test::FdPair pair = test::unix_pair();
    say(pair.peer.get(), greeting());
    EXPECT_EQ(nbd_handshake(pair.ours.get(), nbd_kernel_wish("disk"), 50).error().code, ETIMEDOUT);
  }
  test::FdPair pair = test::unix_pair();
  pair.peer.reset();
  EXPECT_EQ(nbd_handshake(pair.ours.get(), nbd_kernel_wish("disk")).error().code, ECONNRESET);
}

TEST(NbdHandshakeTest, ARefusalIsTold) {
  const test::FdPair pair = test::unix_pair();
  std::vector<std::byte> all = greeting();
  add_reply(all, NBD_REP_ERR_UNKNOWN, {});
  say(pair.peer.get(), all);
  EXPECT_EQ(nbd_handshake(pair.ours.get(), nbd_kernel_wish("disk")).error().code, ENOENT);
}

}  // namespace
}  // namespace netblk::client
