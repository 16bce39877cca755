// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_copy.h"

#include <cerrno>
#include <optional>
#include <utility>

#include "backend.h"
#include "base/log.h"
#include "command_line.h"
#include "copy_engine.h"
#include "copy_ends.h"
#include "copy_state.h"
#include "interrupt.h"
#include "progress.h"

namespace netblk::tools {
namespace {

class Copying {
 public:
  Copying(const CopyArguments& arguments, io::Backend& backend, io::Loop& loop)
      : arguments_(arguments), backend_(backend), loop_(loop) {}

  coro::Task<void> run();
  const Status& outcome() const { return outcome_; }

 private:
  coro::Task<Status> copy();
  uint64_t prepare_state();
  void checkpoint(uint64_t done_bytes);
  bool tick(Progress& progress, uint64_t done_bytes);
  std::string reasons() const;

  const CopyArguments& arguments_;
  io::Backend& backend_;
  io::Loop& loop_;
  CopyEnd source_, target_;
  std::optional<CopyStateFile> file_;
  CopyState state_;
  std::string source_version_;
  Status outcome_ = Ok{};
};

coro::Task<void> Copying::run() {
  const EndOptions options{.force = arguments_.force, .connections = arguments_.connections, .timeout_ms = arguments_.timeout_ms,
                           .trust_reconnect = arguments_.reconnect == "trust"};
  auto source = co_await open_source(backend_, loop_, arguments_.source, options);
  if (!source) {
    outcome_ = std::move(source).error();
    co_return;
  }
  source_ = std::move(source).value();
  auto target = co_await open_target(backend_, loop_, arguments_.target, source_, options);
  if (!target) {
    outcome_ = std::move(target).error();
  } else {
    target_ = std::move(target).value();
    outcome_ = co_await copy();
  }
  co_await target_.close();
  co_await source_.close();
}

// Where to begin.
uint64_t Copying::prepare_state() {
  if (source_.pipe || target_.pipe) {
    if (arguments_.resume) note("--resume means nothing where one end is a pipe: copying from the start");
    return 0;
  }
  auto opened = CopyStateFile::open(arguments_.target);
  if (!opened) {
    // Two copies at once would make a mixture.
    if (opened.error().code == EBUSY) {
      outcome_ = std::move(opened).error();
    } else {
      note(opened.error().message + ": the copy cannot be resumed");
    }
    return 0;
  }
  file_ = std::move(opened).value();
  const auto before = file_->load();
  state_ = {.source = source_.name,
            .target = target_.name,
            .source_identity = source_.identity,
            .source_version = source_version_,
            .target_identity = target_.identity,
            .fresh = target_.fresh,
            .done_bytes = 0};
  if (!before && arguments_.resume) note("no unfinished copy to this target: copying from the start");
  if (!before || !arguments_.resume) return 0;
  const char* changed = nullptr;
  if (before->source != state_.source || before->source_identity != state_.source_identity)
    changed = "the unfinished copy was from another source";
  else if (before->source_version != state_.source_version)
    changed = "the source has changed since";
  else if (before->target_identity != state_.target_identity || target_.fresh)
    changed = "the target is another one now";
  else if (source_.size_bytes && before->done_bytes > *source_.size_bytes)
    changed = "the unfinished copy went further than the source reaches";
  if (changed != nullptr) {
    note(fmt::format("{}: copying from the start", changed));
    return 0;
  }
  state_.fresh = before->fresh;
  target_.fresh = before->fresh;
  state_.done_bytes = before->done_bytes;
  return before->done_bytes;
}

void Copying::checkpoint(uint64_t done_bytes) {
  state_.done_bytes = done_bytes;
  if (!file_) return;
  if (auto saved = file_->save(state_); !saved) {
    note(saved.error().message + ": the copy cannot be resumed");
    file_.reset();
  }
}

bool Copying::tick(Progress& progress, uint64_t done_bytes) {
  const bool waiting = (source_.served && !source_.served->is_connected()) ||
                       (target_.served && !target_.served->is_connected());
  progress.show(done_bytes, waiting ? "waiting for the server" : "");
  return interrupted();
}

std::string Copying::reasons() const {
  std::string text;
  for (const CopyEnd* end : {&source_, &target_})
    if (end->served && !end->served->reason().empty()) text += fmt::format(" ({})", end->served->reason());
  return text;
}

coro::Task<Status> Copying::copy() {
  source_version_ = source_.version();
  CopyPlan plan;
  plan.start_at = prepare_state();
  if (!outcome_) co_return outcome_;
  plan.source = source_.as_source();
  plan.target = target_.as_target();
  if (file_) plan.on_checkpoint = [this](uint64_t done_bytes) { checkpoint(done_bytes); };
  Status copied = Ok{};
  uint64_t bytes = 0;
  {
    Progress progress(source_.size_bytes, plan.start_at);
    plan.on_tick = [this, &progress](uint64_t done_bytes) { return tick(progress, done_bytes); };
    Copy copy(loop_, std::move(plan));
    copied = co_await copy.run();
    bytes = copy.copied_bytes();
  }
  if (!copied) {
    const std::string what = copied.error().message + reasons();
    if (file_ && state_.done_bytes > 0)
      co_return make_error(copied.error().code, "{}; {} bytes are copied and safe: go on with --resume", what, state_.done_bytes);
    co_return make_error(copied.error().code, "{}", what);
  }
  if (target_.served && !target_.served->facts().can_flush)
    note(fmt::format("{} has no flush: whether the copy would survive a crash of the server is not known", target_.name));
  if (file_) file_->remove();
  if (source_.file.valid() && source_.version() != source_version_)
    co_return make_error(EAGAIN, "{} was changed while it was copied, so the copy is a mixture: copy it again when nobody "
                                 "writes to it", source_.name);
  Status settled = target_.settle(bytes);
  co_return settled;
}

}  // namespace

int run_copy(const CopyArguments& arguments) {
  for (const std::string& text : {arguments.source, arguments.target})
    if (looks_like_uri(text))
      if (const auto uri = parse_server_uri(text); !uri) return fail(kMalformed, uri.error().message);
  catch_interrupts();
  // What goes wrong on the way is told at the end, in one line.
  set_log_level(LogLevel::kOff);
  auto backend = make_backend();
  if (!backend) return fail(kFailed, backend.error().message);
  const io::SteadyClock clock;
  auto loop = backend.value()->make_loop(clock);
  if (!loop) return fail(kFailed, loop.error().message);
  Copying copying(arguments, *backend.value(), *loop.value());
  loop.value()->run(copying.run());
  return copying.outcome() ? 0 : fail(kFailed, copying.outcome().error().message);
}

}  // namespace netblk::tools
