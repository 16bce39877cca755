// SPDX-License-Identifier: GPL-2.0-only
// The server's half against bytes as the protocol's public text lays them out, written down one by one here and not by
// code of ours.
#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <sstream>
#include <string>
#include <vector>

#include "proto/nbd/server_options.h"
#include "proto/nbd/server_requests.h"

namespace netblk::proto {
namespace {

using Bytes = std::vector<std::byte>;

// Hexadecimal words; 'text' in quotes stands for its letters.
Bytes hex(const std::string& words) {
  Bytes bytes;
  std::istringstream in(words);
  for (std::string word; in >> word;) {
    if (word.front() == '\'') {
      for (const char c : word.substr(1, word.size() - 2)) bytes.push_back(static_cast<std::byte>(c));
    } else {
      for (size_t i = 0; i < word.size(); i += 2)
        bytes.push_back(static_cast<std::byte>(std::stoul(word.substr(i, 2), nullptr, 16)));
    }
  }
  return bytes;
}

Bytes taken(NbdOptionReplies& replies) {
  const auto bytes = replies.bytes();
  Bytes copy(bytes.begin(), bytes.end());
  replies.clear();
  return copy;
}

TEST(NbdServerBytes, Greeting) {
  const auto greeting = nbd_greeting();
  EXPECT_EQ(Bytes(greeting.begin(), greeting.end()), hex("'NBDMAGIC' 'IHAVEOPT' 0003"));
}

TEST(NbdServerBytes, Options) {
  NbdOption option;
  EXPECT_EQ(decode_nbd_option(hex("'IHAVEOPT' 00000007 0000000a").data(), option), nullptr);
  EXPECT_EQ(option.type, uint32_t{NBD_OPT_GO});
  EXPECT_EQ(option.length, 10u);
  EXPECT_NE(decode_nbd_option(hex("'IHAVEOPu' 00000007 0000000a").data(), option), nullptr);

  NbdGo go;
  EXPECT_EQ(decode_nbd_go(hex("00000004 'disk' 0002 0003 0001"), go), nullptr);
  EXPECT_EQ(go.name, "disk");
  EXPECT_TRUE(go.wants_name && go.wants_block_size && !go.wants_description);
  NbdContextQuery query;
  const Bytes data = hex("00000000 00000002 00000005 'base:' 0000000f 'base:allocation'");
  EXPECT_EQ(decode_nbd_context_query(data, query), nullptr);
  EXPECT_EQ(query.queries, (std::vector<std::string_view>{"base:", "base:allocation"}));
}

TEST(NbdServerBytes, OptionReplies) {
  const std::string magic = "0003e889045565a9 ";
  NbdOptionReplies replies;
  replies.start(NBD_OPT_LIST);
  replies.server("disk", "big");
  replies.ack();
  EXPECT_EQ(taken(replies), hex(magic + "00000003 00000002 0000000b 00000004 'disk' 'big'" + " " + magic +
                                "00000003 00000001 00000000"));
  replies.start(NBD_OPT_GO);
  replies.info_export(0x10000, 0x0d6d);
  EXPECT_EQ(taken(replies), hex(magic + "00000007 00000003 0000000c 0000 0000000000010000 0d6d"));
  replies.info_text(NBD_INFO_NAME, "disk");
  EXPECT_EQ(taken(replies), hex(magic + "00000007 00000003 00000006 0001 'disk'"));
  replies.info_block_size(1, 4096, 32u << 20);
  EXPECT_EQ(taken(replies), hex(magic + "00000007 00000003 0000000e 0003 00000001 00001000 02000000"));
  replies.start(NBD_OPT_SET_META_CONTEXT);
  replies.context(1, "base:allocation");
  EXPECT_EQ(taken(replies), hex(magic + "0000000a 00000004 00000013 00000001 'base:allocation'"));
  replies.start(99);
  replies.error(NBD_REP_ERR_UNSUP, "no");
  EXPECT_EQ(taken(replies), hex(magic + "00000063 80000001 00000002 'no'"));
  replies.error(NBD_REP_ERR_UNSUP, std::string(5000, 'x'));
  EXPECT_EQ(taken(replies).size(), size_t{NBD_OPTION_REPLY_SIZE} + NBD_MAX_STRING);
  replies.export_reply(0x10000, 0x0d6d, false);
  EXPECT_EQ(taken(replies), hex("0000000000010000 0d6d"));
  replies.export_reply(0x10000, 0x0d6d, true);
  EXPECT_EQ(taken(replies).size(), 134u);
}

TEST(NbdServerBytes, Requests) {
  NbdRequest request;
  const Bytes compact = hex("25609513 0001 0006 0102030405060708 1112131415161718 21222324");
  ASSERT_EQ(compact.size(), nbd_request_size(NbdHeaders::kStructured));
  EXPECT_EQ(decode_nbd_request(compact.data(), NbdHeaders::kStructured, request), nullptr);
  EXPECT_EQ(request.flags, NBD_CMD_FLAG_FUA);
  EXPECT_EQ(request.type, uint16_t{NBD_CMD_WRITE_ZEROES});
  EXPECT_EQ(request.cookie, 0x0102030405060708u);
  EXPECT_EQ(request.offset, 0x1112131415161718u);
  EXPECT_EQ(request.length, 0x21222324u);
  EXPECT_EQ(nbd_payload_bytes(request, NbdHeaders::kSimple), 0u);
  const Bytes extended = hex("21e41c71 0020 0007 0102030405060708 1112131415161718 2122232425262728");
  ASSERT_EQ(extended.size(), nbd_request_size(NbdHeaders::kExtended));
  EXPECT_EQ(decode_nbd_request(extended.data(), NbdHeaders::kExtended, request), nullptr);
  EXPECT_EQ(request.type, uint16_t{NBD_CMD_BLOCK_STATUS});
  EXPECT_EQ(request.length, 0x2122232425262728u);
  EXPECT_EQ(nbd_payload_bytes(request, NbdHeaders::kExtended), request.length);
  EXPECT_NE(decode_nbd_request(compact.data(), NbdHeaders::kExtended, request), nullptr);
  EXPECT_NE(decode_nbd_request(extended.data(), NbdHeaders::kSimple, request), nullptr);

  uint64_t length = 0;
  const uint32_t selected[] = {1, 3};
  std::vector<uint32_t> asked;
  EXPECT_EQ(decode_nbd_status_payload(hex("0000000100000000 00000001"), selected, length, asked), nullptr);
  EXPECT_EQ(length, 0x100000000u);
  EXPECT_EQ(asked, std::vector<uint32_t>{1});
  EXPECT_EQ(decode_nbd_status_payload(hex("0000000000000001 00000003 00000001"), selected, length, asked), nullptr);
  EXPECT_EQ(length, 1u);
  EXPECT_EQ(asked, (std::vector<uint32_t>{3, 1}));
  for (const char* wrong : {"0000000100000000 00000002", "0000000100000000 00000001 00000001", "0000000100000000 00000001 0000",
                            "0000000100000000 00000001 00000003 00000001", "0000000100000000", "00000001"})
    EXPECT_NE(decode_nbd_status_payload(hex(wrong), selected, length, asked), nullptr) << wrong;
}

TEST(NbdServerBytes, Replies) {
  const NbdAnswered asked{0x0102030405060708, 0x4000};
  std::array<std::byte, kNbdHoleBytes> to;
  const auto written = [&](size_t bytes) { return Bytes(to.begin(), to.begin() + static_cast<ptrdiff_t>(bytes)); };
  const std::string cookie = " 0102030405060708 ";

  EXPECT_EQ(written(nbd_reply_done(NbdHeaders::kSimple, asked, to.data())), hex("67446698 00000000" + cookie));
  EXPECT_EQ(written(nbd_reply_done(NbdHeaders::kStructured, asked, to.data())), hex("67446698 00000000" + cookie));
  EXPECT_EQ(written(nbd_reply_done(NbdHeaders::kExtended, asked, to.data())),
            hex("6e8a278c 0001 0000" + cookie + "0000000000004000 0000000000000000"));

  EXPECT_EQ(written(nbd_reply_error(NbdHeaders::kSimple, asked, NBD_EIO, "bad", to.data())),
            hex("67446698 00000005" + cookie));
  EXPECT_EQ(written(nbd_reply_error(NbdHeaders::kStructured, asked, NBD_EIO, "bad", to.data())),
            hex("668e33ef 0001 8001" + cookie + "00000009 00000005 0003"));
  EXPECT_EQ(written(nbd_reply_error(NbdHeaders::kExtended, asked, NBD_EIO, "bad", to.data())),
            hex("6e8a278c 0001 8001" + cookie + "0000000000004000 0000000000000009 00000005 0003"));

  EXPECT_EQ(written(nbd_reply_data(NbdHeaders::kSimple, asked, 0x4000, 512, true, to.data())),
            hex("67446698 00000000" + cookie));
  EXPECT_EQ(written(nbd_reply_data(NbdHeaders::kStructured, asked, 0x4200, 512, false, to.data())),
            hex("668e33ef 0000 0001" + cookie + "00000208 0000000000004200"));
  EXPECT_EQ(written(nbd_reply_data(NbdHeaders::kExtended, asked, 0x4200, 512, true, to.data())),
            hex("6e8a278c 0001 0001" + cookie + "0000000000004000 0000000000000208 0000000000004200"));

  EXPECT_EQ(written(nbd_reply_hole(NbdHeaders::kStructured, asked, 0x4200, 512, true, to.data())),
            hex("668e33ef 0001 0002" + cookie + "0000000c 0000000000004200 00000200"));
  EXPECT_EQ(written(nbd_reply_hole(NbdHeaders::kExtended, asked, 0x4200, 512, true, to.data())),
            hex("6e8a278c 0001 0002" + cookie + "0000000000004000 000000000000000c 0000000000004200 00000200"));

  EXPECT_EQ(written(nbd_reply_status(NbdHeaders::kStructured, asked, 1, 2, true, to.data())),
            hex("668e33ef 0001 0005" + cookie + "00000014 00000001"));
  EXPECT_EQ(written(nbd_reply_status(NbdHeaders::kExtended, asked, 1, 2, true, to.data())),
            hex("6e8a278c 0001 0006" + cookie + "0000000000004000 0000000000000028 00000001 00000002"));
  nbd_put_extent(NbdHeaders::kStructured, 0x1000, 3, to.data());
  EXPECT_EQ(written(NBD_EXTENT_SIZE), hex("00001000 00000003"));
  nbd_put_extent(NbdHeaders::kExtended, 0x100001000, 3, to.data());
  EXPECT_EQ(written(NBD_EXTENDED_EXTENT_SIZE), hex("0000000100001000 0000000000000003"));
}

TEST(NbdServerBytes, Errors) {
  for (const auto& [error, wanted] : {std::pair{0, 0}, {EPERM, 1}, {EROFS, 1}, {EIO, 5}, {ENOMEM, 12}, {EINVAL, 22},
                                      {ENOSPC, 28}, {EDQUOT, 28}, {EFBIG, 28}, {EOVERFLOW, 75}, {EOPNOTSUPP, 95},
                                      {ESHUTDOWN, 108}, {ENODEV, 5}, {12345, 5}})
    EXPECT_EQ(nbd_error(error), static_cast<uint32_t>(wanted)) << error;
}

}  // namespace
}  // namespace netblk::proto
