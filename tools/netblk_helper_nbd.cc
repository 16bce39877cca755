// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_nbd.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
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
#include "netblk_helper_peer.h"
#include "netblk_names.h"
#include "netblk_state.h"
#include "protocol/nbd_wire.h"

namespace netblk::tools {
namespace {

using nlohmann::json;

// Stores of this machine are read and written by the helper.
constexpr unsigned kFileThreads = 4;
// Without --timeout: how long nothing may be connected until requests fail, and one attempt may take.
constexpr uint64_t kDeadTimeS = 120;
constexpr uint64_t kConnectTimeoutMs = 5000;

uint64_t seconds(uint64_t ms) { return std::max((ms + 999) / 1000, uint64_t{1}); }

class NbdHelper {
 public:
  NbdHelper(const Source& source, const NbdOptions& options) : source_(source), options_(options) {}
  NbdHelper(const NbdHelper&) = delete;
  NbdHelper& operator=(const NbdHelper&) = delete;
  ~NbdHelper();

  Status attach(HelperParent& parent);
  Status take_over(const Record& orphan);
  void serve();
  void withdraw();
  const std::string& device() const { return record_.device; }

 private:
  Status become();
  Status open_peer();
  Status connect(HelperParent& parent);
  Result<NbdConnection> first_connection();
  void begin_keeping(std::vector<io::UniqueFd> sockets);
  bool is_used();
  bool release_on_signal();
  json live_state();
  uint64_t dead_time_s() const {
    return options_.disk.timeout_given ? 3 * seconds(options_.disk.timeout_ms) : kDeadTimeS;
  }
  uint64_t connect_timeout_ms() const { return std::min(options_.disk.timeout_ms, kConnectTimeoutMs); }

  const Source source_;
  const NbdOptions options_;
  Record record_;
  uint32_t number_ = 0;
  io::UniqueFd lock_, signals_, gone_;
  std::optional<ControlSocket> control_;
  std::optional<attach::NbdNetlink> netlink_;
  std::optional<attach::NbdEvents> events_;
  io::SteadyClock clock_;
  std::unique_ptr<io::Backend> backend_;
  std::unique_ptr<NbdPeer> peer_;
  std::unique_ptr<NbdKeeper> keeper_;
};

Status NbdHelper::attach(HelperParent& parent) {
  auto folder = make_state_folder();
  if (!folder) return std::move(folder).error();
  record_.directory = folder.value().directory;
  lock_ = std::move(folder.value().lock);
  record_.way = "nbd";
  record_.server = source_.text;
  record_.read_only = options_.disk.read_only;
  record_.nbd.given_size_bytes = options_.disk.size_bytes;
  record_.nbd.given_timeout_ms = options_.disk.timeout_given ? options_.disk.timeout_ms : 0;
  record_.nbd.shared = options_.disk.shared;
  Status done = become();
  if (done) done = open_peer();
  if (done) done = connect(parent);
  return done;
}

Status NbdHelper::take_over(const Record& orphan) {
  auto lock = take_over_folder(orphan);
  if (!lock) return std::move(lock).error();
  lock_ = std::move(lock).value();
  record_ = orphan;
  number_ = *attach::nbd_number(orphan.device);
  Status done = become();
  if (done) done = open_peer();
  if (!done) {
    record_.directory.clear();  // the disk stays, and so does its record
    return done;
  }
  begin_keeping({});
  return Ok{};
}

Status NbdHelper::become() {
  record_.pid = ::getpid();
  Status done = log_to(record_.log_file());
  if (done) done = write_record(record_);
  if (!done) return done;
  become_io_path();
  // A store in memory is as large as it likes, and gives pages back.
  if (source_.survives_helper()) lock_memory();
  auto signals = catch_signals();
  if (!signals) return std::move(signals).error();
  signals_ = std::move(signals).value();
  gone_ = io::UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!gone_.valid()) return make_error(errno, "cannot make a descriptor: {}", errno_text(errno));
  auto control = ControlSocket::open(record_.control_socket());
  if (!control) return std::move(control).error();
  control_.emplace(std::move(control).value());
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
  auto peer = open_nbd_peer(*backend_, clock_, source_, options_.disk);
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
  record_.nbd.flags = first.flags;
  record_.size_bytes = first.size_bytes;
  record_.nbd.connections = options_.disk.connections;
  // Elsewhere a flush on one connection need not cover the writes of another.
  if (record_.nbd.connections > 1 && (first.flags & NBD_FLAG_CAN_MULTI_CONN) == 0) {
    parent.note(fmt::format("{} does not say that it can have several connections: one is made", source_.text));
    record_.nbd.connections = 1;
  }
  std::vector<int> numbers = {first.fd.get()};
  std::vector<io::UniqueFd> sockets;
  sockets.push_back(std::move(first.fd));
  while (numbers.size() < record_.nbd.connections) {
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
                                                        .flags = record_.nbd.flags,
                                                        .connections = record_.nbd.connections,
                                                        .dead_time_ms = 1000 * dead_time_s(),
                                                        .connect_timeout_ms = connect_timeout_ms()},
                                        std::move(sockets), gone_.get());
}

void NbdHelper::withdraw() { (void)netlink_->disconnect(number_); }

NbdHelper::~NbdHelper() {
  keeper_.reset();
  peer_.reset();
  if (!record_.directory.empty()) (void)remove_leftovers(record_);
}

bool NbdHelper::is_used() { return !uses_of(record_.device).empty() || is_in_use(record_.device); }

// Signals end a disk that nobody uses. One in use stays: a shutdown that signals every process first must not cost
// the file system on it.
bool NbdHelper::release_on_signal() {
  signalfd_siginfo info{};
  (void)!::read(signals_.get(), &info, sizeof info);
  if (is_used()) {
    log_warning("signal {}: {} is in use, so it stays; unmount it, then `netblk detach {}`", info.ssi_signo,
                record_.device, record_.device);
    return false;
  }
  log_info("signal {}: detaching {}", info.ssi_signo, record_.device);
  withdraw();
  return true;
}

json NbdHelper::live_state() {
  json live = peer_->live_state();
  const NbdKeeper::State kept = keeper_->state();
  if (!live.contains("state") || kept.text != "connected") live["state"] = kept.text;
  live["reconnects"] = live.value("reconnects", uint64_t{0}) + kept.reconnects;
  if (kept.text != "connected" || live.value("last_error", "").empty()) live["last_error"] = kept.last_error;
  return live;
}

void NbdHelper::serve() {
  std::array<pollfd, 4> watched = {pollfd{signals_.get(), POLLIN, 0}, pollfd{gone_.get(), POLLIN, 0},
                                   pollfd{control_->fd(), POLLIN, 0}, pollfd{events_->fd(), POLLIN, 0}};
  for (;;) {
    if (::poll(watched.data(), watched.size(), -1) < 0) continue;
    if ((watched[0].revents & POLLIN) != 0 && release_on_signal()) break;
    if ((watched[1].revents & POLLIN) != 0) {
      log_info("{} is detached", record_.device);
      break;
    }
    if ((watched[2].revents & POLLIN) != 0)
      control_->answer([this](const std::string& word) {
        if (word == "reset") return peer_->reset_lost(record_.device);
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
