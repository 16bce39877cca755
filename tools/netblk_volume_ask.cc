// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_volume_ask.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "backend.h"
#include "base/limits.h"
#include "base/log.h"
#include "command_line.h"
#include "control_stream.h"
#include "coro/scope.h"
#include "interrupt.h"
#include "netblk_volume_bytes.h"
#include "store/wanted.h"
#include "volume_commands.h"
#include "volume_control.h"

namespace netblk::tools {
namespace {

namespace volume = store::volume;

constexpr uint64_t kLookMs = 100;   // how often somebody looks for ^C
constexpr uint64_t kAgainMs = 20;   // between two tries of a volume that somebody has and does not answer for

// Of the user's: what the command reads or writes. Opened before anybody is kept waiting.
struct Files {
  std::optional<InputFile> input;
  std::unique_ptr<OutputFile> output;

  Status open(const VolumeQuestion& question) {
    if (question.command.bytes == VolumeBytes::kIn) {
      auto opened = InputFile::open(question.file);
      if (!opened) return std::move(opened).error();
      input = std::move(opened).value();
    } else if (question.command.bytes == VolumeBytes::kOut) {
      auto opened = OutputFile::open(question.file);
      if (!opened) return std::move(opened).error();
      output = std::move(opened).value();
    }
    return Ok{};
  }
};

// The same on a loop.
struct Ends {
  Ends(io::Loop& loop, Files& files) {
    if (files.input) input.emplace(loop, *files.input);
    if (files.output != nullptr) output.emplace(loop, *files.output);
  }
  FileSource* source() { return input ? &*input : nullptr; }
  FileSink* sink() { return output ? &*output : nullptr; }
  void cancel() {
    if (input) input->cancel();
    if (output) output->cancel();
  }
  void finish(Result<Json>& outcome) {
    if (!output || !outcome.ok()) return;
    if (Status finished = output->finish(); !finished) outcome = std::move(finished).error();
  }
  std::optional<FileSource> input;
  std::optional<FileSink> output;
};

// As long as it is there: calls `stop` once, when it `has_reason` to.
struct Watch : io::Timer {
  Watch(io::Loop& on, std::function<bool()> has_reason_function, std::function<void()> stop_function)
      : Timer(on, [](coro::Runnable& self) { static_cast<Watch&>(self).look(); }),
        loop(on),
        has_reason(std::move(has_reason_function)),
        stop(std::move(stop_function)) {
    look();
  }
  void look() {
    if (has_reason()) return stop();
    arm(loop.now_ms() + kLookMs);
  }
  io::Loop& loop;
  std::function<bool()> has_reason;
  std::function<void()> stop;
};

// --- In this process ------------------------------------------------------------------------------------------------

// An opening of this process.
struct Opening {
  VolumeFile file;
  SharedKey key;
  bool writes = false;
  store::Wanted wanted;  // by a server that cannot begin as long as it is open here
  bool gives_way = false;
};

// An input, until a server wants the volume.
class Input final : public ByteSource {
 public:
  Input(FileSource& file, const Opening& opening) : file_(file), opening_(opening) {}

  coro::Task<Result<size_t>> read(std::span<std::byte> into) override {
    Result<size_t> got = co_await file_.read(into);
    if (!got.ok() && got.error().code == ECANCELED && opening_.gives_way)
      co_return make_error(ECANCELED, "it was ended because a server was started on the volume");
    co_return got;
  }
  void cancel() override { file_.cancel(); }

 private:
  FileSource& file_;
  const Opening& opening_;
};

coro::Task<void> ask_opened(io::Loop& loop, volume::Volume& on, Opening& opening, Running& running, const VolumeQuestion& question,
                            Files& files, Result<Json>& outcome) {
  Ends ends(loop, files);
  const auto shall_end = [&opening] {
    opening.gives_way |= !opening.gives_way && opening.wanted.is_set();
    return opening.gives_way || interrupted();
  };
  const Watch watch(loop, shall_end, [&ends] { ends.cancel(); });
  std::optional<Input> input;
  if (ends.source() != nullptr) input.emplace(*ends.source(), opening);
  VolumeWork work{.volume = on, .loop = loop, .folder = question.name.folder, .running = running, .input = input ? &*input : nullptr,
                  .output = ends.sink(), .tell = question.tell, .stopped = [&opening] { return opening.gives_way || interrupted(); }};
  Result<Json> done = co_await question.command.run(work, question.asked);
  outcome = std::move(done);
  ends.finish(outcome);
}

// What was given, or what a terminal can be asked for.
Result<SharedKey> key_for(const VolumeQuestion& question) {
  if (question.asked.is_object() && question.asked.contains("known")) return key_in(question.asked, "known");
  Result<SharedKey> key = read_key(question.keys);
  if (!key || key.value() != nullptr || !is_encrypted_volume(question.name.folder)) return key;
  Result<SharedKey> typed = ask_passphrase(fmt::format("Passphrase of {}", printable(question.name.folder)), false);
  // Without a terminal it is said that there is no key.
  return typed.ok() || typed.error().code != ENOTTY ? std::move(typed) : std::move(key);
}

coro::Task<void> ask_here(io::Loop& loop, Opening& opening, const VolumeQuestion& question, Files& files, Result<Json>& outcome) {
  const CacheMark mark = opening.file.mark;
  MachineEnvironment environment;
  const volume::VolumeOptions options = volume_options(question.name.folder, !opening.writes, mark, std::move(opening.key));
  auto opened = co_await volume::open_volume(loop, std::move(opening.file.file), options, environment);
  if (!opened.ok()) {
    outcome = opened.error();
    co_return;
  }
  const auto on = std::move(opened).value();
  if (opening.writes) mark.set();
  VolumeControl control(loop, *on, question.name.folder);
  if (opening.writes) control.start();
  co_await ask_opened(loop, *on, opening, control.running(), question, files, outcome);
  co_await control.stop();
  Status closed = co_await on->close();
  if (opening.writes) mark.clear();
  if (outcome.ok() && !closed.ok()) outcome = std::move(closed).error();
}

// --- By the socket --------------------------------------------------------------------------------------------------

// Nobody is there, or nobody who has begun with it: another one may be asked. An error says why. EBUSY before it has begun:
// as many as it answers at a time are there.
struct Answer {
  std::optional<Json> json;
  std::optional<Error> is_busy;
};
using Answered = Result<Answer>;
Answered nobody() { return Answer(); }

struct Connected {
  io::UniqueFd fd;
  pid_t process = 0;
  uid_t user = 0;
};

std::optional<Connected> connect_to(const std::string& folder) {
  const io::UniqueFd folder_fd(::open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  struct stat there{};
  if (!folder_fd.valid() || ::fstatat(folder_fd.get(), kControlName, &there, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISSOCK(there.st_mode))
    return std::nullopt;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/%s", folder_fd.get(), kControlName);
  io::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid() || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return std::nullopt;
  ucred who{};
  socklen_t length = sizeof who;
  if (::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &who, &length) != 0) return std::nullopt;
  return Connected{std::move(fd), who.pid, who.uid};
}

class Conversation {
 public:
  Conversation(io::Loop& loop, Connected with, const VolumeQuestion& question, Files& files)
      : loop_(loop), process_(with.process), question_(question), lines_(loop.make_stream(std::move(with.fd))), silence_(*this),
        ends_(loop, files) {}

  static coro::Task<void> run(io::Loop& loop, Connected with, const VolumeQuestion& question, Files& files, Answered& outcome) {
    Conversation conversation(loop, std::move(with), question, files);
    const Watch watch(loop, interrupted, [&conversation] { conversation.give_up(); });
    Answered answered = co_await conversation.converse();
    if (!answered.ok() && interrupted()) answered = make_error(ECANCELED, "it was stopped");
    outcome = std::move(answered);
  }

 private:
  // Ends the conversation when nothing has come for as long as the user lets it.
  struct Silence : io::Timer {
    explicit Silence(Conversation& conversation)
        : Timer(conversation.loop_, [](coro::Runnable& self) { static_cast<Silence&>(self).look(); }), of(conversation) {}
    // A killed process's socket outlives it for a moment, and takes connections.
    void look() {
      if (of.lines_.moved_bytes() != moved_bytes) return begin();
      is_over = of.loop_.now_ms() >= give_up_at_ms;
      if (is_over || (::kill(of.process_, 0) != 0 && errno == ESRCH)) return of.lines_.stream().shutdown();
      arm(of.loop_.now_ms() + kLookMs);
    }
    void begin() {
      moved_bytes = of.lines_.moved_bytes();
      give_up_at_ms = of.loop_.now_ms() + of.answer_ms();
      arm(of.loop_.now_ms() + kLookMs);
    }
    Conversation& of;
    uint64_t moved_bytes = 0;
    uint64_t give_up_at_ms = 0;
    bool is_over = false;
  };

  uint64_t answer_ms() const { return question_.timeout_ms.value_or(kControlAnswerMs); }

  void give_up() {
    ends_.cancel();
    lines_.stream().shutdown();
  }

  coro::Task<Answered> converse() {
    silence_.begin();
    const auto greeting = co_await lines_.line(kMaxControlQuestionBytes);
    if (!greeting.ok() && !silence_.is_over) co_return nobody();
    if (!greeting.ok())
      co_return make_error(ETIMEDOUT, "process {}, which has it open, does not answer: try again, give it longer by --timeout, or stop that "
                           "one first", process_);
    if (greeting.value().contains("error")) {
      Answer busy;
      busy.is_busy = error_in(greeting.value());
      co_return busy;
    }
    const auto version = number_in(greeting.value(), "netblk_volume");
    if (!version.ok() || version.value() != kControlVersion)
      co_return make_error(EPROTO, "process {}, which has it open, is of another version of netblk: stop it first, or use its own `netblk`",
                           process_);
    Json asking = {{"netblk_volume", kControlVersion}, {"command", question_.command.name}, {"asked", question_.asked}};
    if (question_.timeout_ms) asking["timeout_ms"] = *question_.timeout_ms;
    const Status asked = co_await lines_.say(asking);
    if (!asked.ok() && !silence_.is_over) co_return nobody();
    const auto begun = co_await lines_.line(kMaxControlQuestionBytes);
    if (!begun.ok() && silence_.is_over) co_return silent();
    if (!begun.ok()) co_return nobody();
    if (begun.value().contains("error")) co_return error_in(begun.value());
    coro::Scope giving;
    if (ends_.source() != nullptr) giving.spawn(give(*this));
    Result<Json> answer = co_await hear();
    silence_.cancel();
    if (ends_.source() != nullptr) ends_.source()->cancel();
    lines_.stream().shutdown();
    co_await giving.join();
    if (!input_.ok() && input_.error().code != ECANCELED && input_.error().code != ECONNRESET) co_return input_.error();
    ends_.finish(answer);
    if (!answer.ok()) co_return answer.error();
    Answer given;
    given.json = std::move(answer).value();
    co_return given;
  }

  Error silent() const {
    return make_error(ETIMEDOUT, "process {}, which has it open, has given no sign of life for {:g} s, and may do it yet: `netblk volume info` "
                      "and `list` tell what was done", process_, static_cast<double>(answer_ms()) / 1000);
  }

  coro::Task<Result<Json>> hear() {
    for (;;) {
      const auto line = co_await lines_.line(kMaxControlAnswerBytes);
      if (!line.ok() && silence_.is_over) co_return silent();
      if (!line.ok() && line.error().code == ECONNRESET)
        co_return make_error(ECONNRESET, "process {}, which had it open, went away before it answered: `netblk volume info` and `list` tell "
                             "what was done", process_);
      if (!line.ok()) co_return make_error(EPROTO, "process {}, which has it open, answers nonsense: {}", process_, line.error().message);
      if (line.value().contains("error")) co_return error_in(line.value());
      if (const auto answer = line.value().find("answer"); answer != line.value().end()) co_return Json(*answer);
      if (const auto progress = line.value().find("progress"); progress != line.value().end() && question_.tell) question_.tell(*progress);
      const auto bytes = number_in(line.value(), "bytes", 0);
      if (!bytes.ok() || (bytes.value() > 0 && ends_.sink() == nullptr))
        co_return make_error(EPROTO, "process {}, which has it open, answers nonsense", process_);
      std::vector<std::byte> part(std::min<size_t>(bytes.value(), kMaxControlPartBytes));
      for (uint64_t left = bytes.value(); left > 0;) {
        const auto room = std::span(part).first(std::min<size_t>(part.size(), left));
        const auto got = co_await lines_.bytes(room);
        if (!got.ok() && silence_.is_over) co_return silent();
        if (!got.ok())
          co_return make_error(ECONNRESET, "process {}, which had it open, went away before all had come, or gave up because nobody took it",
                               process_);
        left -= got.value();
        const auto come = room.first(got.value());
        // Whoever takes it may take his time.
        silence_.cancel();
        const Status written = co_await ends_.sink()->write(come);
        if (!written.ok()) co_return written.error();
        silence_.begin();
      }
    }
  }

  static coro::Task<void> give(Conversation& self) {
    std::vector<std::byte> part(kMaxControlPartBytes);
    for (;;) {
      const auto got = co_await self.ends_.source()->read(part);
      if (!got.ok()) {
        self.input_ = got.error();
        break;
      }
      const Json end = {{"bytes", 0}};
      const auto come = std::span(part).first(got.value());
      Status said = Ok{};
      if (got.value() == 0) {
        said = co_await self.lines_.say(end);
      } else {
        said = co_await self.lines_.say_bytes(come);
      }
      if (!said.ok() || got.value() == 0) co_return;
    }
    // What was given is not all of it.
    self.lines_.stream().shutdown_write();
  }

  Error error_in(const Json& line) const {
    const Json& error = line["error"];
    const auto code = number_in(error, "code", EIO);
    const auto message = text_in(error, "message", "it gives no reason");
    return Error{code.ok() ? static_cast<int>(code.value()) : EIO, message.ok() ? message.value() : "it gives no reason"};
  }

  io::Loop& loop_;
  const pid_t process_;
  const VolumeQuestion& question_;
  ControlStream lines_;
  Silence silence_;
  Ends ends_;
  Status input_ = Ok{};
};

Answered ask_other(io::Backend& backend, const VolumeQuestion& question, Files& files) {
  auto with = connect_to(question.name.folder);
  if (!with) return nobody();
  // Who may write in the folder may listen there, and is no friend for that.
  if (question.asked.is_object() && question.asked.contains("known") && with->user != 0 && with->user != ::geteuid())
    return make_error(EPERM, "process {} of user {} listens at its socket, and is told no key of user {}: ask as that user, or stop that process",
                      with->process, with->user, ::geteuid());
  Answered outcome = nobody();
  Status ran = run_on_loop(backend, [&](io::Loop& loop) { return Conversation::run(loop, std::move(*with), question, files, outcome); });
  if (!ran) return std::move(ran).error();
  return outcome;
}

Error about(const VolumeQuestion& question, const Error& error) {
  return make_error(error.code, "{}: {}", question.name.folder, error.message);
}

// For writing, where others can be served meanwhile.
Result<Opening> open_here(io::Backend& backend, const VolumeQuestion& question) {
  bool writes = question.command.writes || question.command.serves;
  const auto open = [&] {
    return open_volume_file(backend, question.name.folder, {.read_only = !writes, .keys = {}, .on_wait = {}, .stop_waiting = {}});
  };
  auto file = open();
  if (!file && !question.command.writes && (file.error().code == EACCES || file.error().code == EROFS)) {
    writes = false;
    file = open();
  }
  if (!file) return std::move(file).error();
  return Opening{.file = std::move(file).value(), .key = {}, .writes = writes, .wanted = store::Wanted(question.name.folder + "/data")};
}

// Whether what has been written can be taken back.
bool begins_anew(const Files& files) {
  return files.output == nullptr || files.output->begin_anew();
}

}  // namespace

Result<Json> ask_volume(const VolumeQuestion& question) {
  catch_interrupts();
  // What is the user's to know is in the answer, or in the error.
  set_log_level(LogLevel::kWarning);
  auto backend = make_backend();
  if (!backend) return std::move(backend).error();
  const io::SteadyClock clock;
  const uint64_t wait_ms = question.timeout_ms.value_or(limits::kStoreLockWaitMs);
  const Error stopped = make_error(ECANCELED, "{}: it was stopped", question.name.folder);
  Files files;
  if (Status opened = files.open(question); !opened) return std::move(opened).error();
  uint64_t give_up_at = clock.now_ms() + wait_ms;
  std::optional<SharedKey> key;
  if (question.key != nullptr) key = question.key;
  for (;; ::usleep(kAgainMs * 1000)) {
    auto answered = ask_other(*backend.value(), question, files);
    if (!answered) return about(question, answered.error());
    if (answered.value().json) return std::move(*answered.value().json);
    if (interrupted()) return stopped;
    if (answered.value().is_busy) {
      if (clock.now_ms() >= give_up_at) return about(question, *answered.value().is_busy);
      continue;
    }
    // A terminal is asked while nobody is kept from the volume, and whoever has come meanwhile needs no key.
    if (!key) {
      auto given = key_for(question);
      if (!given) return about(question, given.error());
      key = std::move(given).value();
      give_up_at = clock.now_ms() + wait_ms;
      continue;
    }
    auto opening = open_here(*backend.value(), question);
    if (!opening.ok()) {
      // It may be about to listen, or to let go.
      if (opening.error().code != EAGAIN || clock.now_ms() >= give_up_at) return std::move(opening).error();
      continue;
    }
    opening.value().key = *key;
    Result<Json> outcome = Json();
    const Status ran =
        run_on_loop(*backend.value(), [&](io::Loop& loop) { return ask_here(loop, opening.value(), question, files, outcome); });
    if (!ran) return ran.error();
    const bool gave_way = !outcome.ok() && opening.value().gives_way && !interrupted();
    if (!gave_way && !outcome.ok()) return about(question, outcome.error());
    if (!gave_way) return outcome;
    // What a receive says of its end is how to go on with it.
    if (question.command.bytes == VolumeBytes::kIn) return about(question, outcome.error());
    if (!begins_anew(files))
      return make_error(EAGAIN, "{}: it was ended because a server was started on the volume: run it again, and that server does it",
                        question.name.folder);
    give_up_at = clock.now_ms() + wait_ms;
  }
}

}  // namespace netblk::tools
