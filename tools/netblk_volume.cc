// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_volume.h"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "base/parse.h"
#include "command_line.h"
#include "netblk_volume_ask.h"
#include "netblk_volume_words.h"
#include "progress.h"

namespace netblk::tools {
namespace {

using Point = VolumeWords::Point;

std::string dumped(const VolumeName& name, const Json& answer) {
  Json shown = answer;
  if (answer.is_object()) {
    shown = {{"path", name.folder}};
    shown.update(answer);
  }
  return shown.dump(2, ' ', false, Json::error_handler_t::replace);
}

Result<Json> ask(const VolumeWords& words, const VolumeName& name, const Json& asked, const VolumeArguments& arguments) {
  StatusLine line;
  VolumeQuestion question{.name = name, .command = *find_volume_command(words.name), .asked = asked, .file = arguments.file, .keys = arguments.keys,
                          .timeout_ms = given_timeout_ms(arguments)};
  question.tell = [&line, &words](const Json& progress) { show_progress(line, words.name, progress); };
  return ask_volume(question);
}

std::vector<const CLI::App*> words_of(const CLI::App& command) {
  return command.get_subcommands([](const CLI::App*) { return true; });
}

bool has_words(const CLI::App& command) { return !words_of(command).empty(); }

bool is_chosen(const CLI::App& command, std::string_view name) {
  const size_t blank = name.find(' ');
  if (blank == std::string_view::npos) return command.got_subcommand(std::string(name));
  const std::string group(name.substr(0, blank));
  return command.got_subcommand(group) && command.get_subcommand(group)->got_subcommand(std::string(name.substr(blank + 1)));
}

// Where the word stands that is chosen: "key add" is a command of a command.
const CLI::App& group_of(const CLI::App& command) {
  const auto chosen = command.get_subcommands();
  return chosen.empty() || !has_words(*chosen.front()) ? command : *chosen.front();
}

// What stands where one of the words should, or beside it; and which words there are.
std::string without_a_word(const CLI::App& command, const std::string& called) {
  std::string known;
  for (const CLI::App* const each : words_of(command)) known += (known.empty() ? "" : ", ") + each->get_name();
  const std::vector<std::string> unknown = command.remaining();
  const std::string what = unknown.empty() ? fmt::format("a command of {} is missing", called) : fmt::format("'{}' is no command of {}", unknown.front(), called);
  return fmt::format("{}: there are {} (netblk {} --help)", what, known, called);
}

int run_words(const VolumeWords& words, const VolumeName& name, const VolumeArguments& arguments) {
  if (words.run != nullptr) return words.run(name, arguments);
  const Result<Json> asked = words.asked != nullptr ? words.asked(name, arguments) : Result<Json>(Json{{"name", name.snapshot}});
  if (!asked) return fail(kMalformed, asked.error().message);
  const Result<Json> outcome = ask(words, name, asked.value(), arguments);
  if (!outcome) return fail(kFailed, outcome.error().message);
  const Json& answer = outcome.value();
  std::string said, trouble;
  try {
    if (words.said != nullptr) said = words.said(name, answer);
    if (words.trouble != nullptr) trouble = words.trouble(name, answer);
  } catch (const Json::exception& error) {
    return fail(kFailed, fmt::format("{}: the process that has it open answers nonsense: {}", name.folder, error.what()));
  }
  if (arguments.json) said = dumped(name, answer);
  if (!said.empty())
    if (const int status = print(said); status != 0) return status;
  return trouble.empty() ? 0 : fail(kFailed, trouble);
}

}  // namespace

CLI::App* add_volume_commands(CLI::App& app, VolumeArguments& arguments) {
  CLI::App* const command = app.add_subcommand("volume", "Make volumes, tell about them, take snapshots of them");
  // What is missing or unknown is told by run_volume(), which says what there is.
  command->require_subcommand(0, 1);
  for (const VolumeWords& words : volume_words()) {
    // "key add" is a command of a command.
    const std::string_view name = words.name;
    const size_t blank = name.find(' ');
    CLI::App* under = command;
    if (blank != std::string_view::npos) {
      const std::string group(name.substr(0, blank));
      const auto is_group = [&](const CLI::App* each) { return each->get_name() == group; };
      const auto groups = command->get_subcommands(is_group);
      under = groups.empty() ? command->add_subcommand(group, "The keys of an encrypted volume")->require_subcommand(0, 1) : groups.front();
    }
    CLI::App* const one = under->add_subcommand(std::string(name.substr(blank + 1)), words.text);
    one->add_option(words.what, arguments.path, words.what_text)->required();
    if (words.declare != nullptr) words.declare(*one, arguments);
    if (words.opens) {
      declare_keys(*one, arguments);
      one->add_option("--timeout", arguments.timeout_s,
                      "Seconds to wait for the volume (default 10), and for a sign of life of the process that has it (default 60)")
          ->check(CLI::Range(0.1, 1e6))
          ->type_name("SECONDS");
    }
    if (words.json) one->add_flag("--json", arguments.json, "For programs");
  }
  command->allow_extras();
  for (CLI::App* const each : command->get_subcommands([](CLI::App* one) { return has_words(*one); })) each->allow_extras();
  return command;
}

int run_volume(const CLI::App& command, const VolumeArguments& given) {
  const auto words = volume_words();
  const auto found = std::find_if(words.begin(), words.end(), [&](const VolumeWords& each) { return is_chosen(command, each.name); });
  const CLI::App& group = group_of(command);
  const std::string called = &group == &command ? "volume" : "volume " + group.get_name();
  for (const CLI::App* const each : {&command, &group})
    if (const auto unknown = each->remaining(); !unknown.empty() && (found != words.end() || each != &group))
      return fail(kMalformed, fmt::format("'{}' is not expected there (netblk {} --help)", unknown.front(), called));
  if (found == words.end()) return fail(kMalformed, without_a_word(group, called));
  VolumeArguments arguments = given;
  if (found->point == Point::kRange) {
    const size_t slash = given.path.rfind('/'), at = given.path.rfind('@');
    if (at != std::string::npos && (slash == std::string::npos || at > slash)) {
      arguments.path = given.path.substr(0, at);
      arguments.range = given.path.substr(at + 1);
    }
  }
  const auto name = parse_volume_name(arguments.path);
  if (!name) return fail(kMalformed, name.error().message);
  if (found->point == Point::kMust && name.value().snapshot.empty())
    return fail(kMalformed, fmt::format("'{}' names no snapshot: write {}@NAME", arguments.path, arguments.path));
  if (found->point == Point::kNone && !name.value().snapshot.empty())
    return fail(kMalformed, fmt::format("'{}' names a snapshot, and this is about the whole volume (an @ of a path is written %40)",
                                        arguments.path));
  return run_words(*found, name.value(), arguments);
}

}  // namespace netblk::tools
