// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_ublk.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <utility>

#include "attach/ublk/ublk_disk.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/parse.h"
#include "io/uring/uring_backend.h"
#include "netblk_helper_life.h"
#include "netblk_helper_told.h"
#include "netblk_helper_ublk_source.h"
#include "netblk_names.h"
#include "netblk_state.h"

namespace netblk::tools {
namespace {

using nlohmann::json;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr uint32_t kDepth = 128;
// For each request there is memory, locked.
constexpr uint32_t kMaxIoBytes = 256u << 10;
// Between two looks at what may change by itself: size, generation, loss.
constexpr uint64_t kLookPeriodMs = 1000;
constexpr milliseconds kPause{20};
// Until the kernel has finished with the helper before: Linux 6.1 looks every 5 s whether it lives.
constexpr milliseconds kRecoveryWithin{60'000};

class UblkHelper {
 public:
  UblkHelper(const Source& source, const UblkOptions& options) : source_text_(source), options_(options) {}
  UblkHelper(const UblkHelper&) = delete;
  UblkHelper& operator=(const UblkHelper&) = delete;
  ~UblkHelper();

  Status attach();
  Status take_over(const Record& orphan);
  void serve();
  void withdraw();
  const std::string& device() const { return record_.device; }

 private:
  Status open_control();
  Status open_source();
  Status add();
  Status begin();
  Status same_disk();
  Status judge_loss();
  Status recover();
  Status serve_queue(const attach::UblkInfo& info);
  void look();
  void look_at_size();
  std::string reset();
  json live_state();
  void end();
  uint32_t number() const { return static_cast<uint32_t>(record_.ublk.number); }

  const Source source_text_;
  const UblkOptions options_;
  HelperLife life_;  // the event: the kernel has given the queue back
  Record& record_ = life_.record;
  bool added_ = false;   // the kernel has a disk that is ours to take away
  std::optional<attach::UblkControl> control_;
  std::optional<ToldFile> told_;
  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  std::unique_ptr<HelperDisk> source_;
  std::unique_ptr<attach::UblkDisk> disk_;
};

Status UblkHelper::attach() {
  Status done = life_.begin("ublk", source_text_, options_.disk);
  if (done) done = open_control();
  if (done) done = open_source();
  if (done) done = add();
  if (done) done = begin();
  return done;
}

Status UblkHelper::take_over(const Record& orphan) {
  Status done = life_.take_over(source_text_, orphan);
  if (done) done = open_control();
  if (done) done = open_source();
  if (done) done = same_disk();
  if (done) done = judge_loss();
  if (done) done = recover();
  if (!done) life_.leave_record();  // the disk stays as it was
  return done;
}

Status UblkHelper::open_control() {
  auto control = attach::UblkControl::open();
  if (!control) return std::move(control).error();
  control_.emplace(std::move(control).value());
  auto told = ToldFile::open(record_.told_file());
  if (!told) return std::move(told).error();
  told_.emplace(std::move(told).value());
  return Ok{};
}

Status UblkHelper::open_source() {
  auto backend = io::make_uring_backend();
  if (!backend) return std::move(backend).error();
  backend_ = std::move(backend).value();
  auto source = open_ublk_source(*backend_, clock_, source_text_, options_.disk, told_->unflushed());
  if (!source) return std::move(source).error();
  source_ = std::move(source).value();
  return Ok{};
}

// Takes a number. The record names it before the kernel knows it, so that none is left behind by a sudden end.
Status UblkHelper::add() {
  const Id random = random_id();
  std::memcpy(&record_.ublk.mark, random.bytes.data(), sizeof record_.ublk.mark);
  const attach::UblkSetup setup{.depth = kDepth,
                                .max_io_bytes = kMaxIoBytes,
                                .recovers = source_text_.survives_helper(),
                                .mark = record_.ublk.mark};
  for (uint32_t next = options_.number.value_or(0);; ++next) {
    if (!options_.number && ::access(fmt::format("/sys/class/ublk-char/ublkc{}", next).c_str(), F_OK) == 0) continue;
    record_.ublk.number = next;
    Status done = write_record(record_);
    if (!done) return done;
    done = control_->add(next, setup);
    if (done) break;
    if (done.error().code != EEXIST) return done;
    if (options_.number)
      return make_error(EBUSY, "{} is in use: detach it, or leave --device out", attach::ublk_node(next));
  }
  added_ = true;
  return Ok{};
}

Status UblkHelper::begin() {
  auto info = control_->info(number());
  if (!info) return std::move(info).error();
  attach::UblkTraits traits = ublk_traits(*source_);
  traits.max_io_bytes = info.value().max_io_bytes;
  traits.read_only = traits.read_only || options_.disk.read_only;
  record_.size_bytes = traits.size_bytes;
  see_contents(record_, source_->generation());
  Status done = control_->set_traits(number(), traits);
  if (done) done = serve_queue(info.value());
  if (done) done = control_->start(number());
  if (!done) return done;
  record_.device = attach::ublk_node(number());
  return write_record(record_);
}

Status UblkHelper::serve_queue(const attach::UblkInfo& info) {
  auto disk = attach::UblkDisk::serve(source_->device(), source_->loop(),
                                      {.number = number(),
                                       .depth = info.depth,
                                       .max_io_bytes = info.max_io_bytes,
                                       .encoded = control_->encoded(),
                                       .told = &told_->told()},
                                      [fd = life_.event.get()] { raise_event(fd); });
  if (!disk) return std::move(disk).error();
  disk_ = std::move(disk).value();
  if (record_.seen.lost) disk_->set_lost(true);
  return Ok{};
}

// Whether the source is still what the users of the disk know.
Status UblkHelper::same_disk() {
  const attach::UblkTraits traits = ublk_traits(*source_);
  if (traits.size_bytes < record_.size_bytes)
    return make_error(EIO, "{} has {} bytes now, and had {}; detach {} and attach it anew", record_.server, traits.size_bytes,
                      record_.size_bytes, record_.device);
  const auto logical = parse_unsigned(
      read_text(fmt::format("/sys/block/ublkb{}/queue/logical_block_size", number())), 1, limits::kMaxRequestBytes);
  if (logical && *logical < traits.logical_bytes)
    return make_error(EIO, "{} has blocks of {} bytes now, and had {}; detach {} and attach it anew", record_.server,
                      traits.logical_bytes, *logical, record_.device);
  if (traits.volatile_cache && read_text(fmt::format("/sys/block/ublkb{}/queue/write_cache", number())) == "write through")
    return make_error(EIO, "{} has a cache now that needs flushes, and had none; detach {} and attach it anew", record_.server,
                      record_.device);
  if (traits.read_only && !record_.given.read_only)
    return make_error(EROFS, "{} is read-only now; detach {} and attach it anew", record_.server, record_.device);
  return Ok{};
}

Status UblkHelper::judge_loss() {
  const uint64_t unflushed = told_->unflushed();
  const auto generation = source_->generation();
  if (!generation && record_.seen.store_uuid.empty() && unflushed != 0 && ublk_traits(*source_).volatile_cache &&
      source_text_.is_nbd() && !options_.disk.trust_reconnect) {
    set_lost(record_, fmt::format("a helper died with {} acknowledged changes that were not flushed: NBD does not tell whether "
                                  "the server still has them", unflushed));
    return write_record(record_);
  }
  return judge_successor(record_, generation, unflushed);
}

Status UblkHelper::recover() {
  const auto end = steady_clock::now() + kRecoveryWithin;
  for (;;) {
    Status begun = control_->begin_recovery(number());
    if (begun) break;
    auto info = control_->info(number());
    if (!info) return std::move(info).error();
    // A helper that died between the two halves of a recovery leaves its first half done.
    if (begun.error().code == EINVAL && info.value().state == attach::UblkState::kQuiesced) break;
    if (info.value().state == attach::UblkState::kDead) return make_error(ENODEV, "{} was stopped meanwhile", record_.device);
    if (begun.error().code != EBUSY || steady_clock::now() >= end) return begun;
    std::this_thread::sleep_for(kPause);
  }
  auto info = control_->info(number());
  if (!info) return std::move(info).error();
  Status done = serve_queue(info.value());
  if (done) done = control_->end_recovery(number());
  if (!done) return done;
  added_ = true;
  return Ok{};
}

// The kernel gives the queue back; nobody holds the character device; the number is free again.
void UblkHelper::end() {
  if (disk_) {
    pollfd ended{life_.event.get(), POLLIN, 0};
    while (::poll(&ended, 1, -1) < 0) {
    }
    disk_.reset();
  }
  if (!std::exchange(added_, false)) return;
  for (;;) {
    Status removed = remove_ublk_disk(*control_, number(), 200);
    if (removed || removed.error().code == ENODEV) return;
    pollfd signalled{life_.signals.get(), POLLIN, 0};
    if (removed.error().code == EBUSY && ::poll(&signalled, 1, 0) == 0) continue;
    log_warning("{}; `netblk status` removes it later", removed.error().message);
    life_.leave_record();
    return;
  }
}

void UblkHelper::withdraw() {
  if (!added_ || !control_) return;
  Status stopped = control_->stop(number());
  if (stopped) return end();
  // Not stopped, it waits for another helper; without its mark in the kernel it would be nobody's.
  log_error("{}", stopped.error().message);
  ::_exit(1);
}

UblkHelper::~UblkHelper() {
  withdraw();
  // A recovery that failed half-way: only the end of this process gives the queue back.
  if (disk_) ::_exit(1);
}

void UblkHelper::look_at_size() {
  source_->refresh();
  life_.follow_size(source_->device().size_bytes(),
                    [this](uint64_t size_bytes) { return control_->resize(number(), size_bytes); });
}

// What a successor has to know is written down.
void UblkHelper::look() {
  look_at_size();
  // The generation first: an older one beside a loss is judged once more, a newer one without its loss would hide it.
  const auto generation = source_->generation();
  note_contents(record_, generation, source_->live_state());
  if (disk_ && record_.seen.lost) disk_->set_lost(true);
}

std::string UblkHelper::reset() {
  look();
  const std::string answer = source_->reset_lost(record_.device);
  if (!record_.seen.lost) return answer;
  record_.seen.lost = false;
  record_.seen.lost_why.clear();
  (void)write_record(record_);
  disk_->set_lost(false);
  if (answer == "nothing") log_warning("{}: the owner has taken note of the loss", record_.device);
  return "ok";
}

json UblkHelper::live_state() {
  json live = source_->live_state();
  live["size_bytes"] = record_.size_bytes;
  // The kernel counts what its users had, from all helpers.
  live.erase("read_bytes");
  live.erase("write_bytes");
  if (record_.seen.lost) {
    live["lost"] = true;
    live["lost_why"] = record_.seen.lost_why;
  }
  if (live.value("last_error", "").empty()) live["last_error"] = life_.size_note();
  return live;
}

void UblkHelper::serve() {
  auto watched = life_.watched();
  uint64_t look_at_ms = clock_.now_ms() + kLookPeriodMs;
  for (;;) {
    // By the clock, not when nothing else happens: who asks for the state all the time has to be told of changes, too.
    const uint64_t now_ms = clock_.now_ms();
    if (now_ms >= look_at_ms) {
      look();
      look_at_ms = clock_.now_ms() + kLookPeriodMs;
      continue;
    }
    if (::poll(watched.data(), watched.size(), static_cast<int>(look_at_ms - now_ms)) <= 0) continue;
    if ((watched[1].revents & POLLIN) != 0) {
      log_info("{} is detached", record_.device);
      break;
    }
    if ((watched[0].revents & POLLIN) != 0 && life_.may_end_on_signal()) {
      if (Status written = write_back(record_.device); !written) log_warning("{}", written.error().message);
      break;
    }
    if ((watched[2].revents & POLLIN) != 0)
      life_.control->answer([this](const std::string& word) {
        if (word == "reset") return reset();
        return live_state().dump(-1, ' ', false, json::error_handler_t::replace);
      });
  }
  // Before its number is free for another.
  forget_names_of(record_.device);
  withdraw();
}

}  // namespace

Status remove_ublk_disk(attach::UblkControl& control, uint32_t number, uint64_t timeout_ms) {
  const auto end = steady_clock::now() + milliseconds(timeout_ms);
  for (;;) {
    auto held = control.is_held(number);
    if (!held) return std::move(held).error();
    if (!held.value()) return control.remove(number);
    if (steady_clock::now() >= end)
      return make_error(EBUSY, "{} is stopped, but still open somewhere: it goes at the last close", attach::ublk_node(number));
    std::this_thread::sleep_for(kPause);
  }
}

int run_ublk_helper(const Source& source, const UblkOptions& options, const Record* orphan, HelperParent& parent) {
  UblkHelper helper(source, options);
  Status begun = orphan != nullptr ? helper.take_over(*orphan) : helper.attach();
  if (!begun) {
    parent.failed(begun.error());
    return 1;
  }
  if (!parent.started(helper.device()) && orphan == nullptr) return 1;  // nobody waits for the disk any more
  log_info("{} is {}", helper.device(), source.text);
  helper.serve();
  return 0;
}

}  // namespace netblk::tools
