// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <fstream>
#include <iterator>
#include <string_view>
#include <utility>

#include "base/limits.h"
#include "base/parse.h"
#include "netblk_names.h"
#include "protocol/netblk_wire.h"

namespace netblk::tools {
namespace {

constexpr const char* kOptions =
    "via=, size=, timeout=, connections=, device=, reconnect=, wait=, read-only, shared, takeover, noauto, nofail, _netdev, "
    "initramfs";
constexpr double kMaxWaitSeconds = 86400;
constexpr size_t kMaxEntries = 4096;
constexpr double kMaxDriverTimeoutSeconds = 600;

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

std::optional<double> seconds_of(const std::string& text, double least, double most) {
  double value = 0;
  const char* const end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value, std::chars_format::fixed);
  if (error != std::errc() || stopped != end || !std::isfinite(value) || value < least || value > most) return std::nullopt;
  return value;
}

bool is_one_of(const std::string& word, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

Error malformed(const std::string& option, const char* expected) {
  return make_error(EINVAL, "the option '{}': expected {}", option, expected);
}

// The options whose value is a word of `netblk attach`.
Result<bool> set_value(TableEntry& entry, const std::string& key, const std::string& value, const std::string& option) {
  AttachArguments& attach = entry.attach;
  if (key == "via") {
    if (!is_one_of(value, {"auto", "netblk", "ublk", "nbd", "fuse"}))
      return malformed(option, "via=auto, netblk, ublk, nbd or fuse");
    attach.via = value;
  } else if (key == "size") {
    const auto size = parse_size(value);
    if (!size || *size == 0 || *size % limits::kSectorBytes != 0)
      return malformed(option, "a positive multiple of 512, in bytes or with K, M, G or T");
    attach.size = value;
  } else if (key == "timeout") {
    const auto seconds = seconds_of(value, 0, kMaxTimeoutSeconds);
    if (!seconds || (*seconds != 0 && *seconds < kMinTimeoutSeconds)) return malformed(option, "0.001 to 3600 seconds, or 0: for ever");
    attach.timeout_s = *seconds;
  } else if (key == "wait") {
    const auto seconds = seconds_of(value, 0, kMaxWaitSeconds);
    if (!seconds) return malformed(option, "0 to 86400 seconds");
    entry.wait_s = *seconds;
  } else if (key == "connections") {
    const auto number = parse_unsigned(value, 1, NETBLK2_MAX_CONNECTIONS);
    if (!number) return malformed(option, "1 to 16");
    attach.connections = static_cast<unsigned>(*number);
  } else if (key == "device") {
    if (value.empty()) return malformed(option, "a disk, such as device=netblk-1");
    attach.device = value;
  } else if (key == "reconnect") {
    if (!is_one_of(value, {"lost", "trust"})) return malformed(option, "reconnect=lost or reconnect=trust");
    attach.reconnect = value;
  } else {
    return false;
  }
  return true;
}

bool set_flag(TableEntry& entry, const std::string& option) {
  if (option == "read-only" || option == "ro") {
    entry.attach.read_only = true;
  } else if (option == "shared") {
    entry.attach.shared = true;
  } else if (option == "takeover") {
    entry.attach.takeover = true;
  } else if (option == "noauto") {
    entry.automatic = false;
  } else if (option == "nofail") {
    entry.may_fail = true;
  } else if (option == "_netdev") {
    entry.on_network = true;
  } else if (option == "initramfs") {
    entry.in_initramfs = true;
  } else {
    return is_one_of(option, {"auto", "rw", "defaults", "none", "-"});
  }
  return true;
}

Status set_options(TableEntry& entry, const std::string& words) {
  size_t begin = 0;
  while (begin <= words.size()) {
    const size_t end = std::min(words.find(',', begin), words.size());
    const std::string option = words.substr(begin, end - begin);
    begin = end + 1;
    if (option.empty()) continue;
    const size_t equals = option.find('=');
    if (equals == std::string::npos) {
      if (!set_flag(entry, option)) return make_error(EINVAL, "no option '{}': there are {}", option, kOptions);
      continue;
    }
    const auto known = set_value(entry, option.substr(0, equals), option.substr(equals + 1), option);
    if (!known) return known.error();
    if (!known.value()) return make_error(EINVAL, "no option '{}': there are {}", option, kOptions);
  }
  return Ok{};
}

// What no machine could do; what this one cannot, `attach` says.
Status check_entry(const TableEntry& entry) {
  const AttachArguments& attach = entry.attach;
  if (attach.read_only && (attach.shared || attach.takeover))
    return make_error(EINVAL, "shared and takeover are about writing, and read-only forbids it: leave one of them out");
  if (!entry.source.is_netblk() && (attach.shared || attach.takeover))
    return make_error(EINVAL, "shared and takeover mean nothing to {}: only netblk/2 has owners", entry.source.text);
  if (!entry.source.is_nbd() && !attach.reconnect.empty())
    return make_error(EINVAL, "reconnect is about NBD, which cannot tell of a loss; {} can: leave it out", entry.source.text);
  if (attach.via == "netblk" && !entry.source.is_netblk())
    return make_error(EINVAL, "via=netblk: the driver takes netblk:// only, not {}", entry.source.text);
  if (entry.in_initramfs) {
    const auto line = initramfs_line(entry);
    if (!line) return line.error();
  }
  return Ok{};
}

Result<TableEntry> parse_entry(const std::vector<std::string>& words) {
  if (words.size() < 2)
    return make_error(EINVAL, "'{}' has no source: NAME SOURCE [OPTIONS] is wanted, such as: {} netblk://192.0.2.7/disk _netdev",
                      words[0], words[0]);
  if (words.size() > 3)
    return make_error(EINVAL, "'{}' is one word too many: NAME SOURCE [OPTIONS], options with commas and no blanks between them, "
                      "words with blanks in quotes", words[3]);
  TableEntry entry;
  entry.attach.name = words[0];
  if (!legal_name(words[0]))
    return make_error(EINVAL, "'{}' is no name: up to 64 letters, digits, dots, dashes and underscores, beginning with no dot and "
                      "no dash", words[0]);
  auto source = parse_source(words[1]);
  if (!source) return std::move(source).error();
  entry.source = std::move(source).value();
  // parse_source() has made them whole from where we stand, which says nothing here.
  if (entry.source.is_store() && entry.source.text != words[1]) return make_error(EINVAL, "{}: write whole paths", words[1]);
  entry.attach.source = entry.source.text;
  // a socket is of this machine
  entry.on_network = entry.source.uri && entry.source.uri->socket.empty();
  if (words.size() == 3) {
    Status set = set_options(entry, words[2]);
    if (!set) return std::move(set).error();
  }
  Status sound = check_entry(entry);
  if (!sound) return std::move(sound).error();
  return entry;
}

}  // namespace

const TableEntry* Table::find(const std::string& name) const {
  for (const TableEntry& entry : entries)
    if (entry.name() == name) return &entry;
  return nullptr;
}

std::optional<std::vector<std::string>> words_of_line(const std::string& line) {
  std::vector<std::string> words;
  size_t at = 0;
  for (;;) {
    while (at < line.size() && is_blank(line[at])) ++at;
    if (at == line.size() || line[at] == '#') return words;
    std::string word;
    char quote = 0;
    for (; at < line.size() && (quote != 0 || !is_blank(line[at])); ++at) {
      const char c = line[at];
      if (quote != 0 && c == quote) {
        quote = 0;
      } else if (quote == 0 && (c == '"' || c == '\'')) {
        quote = c;
      } else if (c == '\\' && quote != '\'' && at + 1 < line.size()) {
        const auto octal = [&](size_t i) { return i < line.size() && line[i] >= '0' && line[i] <= '7'; };
        if (octal(at + 1) && line[at + 1] < '4' && octal(at + 2) && octal(at + 3)) {
          // as fstab writes a blank: \040
          word += static_cast<char>((line[at + 1] - '0') * 64 + (line[at + 2] - '0') * 8 + (line[at + 3] - '0'));
          at += 3;
        } else {
          word += line[++at];
        }
      } else {
        word += c;
      }
    }
    if (quote != 0) return std::nullopt;
    words.push_back(std::move(word));
  }
}

Table parse_table(const std::string& text, const std::string& file) {
  Table table;
  unsigned number = 0;
  size_t begin = 0;
  while (begin < text.size()) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    const auto problem = [&](const std::string& words) { table.problems.push_back(fmt::format("{}:{}: {}", file, number, words)); };
    if (line.find('\0') != std::string::npos) {
      problem("a zero byte: this is no text");
      continue;
    }
    const auto words = words_of_line(line);
    if (!words) {
      problem("a quote is not closed");
      continue;
    }
    if (words->empty()) continue;
    auto entry = parse_entry(*words);
    if (!entry) {
      problem(entry.error().message);
      continue;
    }
    entry.value().line = number;
    if (const TableEntry* other = table.find(entry.value().name())) {
      problem(fmt::format("the name {} is taken by line {}: one of them needs another", entry.value().name(), other->line));
      continue;
    }
    if (table.entries.size() == kMaxEntries) {
      problem(fmt::format("{} disks at most", kMaxEntries));
      break;
    }
    table.entries.push_back(std::move(entry).value());
  }
  return table;
}

Result<Table> read_table(const std::string& file) {
  std::ifstream stream(file, std::ios::binary);
  if (!stream) {
    const int code = errno;
    return make_error(code, "cannot read {}: {}{}", file, errno_text(code), code == ENOENT ? " (netblktab(5) says what it has)" : "");
  }
  std::string text(kMaxTableBytes + 1, '\0');
  stream.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (stream.bad()) return make_error(EIO, "cannot read {}", file);
  text.resize(static_cast<size_t>(stream.gcount()));
  if (text.size() > kMaxTableBytes) return make_error(EFBIG, "{} is longer than 1 MiB: this is no table of disks", file);
  return parse_table(text, file);
}

Result<std::string> initramfs_line(const TableEntry& entry) {
  const AttachArguments& attach = entry.attach;
  if (!entry.source.is_netblk() || !is_one_of(attach.via, {"auto", "netblk"}))
    return make_error(EINVAL, "initramfs: the driver attaches it there, which takes netblk:// and via=netblk");
  const std::string& host = entry.source.uri->host;
  if (host.find_first_not_of("0123456789.") != std::string::npos)
    return make_error(EINVAL, "initramfs: '{}' is no IPv4 address, and names are not looked up before the root is there", host);
  if (!attach.device.empty())
    return make_error(EINVAL, "initramfs: the disks are numbered in the table's order there: leave device= out");
  // what the scripts, and the words of the driver's parameters, cannot carry
  if (entry.source.text.find_first_of(",'\"\\ ") != std::string::npos || entry.source.text.find('%') != std::string::npos)
    return make_error(EINVAL, "initramfs: {}: give the export a name of letters, digits, dots, dashes and underscores",
                      entry.source.text);
  std::string line = entry.name() + "=" + entry.source.text;
  if (!attach.size.empty()) {
    const uint64_t bytes = parse_size(attach.size).value_or(0);
    if (bytes % (uint64_t{1} << 20) != 0) return make_error(EINVAL, "initramfs: size={}: whole MiB", attach.size);
    line += fmt::format(",size={}M", bytes >> 20);
  }
  if (attach.timeout_s.value_or(0) > kMaxDriverTimeoutSeconds)
    return make_error(EINVAL, "initramfs: timeout={:g}: the driver takes {:g} at most", *attach.timeout_s, kMaxDriverTimeoutSeconds);
  if (attach.timeout_s) line += fmt::format(",timeout={:g}", *attach.timeout_s);
  if (attach.connections) line += fmt::format(",connections={}", *attach.connections);
  if (entry.wait_s != kTableWaitSeconds) line += fmt::format(",wait={:.0f}", std::ceil(entry.wait_s));
  if (attach.read_only) line += ",read-only";
  if (attach.shared) line += ",shared";
  if (attach.takeover) line += ",takeover";
  return line;
}

}  // namespace netblk::tools
