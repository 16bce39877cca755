// SPDX-License-Identifier: GPL-2.0-only
#include "base/parse.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>

#include "base/limits.h"

namespace netblk {
namespace {

constexpr uint64_t kMax64 = std::numeric_limits<uint64_t>::max();

TEST(ParseUnsigned, TakesWholeDecimalNumbersInRange) {
  struct Row {
    const char* text;
    uint64_t minimum, maximum, value;
  };
  for (const Row& row : {Row{"0", 0, 0, 0}, Row{"1", 1, 1, 1}, Row{"10809", 1, 65535, 10809},
                         Row{"65535", 1, 65535, 65535}, Row{"007", 0, 10, 7},
                         Row{"18446744073709551615", 0, kMax64, kMax64}}) {
    EXPECT_EQ(parse_unsigned(row.text, row.minimum, row.maximum), row.value) << row.text;
  }
}

TEST(ParseUnsigned, RefusesEverythingElse) {
  for (const char* text : {"", " ", "-1", "+1", " 1", "1 ", "1\n", "0x10", "1e3", "1.0", "1_000", "abc", "1a", "--",
                           "٣", "18446744073709551616", "99999999999999999999999999"}) {
    EXPECT_FALSE(parse_unsigned(text, 0, kMax64)) << '"' << text << '"';
  }
}

TEST(ParseUnsigned, RefusesWhatIsOutOfRange) {
  EXPECT_FALSE(parse_unsigned("0", 1, 65535));
  EXPECT_FALSE(parse_unsigned("65536", 1, 65535));
  EXPECT_FALSE(parse_unsigned("4294967297", 0, 65535));  // 1 when cut to 32 bits
}

TEST(ParseUnsigned, StopsAtTheEndOfTheView) {
  const std::string_view longer = "123456";
  EXPECT_EQ(parse_unsigned(longer.substr(0, 3), 0, 1000), 123u);
  EXPECT_FALSE(parse_unsigned(std::string_view("1\0", 2), 0, 1000));
}

TEST(ParseSize, TakesBytesAndPowersOf1024) {
  struct Row {
    const char* text;
    uint64_t bytes;
  };
  for (const Row& row : {Row{"0", 0}, Row{"1", 1}, Row{"4096", 4096}, Row{"1K", 1u << 10}, Row{"64k", 64u << 10},
                         Row{"100M", 100u << 20}, Row{"100m", 100u << 20}, Row{"10G", uint64_t{10} << 30},
                         Row{"3g", uint64_t{3} << 30}, Row{"2T", uint64_t{2} << 40}, Row{"2t", uint64_t{2} << 40},
                         Row{"8388607T", uint64_t{8388607} << 40},
                         Row{"9223372036854775296", limits::kMaxDeviceBytes}}) {
    EXPECT_EQ(parse_size(row.text), row.bytes) << row.text;
  }
}

TEST(ParseSize, RefusesGarbage) {
  for (const char* text : {"", "K", "M", "-1", "-1M", "+1M", " 1M", "1 M", "1M ", "1MB", "1MiB", "1P", "1KK", "1.5G",
                           "0x1M", "M1", "1,000", "ten", "1b"}) {
    EXPECT_FALSE(parse_size(text)) << '"' << text << '"';
  }
}

TEST(ParseSize, RefusesWhatOverflows) {
  for (const char* text : {"9223372036854775297", "9223372036854775808", "18446744073709551615", "18446744073709551616",
                           "8388608T", "16777216T", "16777217T", "9007199254740992K", "18014398509481985K",
                           "18446744073709551615T"}) {
    EXPECT_FALSE(parse_size(text)) << text;
  }
}

TEST(Percent, DecodesWhatItEncodes) {
  std::string every;
  for (int c = 0; c < 256; ++c) every += static_cast<char>(c);
  EXPECT_EQ(percent_decoded(percent_encoded(every)), every);
  EXPECT_EQ(percent_encoded("/srv/a disk?#%"), "/srv/a%20disk%3F%23%25");
  EXPECT_EQ(percent_decoded("%41%2f"), "A/");
  for (const char* bad : {"%", "%4", "a%", "%4g", "%g4", "%-1", "% 1", "%+1", "%%41"}) {
    EXPECT_FALSE(percent_decoded(bad)) << bad;
    EXPECT_EQ(percent_decoded_loosely(bad), std::string_view(bad) == "%%41" ? "%A" : bad);
  }
  EXPECT_EQ(percent_decoded_loosely(percent_encoded(every)), every);
  EXPECT_EQ(percent_decoded_loosely("100%25%.img%"), "100%%.img%");
}

TEST(SizeText, SaysSizesAsPeopleDo) {
  struct Row {
    uint64_t bytes;
    const char* text;
  };
  for (const Row& row : {Row{0, "0 bytes"}, Row{512, "512 bytes"}, Row{1023, "1023 bytes"}, Row{1024, "1 KiB"},
                         Row{1536, "1.5 KiB"}, Row{100u << 20, "100 MiB"}, Row{uint64_t{3} << 29, "1.5 GiB"},
                         Row{uint64_t{1} << 40, "1 TiB"}, Row{uint64_t{1} << 50, "1 PiB"},
                         Row{uint64_t{1} << 60, "1024 PiB"}}) {
    EXPECT_EQ(size_text(row.bytes), row.text) << row.bytes;
  }
}

}  // namespace
}  // namespace netblk
