// SPDX-License-Identifier: GPL-2.0-only
// The words of what goes into volumes and out of them: send, receive, import, export.
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string_view>
#include <utility>

#include "backend.h"
#include "command_line.h"
#include "interrupt.h"
#include "io/fd.h"
#include "netblk_volume_ask.h"
#include "netblk_volume_import.h"
#include "netblk_volume_words.h"
#include "store/volume/stream.h"

namespace netblk::tools {
namespace {

namespace volume = store::volume;
using Point = VolumeWords::Point;

constexpr const char* kPathText = "The folder of the volume";

// --- send -----------------------------------------------------------------------------------------------------------

void declare_send(CLI::App& one, VolumeArguments& arguments) {
  one.add_option("--output", arguments.file, "Write the stream to this new file (default: the standard output)");
  one.add_option("--resume", arguments.token, "Go on where a receive has stopped: what `netblk volume receive --status` prints");
}

// A name, or two with dots between them; there are dots in names, too.
bool is_range(std::string_view text) {
  if (volume::is_name(text)) return true;
  for (size_t at = text.find(".."); at != std::string_view::npos; at = text.find("..", at + 1))
    if (volume::is_name(text.substr(0, at)) && volume::is_name(text.substr(at + 2))) return true;
  return false;
}

Result<Json> asked_send(const VolumeName&, const VolumeArguments& arguments) {
  const std::string& range = arguments.range;
  if (range.empty())
    return make_error(EINVAL, "'{}' names no snapshot: write {}@B for the whole of snapshot B, or {}@A..B for what changed since A",
                      arguments.path, arguments.path, arguments.path);
  if (!is_range(range))
    return make_error(EINVAL, "bad snapshot '{}': write B for the whole of snapshot B, or A..B for what changed since A", range);
  if (!arguments.token.empty() && !volume::looks_like_token(arguments.token))
    return make_error(EINVAL, "bad token '{}': `netblk volume receive --status` prints it", arguments.token);
  return Json{{"name", range}, {"resume", arguments.token}};
}

// --- receive --------------------------------------------------------------------------------------------------------

void declare_receive(CLI::App& one, VolumeArguments& arguments) {
  one.add_option("--input", arguments.file, "Read the stream from this file (default: the standard input)");
  one.add_flag("--status", arguments.status, "Only tell how far an unfinished receive is, as a token for `send --resume`");
  one.add_flag("--abort", arguments.abort, "Give up an unfinished receive, also one that runs: the disk stays as it was before")->excludes("--status");
  declare_creation(one, arguments);
}

// The header says how large a new volume is, and what it is: it is read before the rest.
Result<std::string> read_header(const std::string& path, volume::StreamHeader& header) {
  const bool standard = path.empty() || path == "-";
  if (!standard) {
    // (A FIFO waits for its writer when it is read.)
    const io::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (!fd.valid()) return make_error(errno, "cannot open {}: {}", path, errno_text(errno));
    if (::dup2(fd.get(), STDIN_FILENO) < 0) return make_error(errno, "cannot read {}: {}", path, errno_text(errno));
  }
  const std::string name = standard ? "the standard input" : path;
  std::array<std::byte, volume::kStreamHeaderBytes> bytes;
  for (size_t got = 0; got < bytes.size();) {
    // Whatever a signal does to read().
    constexpr int kLookMs = 100;
    pollfd ready{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
    if (interrupted()) return make_error(ECANCELED, "it was stopped");
    if (::poll(&ready, 1, kLookMs) <= 0) continue;
    const ssize_t result = ::read(STDIN_FILENO, bytes.data() + got, bytes.size() - got);
    if (result < 0 && errno != EINTR && errno != EAGAIN) return make_error(errno, "cannot read {}: {}", name, errno_text(errno));
    if (result == 0) return make_error(EBADMSG, "{} ends before the header of a stream of `netblk volume send`", name);
    if (result > 0) got += static_cast<size_t>(result);
  }
  auto decoded = volume::decode_stream_header(bytes);
  if (!decoded) return decoded.error();
  header = std::move(decoded).value();
  std::string text;
  for (const std::byte each : bytes) text += fmt::format("{:02x}", std::to_integer<unsigned>(each));
  return text;
}

// A new volume, if there is none and the stream is of a whole snapshot; the key of a new one.
Result<SharedKey> make_receiver(const VolumeName& name, const VolumeArguments& arguments, const volume::StreamHeader& header) {
  if (::access((name.folder + "/data").c_str(), F_OK) == 0) {
    if (says_creation(arguments))
      return make_error(EEXIST, "{} is there already, and --encrypt, --compress, --history and --segment-size are for a new one", name.folder);
    return SharedKey();
  }
  if (!header.what.is_whole())
    return make_error(ENOENT, "{} is no volume, and the stream has only what changed since '{}': receive the whole of that one first",
                      name.folder, header.what.from_name);
  if (header.start_offset != 0)
    return make_error(ENOENT, "{} is no volume, and the stream goes on with an earlier one", name.folder);
  if (!arguments.encrypt && !arguments.keys.none())
    return make_error(EINVAL, "{} is no volume yet, and a key is for one that is encrypted: write --encrypt too", name.folder);
  auto options = creation_options(name, arguments);
  if (!options) return std::move(options).error();
  auto backend = make_backend();
  if (!backend) return std::move(backend).error();
  options.value().size_bytes = header.what.size_bytes;
  if (Status made = create_volume_folder(*backend.value(), name.folder, options.value()); !made) return std::move(made).error();
  return options.value().key;
}

int print_json(const VolumeName& name, const Json& answer) {
  Json shown = {{"path", name.folder}};
  shown.update(answer);
  return print(shown.dump(2, ' ', false, Json::error_handler_t::replace));
}

int receive(const VolumeName& name, const VolumeArguments& arguments) {
  const bool asks_only = arguments.status || arguments.abort;
  if (asks_only && (!arguments.file.empty() || says_creation(arguments)))
    return fail(kMalformed, "--input and what a new volume is like belong to a receive, and --status and --abort read no stream");
  const char* const command = arguments.status ? "receive-status" : arguments.abort ? "receive-abort" : "receive";
  Json asked = Json::object();
  VolumeQuestion question{.name = name, .command = *find_volume_command(command), .asked = asked, .file = "", .keys = arguments.keys,
                          .timeout_ms = given_timeout_ms(arguments)};
  StatusLine line;
  if (!asks_only) {
    catch_interrupts();
    volume::StreamHeader header;
    const auto text = read_header(arguments.file, header);
    if (!text) return fail(kFailed, text.error().message);
    auto key = make_receiver(name, arguments, header);
    if (!key) return fail(exit_status(key.error()), key.error().message);
    question.key = std::move(key).value();
    asked["header"] = text.value();
    question.tell = [&line](const Json& progress) { show_progress(line, "receive", progress); };
  }
  const Result<Json> answer = ask_volume(question);
  if (!answer) return fail(kFailed, answer.error().message);
  if (arguments.json) return print_json(name, answer.value());
  if (arguments.status) return print(answer.value()["token"].get<std::string>());
  return 0;
}

// --- import and export ----------------------------------------------------------------------------------------------

void declare_import(CLI::App& one, VolumeArguments& arguments) {
  one.add_option("FILE", arguments.file, "A file or block device with the bytes of the disk; '-': the standard input")->required();
  one.add_option("--size", arguments.size, "Size of the disk, where FILE is a pipe and does not tell it; or a larger one than FILE's");
  declare_creation(one, arguments);
  declare_keys(one, arguments);
}

void declare_export(CLI::App& one, VolumeArguments& arguments) {
  one.add_option("FILE", arguments.file, "A new file, a block device, or '-' for the standard output")->required();
}

constexpr std::array kWords = {
    VolumeWords{.name = "send", .text = "Write a snapshot, or what changed between two, as a stream", .what = "PATH@[A..]B",
                .what_text = "The folder, and the snapshot B that is sent; A..: only what has changed since snapshot A", .point = Point::kRange,
                .json = false, .declare = declare_send, .asked = asked_send},
    VolumeWords{.name = "receive", .text = "Make a snapshot of a stream of `send`, in a new volume or one that has the snapshot before",
                .what = "PATH", .what_text = kPathText, .point = Point::kNone, .json = true, .declare = declare_receive, .run = receive},
    VolumeWords{.name = "import", .text = "Make a volume with the contents of a raw disk", .what = "PATH", .what_text = kPathText,
                .point = Point::kNone, .json = false, .declare = declare_import, .opens = false, .run = import_volume},
    VolumeWords{.name = "export", .text = "Write the disk, or a snapshot, as a raw disk", .what = "PATH[@NAME]",
                .what_text = "The folder, and what of it: a snapshot, a clone or a moment; none: the disk", .point = Point::kMay, .json = false,
                .declare = declare_export},
};

}  // namespace

std::span<const VolumeWords> volume_move_words() { return kWords; }

}  // namespace netblk::tools
