// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_volume_words.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <utility>
#include <vector>

#include "backend.h"
#include "base/limits.h"
#include "base/parse.h"
#include "command_line.h"
#include "store/volume/settings.h"
#include "store/volume/upgrade.h"

namespace netblk::tools {
namespace {

namespace volume = store::volume;
using Point = VolumeWords::Point;

constexpr const char* kPathText = "The folder of the volume";
constexpr const char* kPointText = "PATH@NAME: the folder, and a name; an @ in the path is written %40";

std::string rows_text(const std::vector<std::pair<std::string, std::string>>& rows) {
  std::string text;
  for (const auto& [name, value] : rows) text += fmt::format("{}{:<11} {}", text.empty() ? "" : "\n", name, value);
  return text;
}

// --- create ---------------------------------------------------------------------------------------------------------

void declare_create(CLI::App& one, VolumeArguments& arguments) {
  one.add_option("--size", arguments.size, "Size of the disk: bytes, or K, M, G, T; it takes space as it is written")->required();
  declare_creation(one, arguments);
  declare_keys(one, arguments);
}

int create(const VolumeName& name, const VolumeArguments& arguments) {
  const auto size = parse_size(arguments.size);
  if (!size || *size < limits::kSectorBytes || *size % limits::kSectorBytes != 0)
    return fail(kMalformed, fmt::format("bad --size '{}': use bytes or K, M, G, T, a multiple of 512", arguments.size));
  if (!arguments.encrypt && !arguments.keys.none()) return fail(kMalformed, "a key is for a volume that is encrypted: write --encrypt too");
  auto options = creation_options(name, arguments);
  if (!options) return fail(exit_status(options.error()), options.error().message);
  options.value().size_bytes = *size;
  auto backend = make_backend();
  if (!backend) return fail(kFailed, backend.error().message);
  const Status made = create_volume_folder(*backend.value(), name.folder, options.value());
  return made ? 0 : fail(kFailed, made.error().message);
}

// --- snapshot -------------------------------------------------------------------------------------------------------

void declare_snapshot(CLI::App& one, VolumeArguments& arguments) {
  one.add_option("--of", arguments.of, "The clone that is meant, instead of the volume itself");
}

Result<Json> asked_snapshot(const VolumeName& name, const VolumeArguments& arguments) {
  if (!volume::is_name(name.snapshot))
    return make_error(EINVAL, "bad name '{}': it begins with a letter or _, and has up to 64 letters, digits, '.', '_' and '-'", name.snapshot);
  return Json{{"name", name.snapshot}, {"of", arguments.of}};
}

// --- delete ---------------------------------------------------------------------------------------------------------

Result<Json> asked_delete(const VolumeName& name, const VolumeArguments&) {
  if (!volume::is_name(name.snapshot))
    return make_error(EINVAL, "'{}' is no name of a snapshot or a clone: what is deleted has one (`netblk volume list`)", name.snapshot);
  return Json{{"name", name.snapshot}};
}

// --- upgrade --------------------------------------------------------------------------------------------------------

coro::Task<void> upgrade_on(io::Loop& loop, io::File& file, Result<uint32_t>& outcome) {
  Result<uint32_t> had = co_await volume::upgrade_volume(loop, file);
  outcome = std::move(had);
}

int upgrade(const VolumeName& name, const VolumeArguments&) {
  auto backend = make_backend();
  if (!backend) return fail(kFailed, backend.error().message);
  auto file = open_volume_file(*backend.value(), name.folder, {.keys = {}, .on_wait = {}, .stop_waiting = {}});
  if (!file) return fail(kFailed, file.error().message);
  Result<uint32_t> had = uint32_t{0};
  const Status ran =
      run_on_loop(*backend.value(), [&](io::Loop& loop) { return upgrade_on(loop, *file.value().file, had); });
  if (!ran) return fail(kFailed, ran.error().message);
  if (!had) return fail(kFailed, fmt::format("{} cannot be upgraded: {}", name.folder, had.error().message));
  return print(had.value() == volume::kFormatVersion
                   ? fmt::format("{} is of format version {} already", printable(name.folder), volume::kFormatVersion)
                   : fmt::format("{} is now of format version {}, and was of {}", printable(name.folder), volume::kFormatVersion, had.value()));
}

// --- scrub ----------------------------------------------------------------------------------------------------------

void declare_scrub(CLI::App& one, VolumeArguments& arguments) {
  one.add_option("--rate", arguments.rate_mb, "MB that are read in a second, at most; 0: as fast as it goes")
      ->check(CLI::Range(uint64_t{0}, uint64_t{1'000'000}))
      ->type_name("MB/s")
      ->capture_default_str();
}

Result<Json> asked_scrub(const VolumeName&, const VolumeArguments& arguments) {
  return Json{{"bytes_per_second", arguments.rate_mb * 1'000'000}};
}

// --- What is said of answers ----------------------------------------------------------------------------------------

std::string state_text(const Json& answer) {
  const std::string damage = answer.at("damage");
  if (!damage.empty()) return "damaged: " + printable(damage);
  if (answer.at("process").is_number()) return fmt::format("open in process {}", answer.at("process").get<uint64_t>());
  if (answer.at("closed_clean")) return "closed in order";
  return fmt::format("not closed in order: {} records of the log are read at an opening{}", answer.at("replayed_records").get<uint64_t>(),
                     answer.at("tail_cut") ? ", and a torn end is left out" : "");
}

std::string history_text(const Json& answer) {
  const std::string kept = printable(answer.at("settings").at("history"));
  if (answer.at("history_from_lsn").is_null()) return kept;
  const std::string from = answer.at("history_from").is_null() ? "" : " at " + printable(answer.at("history_from"));
  return fmt::format("{}: it goes back to lsn:{}{}", kept, answer.at("history_from_lsn").get<uint64_t>(), from);
}

// How what is written from now on is kept.
std::string kept_text(const Json& answer) {
  const Json& settings = answer.at("settings");
  return fmt::format("{}, compression {}", answer.at("encrypted").get<bool>() ? "encrypted" : "not encrypted", printable(settings.at("compress")));
}

std::string said_info(const VolumeName& name, const Json& answer) {
  const auto number = [&](const char* member) { return answer.at(member).get<uint64_t>(); };
  return rows_text({{"volume", printable(name.folder)},
                    {"size", fmt::format("{} ({} bytes)", size_text(number("size_bytes")), number("size_bytes"))},
                    {"uuid", printable(answer.at("uuid"))},
                    {"generation", std::to_string(number("generation"))},
                    {"snapshots", std::to_string(number("snapshots"))},
                    {"clones", std::to_string(number("clones"))},
                    {"blocks", kept_text(answer)},
                    {"history", history_text(answer)},
                    {"when full", printable(answer.at("settings").at("when-full"))},
                    {"used", fmt::format("{} bytes in {} segments of {}", number("used_bytes"),
                                         number("segments") - number("free_segments"), size_text(number("segment_bytes")))},
                    {"live", fmt::format("{} bytes", number("live_bytes"))},
                    {"index", fmt::format("{} bytes", number("index_bytes"))},
                    {"garbage", fmt::format("{} bytes, {} copied to get rid of it", number("garbage_bytes"), number("collected_bytes"))},
                    {"file", fmt::format("{} bytes, to be within {}% of what is live", number("file_bytes"), number("space_percent"))},
                    {"last lsn", std::to_string(number("last_lsn"))},
                    {"state", state_text(answer)}});
}

std::string said_list(const VolumeName&, const Json& answer) {
  size_t width = 8;
  for (const Json& each : answer) width = std::max(width, each.at("name").get<std::string>().size());
  std::string snapshots = fmt::format("{:<{}}  {:<20}  {:>12}  {}", "SNAPSHOT", width, "TIME", "LSN", "SIZE"), clones;
  for (const Json& each : answer) {
    const bool is_clone = each.at("kind") == "clone";
    const std::string of = printable(each.at("of"));
    if (is_clone && clones.empty()) clones = fmt::format("\n\n{:<{}}  {:<20}  {:>12}  {}", "CLONE", width, "OF", "LSN", "SIZE");
    (is_clone ? clones : snapshots) +=
        fmt::format("\n{:<{}}  {:<20}  {:>12}  {}{}", printable(each.at("name")), width,
                    is_clone ? (of.empty() ? "the volume" : of) : printable(each.at("time")), each.at("lsn").get<uint64_t>(),
                    size_text(each.at("size_bytes").get<uint64_t>()), is_clone || of.empty() ? "" : "  of " + of);
  }
  return snapshots + clones;
}

std::string said_snapshot(const VolumeName& name, const Json& answer) {
  return fmt::format("{}@{} at lsn:{}", printable(name.folder), printable(answer.at("name")), answer.at("lsn").get<uint64_t>());
}

std::string said_check(const VolumeName&, const Json& answer) {
  const uint64_t damaged = answer.at("damaged"), lost_bytes = answer.at("lost_bytes");
  std::string text;
  for (const Json& each : answer.at("damage")) text += printable(each) + "\n";
  if (lost_bytes > 0) text += fmt::format("{} bytes are counted as in use, and are not\n", lost_bytes);
  return text + fmt::format("{} blocks were read; {}", answer.at("blocks").get<uint64_t>(),
                            damaged == 0 ? "all are as they were written" : fmt::format("{} places are damaged", damaged));
}

std::string trouble_of_check(const VolumeName& name, const Json& answer) {
  if (answer.at("damaged") == 0) return "";
  return fmt::format("{} is damaged: copy what can be read to a new volume, or go back to a backup", name.folder);
}

// --- The commands ---------------------------------------------------------------------------------------------------

constexpr std::array kWords = {
    VolumeWords{.name = "create", .text = "Make a volume: a folder with an empty disk in it", .what = "PATH", .what_text = kPathText,
                .point = Point::kNone, .json = false, .declare = declare_create, .opens = false, .run = create},
    VolumeWords{.name = "info", .text = "Tell about a volume: size, space, state", .what = "PATH", .what_text = kPathText,
                .point = Point::kNone, .json = true, .said = said_info},
    VolumeWords{.name = "list", .text = "List the snapshots and clones of a volume", .what = "PATH", .what_text = kPathText,
                .point = Point::kNone, .json = true, .said = said_list},
    VolumeWords{.name = "snapshot", .text = "Name the present moment of a volume", .what = "PATH@NAME", .what_text = kPointText,
                .point = Point::kMust, .json = true, .declare = declare_snapshot, .asked = asked_snapshot, .said = said_snapshot},
    VolumeWords{.name = "delete", .text = "Delete a snapshot or a clone", .what = "PATH@NAME", .what_text = kPointText,
                .point = Point::kMust, .json = false, .asked = asked_delete},
    VolumeWords{.name = "check", .text = "Read everything, and compare it with its checksums", .what = "PATH", .what_text = kPathText,
                .point = Point::kNone, .json = true, .said = said_check, .trouble = trouble_of_check},
    VolumeWords{.name = "scrub", .text = "The same at leisure, beside whoever uses the volume", .what = "PATH", .what_text = kPathText,
                .point = Point::kNone, .json = true, .declare = declare_scrub, .asked = asked_scrub, .said = said_check,
                .trouble = trouble_of_check},
    VolumeWords{.name = "upgrade", .text = "Bring a volume of an older format version to the present one", .what = "PATH",
                .what_text = kPathText, .point = Point::kNone, .json = false, .opens = false, .run = upgrade},
};

}  // namespace

void declare_keys(CLI::App& one, VolumeArguments& arguments) {
  one.add_option("--key-file", arguments.keys.key_file, "The key file of an encrypted volume");
  one.add_option("--passphrase-file", arguments.keys.passphrase_file, "A file with its passphrase (without both: a terminal is asked)");
}

void declare_creation(CLI::App& one, VolumeArguments& arguments) {
  one.add_option("--segment-size", arguments.segment_size,
                 "Bytes of a segment of the log: a power of two from 64K to 256M (default: by the size)");
  one.add_option("--compress", arguments.compress, "lz4, zstd or none (default): how what is written is compressed, where that pays");
  one.add_flag("--encrypt", arguments.encrypt, "Encrypt all of it; the key is in --key-file or --passphrase-file, or a terminal is asked");
  one.add_option("--history", arguments.history, "How far back every moment is kept: a time (10m, 24h, 7d), bytes (10G) or none (default)");
}

bool says_creation(const VolumeArguments& arguments) {
  return arguments.encrypt || !arguments.segment_size.empty() || !arguments.compress.empty() || !arguments.history.empty();
}

int exit_status(const Error& error) { return error.code == EINVAL ? kMalformed : kFailed; }

Result<volume::CreateOptions> creation_options(const VolumeName& name, const VolumeArguments& arguments) {
  volume::CreateOptions options;
  if (!arguments.segment_size.empty()) {
    const auto segment = parse_size(arguments.segment_size);
    if (!segment || !std::has_single_bit(*segment) || *segment < (uint64_t{1} << volume::kMinSegmentShift) ||
        *segment > (uint64_t{1} << volume::kMaxSegmentShift))
      return make_error(EINVAL, "bad --segment-size '{}': use a power of two from 64K to 256M", arguments.segment_size);
    options.segment_bytes = *segment;
  }
  for (const auto& [key, value] : {std::pair{"history", &arguments.history}, {"compress", &arguments.compress}}) {
    if (value->empty()) continue;
    std::vector<volume::Setting> tried;
    options.settings.push_back({key, *value});
    if (const Status put = volume::put_setting(tried, key, *value); !put) return make_error(EINVAL, "bad --{}: {}", key, put.error().message);
  }
  if (!arguments.encrypt) return options;
  auto key = arguments.keys.none() ? ask_passphrase(fmt::format("New passphrase of {}", printable(name.folder)), true) : read_key(arguments.keys);
  // (What is wrong with a key is no matter of how the command is written.)
  if (!key) return make_error(key.error().code == EINVAL ? EBADMSG : key.error().code, "{}", key.error().message);
  options.key = std::move(key).value();
  return options;
}

std::optional<uint64_t> given_timeout_ms(const VolumeArguments& arguments) {
  if (arguments.timeout_s == 0) return std::nullopt;
  return static_cast<uint64_t>(arguments.timeout_s * 1000);
}

void show_progress(StatusLine& line, const char* name, const Json& progress) {
  const auto done = number_in(progress, "done_bytes"), total = number_in(progress, "total_bytes", 0);
  if (!line.on() || !done.ok() || !total.ok()) return;
  std::string text = fmt::format("{}: {}", name, size_text(done.value()));
  if (total.value() > 0) text += fmt::format(" of {}", size_text(total.value()));
  line.show(text);
}

std::span<const VolumeWords> volume_words() {
  static const std::vector<VolumeWords> all = [] {
    std::vector<VolumeWords> words(kWords.begin(), kWords.end());
    const auto points = volume_point_words();
    words.insert(words.end(), points.begin(), points.end());
    const auto keys = volume_key_words();
    words.insert(words.end(), keys.begin(), keys.end());
    const auto more = volume_move_words();
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }();
  return all;
}

}  // namespace netblk::tools
