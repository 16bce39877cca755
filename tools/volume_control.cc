// SPDX-License-Identifier: GPL-2.0-only
#include "volume_control.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/log.h"
#include "command_line.h"
#include "control_stream.h"
#include "volume_command.h"

namespace netblk::tools {
namespace {

constexpr uint64_t kNoDescriptorPauseMs = 100;
constexpr uint64_t kDrainMs = 5'000;
constexpr int kBacklog = 64;

// Which command is asked for.
Result<const VolumeCommand*> understood(const Result<Json>& question) {
  if (!question.ok()) return question.error();
  const auto version = number_in(question.value(), "netblk_volume");
  const auto name = text_in(question.value(), "command");
  if (!version.ok() || version.value() != kControlVersion || !name.ok())
    return make_error(EPROTO, "what came by its socket is no question of version {}", kControlVersion);
  const VolumeCommand* const command = find_volume_command(name.value());
  if (command == nullptr)
    return make_error(EOPNOTSUPP, "process {}, which has it open, does not know '{}': it is of another version of netblk", ::getpid(),
                      printable(name.value()));
  return command;
}

Json error_json(const Error& error) { return {{"error", {{"code", error.code}, {"message", error.message}}}}; }

}  // namespace

// One connection: one question, one answer.
struct VolumeControl::Caller final : ByteSource, ByteSink {
  Caller(VolumeControl& of, std::unique_ptr<io::Stream> connected, const ucred& credentials)
      : control(of), lines(std::move(connected)), who(credentials), deadline(*this), alive(*this) {}

  // Ends the conversation when its time is over, or when nothing has moved for as long.
  struct Deadline : io::Timer {
    explicit Deadline(Caller& caller)
        : Timer(caller.control.loop_, [](coro::Runnable& self) { static_cast<Deadline&>(self).look(); }), of(caller) {}
    void begin(uint64_t most_ms, bool while_still = false) {
      is_while_still = while_still && !of.control.stopping_;
      wait_ms = of.control.stopping_ ? kDrainMs : most_ms;
      moved_bytes = of.lines.moved_bytes();
      arm(of.control.loop_.now_ms() + wait_ms);
    }
    void look() {
      if (is_while_still && of.lines.moved_bytes() != moved_bytes) return begin(wait_ms, true);
      if (is_while_still)
        log_warning("{}: process {} has neither given nor taken anything for {:g} s, and is given up", of.control.folder_, of.who.pid,
                    static_cast<double>(wait_ms) / 1000);
      of.lines.stream().shutdown();
    }
    Caller& of;
    bool is_while_still = false;
    uint64_t wait_ms = 0;
    uint64_t moved_bytes = 0;
  };
  // Says now and then that it is still being done, and so finds out who has gone.
  struct Alive : io::Timer {
    explicit Alive(Caller& caller)
        : Timer(caller.control.loop_, [](coro::Runnable& self) { static_cast<Alive&>(self).tell(); }), of(caller) {}
    void tell() {
      of.lines.tell({{"progress", Json::object()}});
      arm(of.control.loop_.now_ms() + std::min(kControlAliveMs, of.stall_ms / 4));
    }
    Caller& of;
  };

  VolumeControl& control;
  ControlStream lines;
  const ucred who;
  Deadline deadline;
  Alive alive;
  uint64_t stall_ms = kControlStallMs;
  bool is_asking = true;   // its question is not here yet
  bool gives_bytes = false;
  bool is_answered = false;
  uint64_t part_left = 0;  // of a part of its input
  bool input_ended = false;

  bool stopped() const { return lines.is_gone() || control.stopping_; }

  coro::Task<bool> say(const Json& object) {
    deadline.begin(kControlAnswerMs);
    const Status said = co_await lines.say(object);
    deadline.cancel();
    co_return said.ok();
  }

  coro::Task<Result<size_t>> read(std::span<std::byte> into) override {
    deadline.begin(stall_ms, true);
    Result<size_t> got = co_await read_parts(into);
    deadline.cancel();
    co_return got;
  }
  coro::Task<Result<size_t>> read_parts(std::span<std::byte> into) {
    size_t got = 0;
    while (got < into.size() && !input_ended) {
      if (part_left == 0) {
        const auto head = co_await lines.line(kMaxControlQuestionBytes);
        if (!head.ok()) co_return head.error();
        const auto bytes = number_in(head.value(), "bytes");
        if (!bytes.ok() || bytes.value() > kMaxControlPartBytes) co_return make_error(EPROTO, "the input's parts make no sense");
        part_left = bytes.value();
        input_ended = part_left == 0;
        continue;
      }
      const auto room = into.subspan(got, static_cast<size_t>(std::min<uint64_t>(part_left, into.size() - got)));
      const auto part = co_await lines.bytes(room);
      if (!part.ok()) co_return part.error();
      part_left -= part.value();
      got += part.value();
    }
    co_return got;
  }
  void cancel() override { lines.stream().shutdown_read(); }

  coro::Task<Status> write(std::span<const std::byte> from) override {
    deadline.begin(stall_ms, true);
    Status said = co_await lines.say_bytes(from);
    deadline.cancel();
    co_return said;
  }

  // Of a command that reads nothing: what ends may be the writing half only, and somebody waits for the answer.
  static coro::Task<void> watch(Caller& caller) {
    co_await caller.lines.drain();
    if (!caller.is_answered) caller.alive.tell();
  }
};

VolumeControl::VolumeControl(io::Loop& loop, store::volume::Volume& volume, std::string folder, VolumeUsers* users)
    : loop_(loop), volume_(volume), folder_(std::move(folder)), users_(users) {}

VolumeControl::~VolumeControl() = default;

// --- Listening ------------------------------------------------------------------------------------------------------

Status VolumeControl::listen() {
  const std::string path = folder_ + "/" + kControlName;
  const auto failed = [&](int error) { return make_error(error, "cannot listen on {}: {}", path, errno_text(error)); };
  folder_fd_ = io::UniqueFd(::open(folder_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!folder_fd_.valid()) return failed(errno);
  struct stat there{};
  if (::fstatat(folder_fd_.get(), kControlName, &there, AT_SYMLINK_NOFOLLOW) == 0) {
    if (!S_ISSOCK(there.st_mode)) return make_error(EEXIST, "cannot listen on {}: it is there, and no socket: remove it", path);
    if (::unlinkat(folder_fd_.get(), kControlName, 0) != 0 && errno != ENOENT) return failed(errno);
  }
  // However long the folder's path is.
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::snprintf(address.sun_path, sizeof address.sun_path, "/proc/self/fd/%d/%s", folder_fd_.get(), kControlName);
  io::UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return failed(errno);
  // The file is made with these bits, less the umask: there is no moment at which more people may connect.
  if (::fchmod(fd.get(), 0600) != 0) return failed(errno);
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return failed(errno);
  if (::fstatat(folder_fd_.get(), kControlName, &there, AT_SYMLINK_NOFOLLOW) != 0 || ::listen(fd.get(), kBacklog) != 0) {
    const int error = errno;
    ::unlinkat(folder_fd_.get(), kControlName, 0);
    return failed(error);
  }
  device_ = there.st_dev;
  inode_ = there.st_ino;
  listener_ = loop_.make_listener(std::move(fd));
  return Ok{};
}

void VolumeControl::start() {
  const Status listening = listen();
  if (listening.ok()) {
    scope_.spawn(accept_all(*this));
  } else {
    log_warning("{}: `netblk volume` cannot reach this process: {}", folder_, listening.error().message);
  }
}

coro::Task<void> VolumeControl::stop() {
  stopping_ = true;
  if (listener_ != nullptr) {
    // Nobody who connects from now on finds it; who has connected and asked nothing asks whoever has the volume next.
    struct stat there{};
    if (::fstatat(folder_fd_.get(), kControlName, &there, AT_SYMLINK_NOFOLLOW) == 0 && there.st_dev == device_ && there.st_ino == inode_)
      ::unlinkat(folder_fd_.get(), kControlName, 0);
    listener_->shutdown();
  }
  for (const auto& caller : callers_) {
    if (caller->is_asking || caller->gives_bytes) caller->lines.stream().shutdown_read();
    caller->deadline.begin(kDrainMs);
  }
  co_await scope_.join();
}

// Of those that have not asked yet the oldest gives way.
bool VolumeControl::make_room() {
  if (callers_.size() < kMaxControlConnections) return true;
  const auto idle = std::find_if(callers_.begin(), callers_.end(), [](const auto& each) { return each->is_asking; });
  if (idle != callers_.end()) (*idle)->lines.stream().shutdown();
  return idle != callers_.end() && callers_.size() < 2 * kMaxControlConnections;
}

// Instead of a greeting.
void VolumeControl::say_busy(int fd) const {
  const Error busy = make_error(EBUSY, "process {}, which has it open, is busy with {} other commands: try again, or end one of them",
                                ::getpid(), kMaxControlConnections);
  const std::string text = error_json(busy).dump() + "\n";
  (void)!::send(fd, text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

coro::Task<void> VolumeControl::accept_all(VolumeControl& control) {
  for (;;) {
    const int32_t accepted = co_await io::accept(*control.listener_);
    if (accepted == -ECANCELED) co_return;
    if (control.stopping_) {
      if (accepted >= 0) ::close(accepted);
      co_return;
    }
    if (accepted < 0) {
      io::SleepUntil pause(control.loop_, control.loop_.now_ms() + kNoDescriptorPauseMs);
      co_await pause;
      continue;
    }
    io::UniqueFd fd(accepted);
    ucred who{};
    socklen_t length = sizeof who;
    const bool known = ::getsockopt(fd.get(), SOL_SOCKET, SO_PEERCRED, &who, &length) == 0;
    if (!known || (who.uid != 0 && who.uid != ::geteuid())) {
      log_warning("{}: process {} of user {} was refused at its socket", control.folder_, who.pid, who.uid);
      continue;
    }
    if (!control.make_room()) {
      control.say_busy(fd.get());
      continue;
    }
    auto stream = control.loop_.make_stream(std::move(fd));
    control.callers_.push_back(std::make_unique<Caller>(control, std::move(stream), who));
    control.scope_.spawn(answer(control, *control.callers_.back()));
  }
}

// --- A conversation -------------------------------------------------------------------------------------------------

coro::Task<void> VolumeControl::answer(VolumeControl& control, Caller& caller) {
  co_await control.converse(caller);
  control.callers_.remove_if([&](const auto& each) { return each.get() == &caller; });
}

coro::Task<void> VolumeControl::converse(Caller& caller) {
  const Json greeting = {{"netblk_volume", kControlVersion}, {"process", ::getpid()}};
  bool said = co_await caller.say(greeting);
  if (!said) co_return;
  caller.deadline.begin(kControlQuestionMs);
  const auto question = co_await caller.lines.line(kMaxControlQuestionBytes);
  caller.deadline.cancel();
  if (stopping_ || (!question.ok() && question.error().code == ECONNRESET)) co_return;
  caller.is_asking = false;
  const auto command = understood(question);
  if (!command.ok()) {
    const Json refusal = error_json(command.error());
    said = co_await caller.say(refusal);
    co_return;
  }
  // Who has not heard this, and no refusal, asks again, here or elsewhere.
  const Json begun = {{"begun", true}};
  said = co_await caller.say(begun);
  if (!said) co_return;
  co_await obey(caller, *command.value(), question.value());
}

coro::Task<void> VolumeControl::obey(Caller& caller, const VolumeCommand& command, const Json& question) {
  if (command.writes) log_info("{}: {}, asked by process {} of user {}", folder_, command.name, caller.who.pid, caller.who.uid);
  const auto asked = question.find("asked");
  const Json nothing = Json::object();
  const auto timeout_ms = number_in(question, "timeout_ms", kControlStallMs);
  if (timeout_ms.ok()) caller.stall_ms = std::clamp(timeout_ms.value(), kMinControlStallMs, kMaxControlStallMs);
  caller.gives_bytes = command.bytes == VolumeBytes::kIn;
  coro::Scope watching;
  if (!caller.gives_bytes) watching.spawn(Caller::watch(caller));
  VolumeWork work{.volume = volume_, .loop = loop_, .folder = folder_, .running = running_, .served = true, .users = users_};
  if (caller.gives_bytes) work.input = &caller;
  if (command.bytes == VolumeBytes::kOut) work.output = &caller;
  work.tell = [&caller](const Json& progress) { caller.lines.tell({{"progress", progress}}); };
  work.stopped = [&caller] { return caller.stopped(); };
  const Json& what = asked == question.end() ? nothing : *asked;
  caller.alive.tell();
  const Result<Json> done = co_await command.run(work, what);
  caller.alive.cancel();
  caller.is_answered = true;
  const Json answer = done.ok() ? Json{{"answer", done.value()}} : error_json(done.error());
  const bool said = co_await caller.say(answer);
  if (!said) log_info("{}: {}: who asked has gone", folder_, command.name);
  caller.lines.stream().shutdown_read();
  co_await watching.join();
}

}  // namespace netblk::tools
