// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_nbd.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <climits>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "attach/nbd_netlink/nbd_netlink.h"
#include "backend.h"
#include "base/limits.h"
#include "base/log.h"
#include "netblk_helper_keeper.h"
#include "netblk_helper_life.h"
#include "netblk_helper_peer.h"
#include "netblk_helper_told.h"
#include "netblk_names.h"
#include "netblk_state.h"
#include "protocol/nbd_wire.h"

namespace netblk::tools {
namespace {

using nlohmann::json;

// Stores of this machine are read and written by the helper.
constexpr unsigned kFileThreads = 4;
// The kernel counts in ticks, at most 1200 in a second, in a `long`: of 32 bits that is 20 days.
constexpr uint64_t kMaxKernelSeconds = LONG_MAX / 1200;
// How long one attempt may take without --timeout.
constexpr uint64_t kConnectTimeoutMs = 5000;
// Between two looks at what may change by itself: size, generation, loss.
constexpr uint64_t kLookPeriodMs = 1000;

uint64_t seconds(uint64_t ms) { return std::max((ms + 999) / 1000, uint64_t{1}); }

class NbdHelper {
 public:
  NbdHelper(const Source& source, const NbdOptions& options) : source_(source), options_(options) {}

  Status attach(HelperParent& parent);
  Status take_over(const Record& orphan);
  void serve();
  void withdraw();
  const std::string& device() const { return record_.device; }

 private:
  Status listen_to_kernel();
  Status open_peer();
  Status connect(HelperParent& parent);
  Result<NbdConnection> first_connection();
  void begin_keeping(std::vector<io::UniqueFd> sockets);
  void look_at_size();
  void look_at_contents();
  std::string reset();
  json live_state();
  // The client behind a socket of our own has as many connections to its server as are wished.
  unsigned kernel_sockets() const { return peer_->request_timeout_s() == 0 ? 1 : record_.given.connections; }
  uint64_t dead_time_s() const { return std::min(seconds(options_.disk.dead_time_ms()), kMaxKernelSeconds); }
  uint64_t connect_timeout_ms() const { return std::min(options_.disk.timeout_ms, kConnectTimeoutMs); }

  const Source source_;
  const NbdOptions options_;
  HelperLife life_;  // the event: the kernel has the disk no longer, or it is another's
  Record& record_ = life_.record;
  uint32_t number_ = 0;
  std::optional<attach::NbdNetlink> netlink_;
  std::optional<attach::NbdEvents> events_;
  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  std::optional<ToldFile> told_;
  std::unique_ptr<NbdPeer> peer_;
  std::unique_ptr<NbdKeeper> keeper_;  // ends before the peer
};

Status NbdHelper::attach(HelperParent& parent) {
  Status done = life_.begin("nbd", source_, options_.disk);
  if (done) done = listen_to_kernel();
  if (done) done = open_peer();
  if (done) done = connect(parent);
  return done;
}

Status NbdHelper::take_over(const Record& orphan) {
  number_ = *attach::nbd_number(orphan.device);
  Status done = life_.take_over(source_, orphan);
  if (done) done = listen_to_kernel();
  if (done) done = open_peer();
  if (done) done = judge_successor(record_, peer_->generation(), told_->unflushed());
  if (!done) {
    life_.leave_record();  // the disk stays
    return done;
  }
  // The kernel gets nothing from it before.
  if (record_.seen.lost) peer_->set_lost(true);
  look_at_size();
  begin_keeping({});
  return Ok{};
}

Status NbdHelper::listen_to_kernel() {
  auto netlink = attach::NbdNetlink::open();
  if (!netlink) return std::move(netlink).error();
  netlink_.emplace(std::move(netlink).value());
  // Before the first connection: no death of one is missed.
  auto events = attach::NbdEvents::open();
  if (!events) return std::move(events).error();
  events_.emplace(std::move(events).value());
  return Ok{};
}

Status NbdHelper::open_peer() {
  auto backend = make_backend(kFileThreads);
  if (!backend) return std::move(backend).error();
  backend_ = std::move(backend).value();
  auto told = ToldFile::open(record_.told_file());
  if (!told) return std::move(told).error();
  told_.emplace(std::move(told).value());
  auto peer = open_nbd_peer(*backend_, clock_, source_, options_.disk, *told_);
  if (!peer) return std::move(peer).error();
  peer_ = std::move(peer).value();
  return Ok{};
}

// The export, and whether the kernel's nbd can have it as it is wanted.
Result<NbdConnection> NbdHelper::first_connection() {
  auto made = peer_->connect(connect_timeout_ms());
  if (!made) return made;
  const NbdConnection& first = made.value();
  const auto page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  if (first.size_bytes < limits::kSectorBytes)
    return make_error(EINVAL, "{} has {} bytes: a disk has at least one sector of {}", source_.text, first.size_bytes,
                      limits::kSectorBytes);
  if (first.size_bytes > limits::kMaxDeviceBytes)
    return make_error(EFBIG, "{} has {} bytes: more than a disk can have", source_.text, first.size_bytes);
  if (options_.disk.size_bytes != 0 && options_.disk.size_bytes != first.size_bytes)
    return make_error(EINVAL, "{} has {} bytes, not {}: leave --size out", source_.text, first.size_bytes,
                      options_.disk.size_bytes);
  if (first.min_block_bytes > page || first.max_payload_bytes < page)
    return make_error(EINVAL, "{} takes requests of {} to {} bytes: the kernel's nbd needs {}", source_.text,
                      first.min_block_bytes, first.max_payload_bytes, page);
  if ((first.flags & NBD_FLAG_READ_ONLY) != 0 && !options_.disk.read_only)
    return make_error(EROFS, "{} is read-only: attach it with --read-only", source_.text);
  return made;
}

Status NbdHelper::connect(HelperParent& parent) {
  auto made = first_connection();
  if (!made) return std::move(made).error();
  NbdConnection first = std::move(made).value();
  record_.nbd_flags = first.flags;
  record_.size_bytes = first.size_bytes;
  see_contents(record_, peer_->generation());
  // Elsewhere a flush on one connection need not cover the writes of another.
  if (record_.given.connections > 1 && (first.flags & NBD_FLAG_CAN_MULTI_CONN) == 0) {
    parent.note(fmt::format("{} does not say that it can have several connections: one is made", source_.text));
    record_.given.connections = 1;
  }
  std::vector<int> numbers = {first.fd.get()};
  std::vector<io::UniqueFd> sockets;
  sockets.push_back(std::move(first.fd));
  while (numbers.size() < kernel_sockets()) {
    auto another = peer_->connect(connect_timeout_ms());
    if (!another) return std::move(another).error();
    if (another.value().size_bytes != first.size_bytes || another.value().flags != first.flags)
      return make_error(EPROTO, "{} tells another size or other flags on each connection", source_.text);
    numbers.push_back(another.value().fd.get());
    sockets.push_back(std::move(another.value().fd));
  }
  attach::NbdSetup setup{.number = options_.number,
                         .size_bytes = first.size_bytes,
                         .block_bytes = std::max<uint64_t>(first.min_block_bytes, limits::kSectorBytes),
                         .timeout_s = peer_->request_timeout_s(),
                         .dead_conn_timeout_s = dead_time_s(),
                         .server_flags = first.flags,
                         .backend = nbd_backend_of(source_.text)};
  if (options_.disk.read_only) setup.server_flags |= NBD_FLAG_READ_ONLY;
  auto number = netlink_->connect(setup, numbers);
  if (!number) return std::move(number).error();
  number_ = number.value();
  record_.device = attach::nbd_node(number_);
  Status done = write_record(record_);
  if (!done) {
    withdraw();
    return done;
  }
  const std::string queue = fmt::format("/sys/block/nbd{}/queue/", number_);
  uint64_t kernel_kib = 0;
  std::ifstream(queue + "max_sectors_kb") >> kernel_kib;
  if (first.max_payload_bytes / 1024 < kernel_kib)
    std::ofstream(queue + "max_sectors_kb") << first.max_payload_bytes / 1024;
  // The first open looks for partitions; where no udev runs nobody else would.
  const io::UniqueFd opened(::open(record_.device.c_str(), O_RDONLY | O_CLOEXEC));
  begin_keeping(std::move(sockets));
  return Ok{};
}

void NbdHelper::begin_keeping(std::vector<io::UniqueFd> sockets) {
  auto netlink = attach::NbdNetlink::open();
  NETBLK_CHECK(netlink.ok(), "the family was there a moment ago");
  keeper_ = std::make_unique<NbdKeeper>(std::move(netlink).value(), *peer_,
                                        NbdKeeper::Disk{.number = number_,
                                                        .backend = nbd_backend_of(source_.text),
                                                        .size_bytes = record_.size_bytes,
                                                        .flags = record_.nbd_flags,
                                                        .connections = kernel_sockets(),
                                                        .untimed = peer_->request_timeout_s() == 0,
                                                        .dead_time_ms = 1000 * dead_time_s(),
                                                        .connect_timeout_ms = connect_timeout_ms()},
                                        std::move(sockets), life_.event.get());
}

void NbdHelper::look_at_size() {
  const auto size_bytes = peer_->size_bytes();
  if (!size_bytes || *size_bytes == record_.size_bytes) return;
  Status resized = netlink_->resize(number_, nbd_backend_of(source_.text), *size_bytes);
  if (!resized) return log_warning("{}: {}", record_.device, resized.error().message);
  log_info("{} has {} bytes now, and had {}", record_.device, *size_bytes, record_.size_bytes);
  record_.size_bytes = *size_bytes;
  if (keeper_) keeper_->resized(*size_bytes);
  (void)write_record(record_);
}

// What a successor has to know is written down.
void NbdHelper::look_at_contents() {
  // The generation first: an older one beside a loss is judged once more, a newer one without its loss would hide it.
  const auto generation = peer_->generation();
  note_contents(record_, generation, peer_->live_state());
  if (record_.seen.lost) peer_->set_lost(true);
}

std::string NbdHelper::reset() {
  look_at_contents();
  const std::string answer = peer_->reset_lost(record_.device);
  if (!record_.seen.lost) return answer;
  record_.seen.lost = false;
  record_.seen.lost_why.clear();
  (void)write_record(record_);
  peer_->set_lost(false);
  if (answer == "nothing") log_warning("{}: the owner has taken note of the loss", record_.device);
  return "ok";
}

void NbdHelper::withdraw() { (void)netlink_->disconnect(number_); }

json NbdHelper::live_state() {
  json live = peer_->live_state();
  if (record_.seen.lost) {
    live["lost"] = true;
    live["lost_why"] = record_.seen.lost_why;
  }
  const NbdKeeper::State kept = keeper_->state();
  if (!live.contains("state") || kept.text != "connected") live["state"] = kept.text;
  live["reconnects"] = live.value("reconnects", uint64_t{0}) + kept.reconnects;
  if (kept.text != "connected" || live.value("last_error", "").empty()) live["last_error"] = kept.last_error;
  return live;
}

void NbdHelper::serve() {
  auto watched = life_.watched(events_->fd());
  uint64_t look_at_ms = clock_.now_ms() + kLookPeriodMs;
  for (;;) {
    // By the clock, not when nothing else happens.
    const uint64_t now_ms = clock_.now_ms();
    if (now_ms >= look_at_ms) {
      look_at_size();
      look_at_contents();
      look_at_ms = clock_.now_ms() + kLookPeriodMs;
      continue;
    }
    if (::poll(watched.data(), watched.size(), static_cast<int>(look_at_ms - now_ms)) <= 0) continue;
    if ((watched[0].revents & POLLIN) != 0 && life_.may_end_on_signal()) {
      if (Status written = write_back(record_.device); !written) log_warning("{}", written.error().message);
      withdraw();
      break;
    }
    if ((watched[1].revents & POLLIN) != 0) {
      log_info("{} is detached", record_.device);
      break;
    }
    if ((watched[2].revents & POLLIN) != 0)
      life_.control->answer([this](const std::string& word) {
        if (word == "reset") return reset();
        if (word == "look") keeper_->look(false);
        return live_state().dump(-1, ' ', false, json::error_handler_t::replace);
      });
    if (watched[3].revents != 0 && events_->link_died(number_)) keeper_->look(true);
  }
  forget_names_of(record_.device);
}

}  // namespace

std::string nbd_backend_of(const std::string& source) { return "netblk " + source; }

int run_nbd_helper(const Source& source, const NbdOptions& options, const Record* orphan, HelperParent& parent) {
  NbdHelper helper(source, options);
  Status begun = orphan != nullptr ? helper.take_over(*orphan) : helper.attach(parent);
  if (!begun) {
    parent.failed(begun.error());
    return 1;
  }
  if (!parent.started(helper.device()) && orphan == nullptr) {
    // Nobody waits for the disk any more.
    helper.withdraw();
    return 1;
  }
  log_info("{} is {}", helper.device(), source.text);
  helper.serve();
  return 0;
}

}  // namespace netblk::tools
