// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_top.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/parse.h"
#include "command_line.h"
#include "interrupt.h"
#include "netblk_latency.h"
#include "netblk_names.h"

namespace netblk::tools {
namespace {

using nlohmann::json;
using std::chrono::steady_clock;

// An interrupt is seen after so long.
constexpr auto kLookForInterrupt = std::chrono::milliseconds(100);
constexpr size_t kUsualWidth = 80;
constexpr size_t kMaxWidth = 10'000;

struct Line {
  const StatusRow* row = nullptr;
  Rates rates;
  Split split;
  double busy() const { return rates.read.per_s + rates.write.per_s; }
};

std::vector<Line> lines_of(const std::vector<StatusRow>& before, const std::vector<StatusRow>& now, double period_s) {
  std::vector<Line> lines;
  for (const StatusRow& row : now) {
    Line line{.row = &row, .rates = {}, .split = {}};
    const auto was = std::find_if(before.begin(), before.end(), [&](const StatusRow& other) {
      return other.device == row.device && other.server == row.server;
    });
    if (was != before.end()) {
      line.rates = rates_of(was->kernel, row.kernel, period_s);
      if (row.latencies) line.split = split_of(was->latencies ? sum_of(*was->latencies) : client::Latency{}, sum_of(*row.latencies));
    }
    lines.push_back(line);
  }
  std::stable_sort(lines.begin(), lines.end(), [](const Line& a, const Line& b) { return a.busy() > b.busy(); });
  return lines;
}

size_t terminal_width() {
  winsize size{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) return size.ws_col;
  if (const char* const columns = std::getenv("COLUMNS"))
    return parse_unsigned(columns, 1, kMaxWidth).value_or(kUsualWidth);
  return kUsualWidth;
}

struct Column {
  const char* title;
  int rank;  // the highest go first where there is no room
  std::string (*text)(const Line& line);
};

std::string mib_text(const Rate& rate) { return fmt::format("{:.1f}", rate.mib_per_s); }
// Without a blank, to be narrow.
std::string short_time(const std::optional<double>& us) {
  std::string text = time_text(us);
  std::erase(text, ' ');
  return text;
}
std::string count_text(const Rate& rate) { return fmt::format("{:.0f}", rate.per_s); }

constexpr Column kColumns[] = {
    {"DEVICE", 0, [](const Line& line) { return line.row->device; }},
    {"NAME", 7, [](const Line& line) { return line.row->name.empty() ? "-" : line.row->name; }},
    {"WAY", 8, [](const Line& line) { return line.row->way; }},
    {"STATE", 0, [](const Line& line) { return std::string(line.row->lost ? "lost" : line.row->state); }},
    {"R/S", 1, [](const Line& line) { return count_text(line.rates.read); }},
    {"MIB/S", 4, [](const Line& line) { return mib_text(line.rates.read); }},
    {"LATENCY", 5, [](const Line& line) { return short_time(line.rates.read.latency_us); }},
    {"W/S", 1, [](const Line& line) { return count_text(line.rates.write); }},
    {"MIB/S", 4, [](const Line& line) { return mib_text(line.rates.write); }},
    {"LATENCY", 5, [](const Line& line) { return short_time(line.rates.write.latency_us); }},
    {"QUEUE", 3, [](const Line& line) { return short_time(line.split.queue_us); }},
    {"WIRE", 3, [](const Line& line) { return short_time(line.split.wire_us); }},
    {"SERVER", 3, [](const Line& line) { return short_time(line.split.server_us); }},
    {"MEDIA", 3, [](const Line& line) { return short_time(line.split.media_us); }},
    {"FLY", 2, [](const Line& line) { return std::to_string(line.row->in_flight); }},
    {"OLDEST", 2, [](const Line& line) { return short_time(oldest_us(*line.row)); }},
    {"ERRORS", 6, [](const Line& line) { return std::to_string(line.row->errors); }},
    {"RECONNECTS", 6, [](const Line& line) { return std::to_string(line.row->reconnects); }},
    {"SOURCE", 9, [](const Line& line) { return line.row->server; }},
};

// Until it is over, or somebody has enough of it.
bool wait_for(double interval_s) {
  const auto end = steady_clock::now() + std::chrono::duration_cast<steady_clock::duration>(std::chrono::duration<double>(interval_s));
  while (!interrupted()) {
    const auto left = end - steady_clock::now();
    if (left <= steady_clock::duration::zero()) return true;
    std::this_thread::sleep_for(std::min<steady_clock::duration>(left, kLookForInterrupt));
  }
  return false;
}

std::vector<StatusRow> look_at(const std::vector<std::string>& wanted) {
  std::vector<StatusRow> rows = status_rows();
  if (wanted.empty()) return rows;
  std::erase_if(rows, [&](const StatusRow& row) {
    return std::none_of(wanted.begin(), wanted.end(),
                        [&](const std::string& word) { return row.device == node_of_words(word) || row.name == word; });
  });
  return rows;
}

}  // namespace

std::string top_json(const std::vector<StatusRow>& before, const std::vector<StatusRow>& now, double period_s) {
  json list = json::array();
  for (const Line& line : lines_of(before, now, period_s)) {
    const StatusRow& row = *line.row;
    json object = {{"device", row.device},
                   {"name", row.name},
                   {"way", row.way},
                   {"server", row.server},
                   {"state", row.state},
                   {"lost", row.lost},
                   {"in_flight", row.in_flight},
                   {"oldest_ms", oldest_json(row)},
                   {"latency", split_json(line.split)},
                   {"errors", row.errors},
                   {"reconnects", row.reconnects}};
    add_rates(object, line.rates);
    list.push_back(std::move(object));
  }
  return list.dump(2);
}

std::string top_table(const std::vector<StatusRow>& before, const std::vector<StatusRow>& now, double period_s, size_t width) {
  if (now.empty()) return "nothing is attached";
  const std::vector<Line> lines = lines_of(before, now, period_s);
  for (int rank = kColumns[std::size(kColumns) - 1].rank;; --rank) {
    std::vector<std::vector<std::string>> table(1);
    for (const Column& column : kColumns)
      if (column.rank <= rank) table[0].emplace_back(column.title);
    for (const Line& line : lines) {
      table.emplace_back();
      for (const Column& column : kColumns)
        if (column.rank <= rank) table.back().push_back(column.text(line));
    }
    std::string text = aligned(table);
    size_t widest = 0;
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find('\n', at), text.size());
      widest = std::max(widest, end - at);
      at = end + 1;
    }
    if (width == 0 || widest <= width || rank == 0) return text;
  }
}

int run_top(const TopArguments& arguments) {
  catch_interrupts();
  const bool terminal = ::isatty(STDOUT_FILENO) != 0 && !arguments.json;
  std::vector<StatusRow> before = look_at({});
  for (const std::string& word : arguments.devices) {
    const std::string node = node_of_words(word);
    if (std::none_of(before.begin(), before.end(), [&](const StatusRow& row) { return row.device == node; }))
      return fail(kFailed, fmt::format("{} is not attached", word));
  }
  auto looked = steady_clock::now();
  while (wait_for(arguments.interval_s)) {
    std::vector<StatusRow> now = look_at(arguments.devices);
    const auto at = steady_clock::now();
    const double period_s = std::chrono::duration<double>(at - looked).count();
    std::string text = arguments.json ? top_json(before, now, period_s)
                                      : top_table(before, now, period_s, terminal ? terminal_width() : 0);
    // The cursor to the beginning, and the rest of the screen empty.
    if (terminal && !arguments.once) text = "\033[H\033[J" + text;
    const int printed = print(text);
    if (printed != 0 || arguments.once) return printed;
    before = std::move(now);
    looked = at;
  }
  return 0;
}

}  // namespace netblk::tools
