// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_keeper.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <utility>

#include "base/log.h"
#include "netblk_helper_process.h"
#include "netblk_state.h"

namespace netblk::tools {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kMinBackoff{100};
constexpr milliseconds kMaxBackoff{2000};
// Where the kernel has no time-out for requests, it looks so often whether the connection of one has been replaced, and
// sends it again: so long does wait what was in flight when a helper died. Each look is a line in its log.
constexpr milliseconds kRequestLook{3000};
// Between two looks at a disk of which nothing was heard: the kernel does not say when it is disconnected.
constexpr milliseconds kLookPeriod{1000};

uint64_t now_ms() {
  const auto since = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<milliseconds>(since).count()) + 1;
}

}  // namespace

NbdKeeper::NbdKeeper(attach::NbdNetlink netlink, NbdPeer& peer, Disk disk, std::vector<io::UniqueFd> sockets, int gone)
    : netlink_(std::move(netlink)), peer_(peer), disk_(std::move(disk)), gone_(gone), size_bytes_(disk_.size_bytes),
      sockets_(std::move(sockets)), offer_(unknown() > 0) {
  thread_ = std::thread([this] { run(); });
}

NbdKeeper::~NbdKeeper() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

void NbdKeeper::look(bool link_died) {
  {
    const std::lock_guard lock(mutex_);
    look_ = true;
    link_died_ = link_died_ || link_died;
  }
  wake_.notify_all();
}

NbdKeeper::State NbdKeeper::state() const {
  const std::lock_guard lock(mutex_);
  State state{.text = "connected", .last_error = last_error_, .reconnects = reconnects_};
  if (none_since_ms_ != 0) state.text = now_ms() - none_since_ms_ > disk_.dead_time_ms ? "error" : "connecting";
  if (refused_) state.text = "error";
  return state;
}

// The kernel forgets it when a time-out is set by netlink.
void NbdKeeper::look_after_requests() const {
  if (disk_.untimed) std::ofstream(fmt::format("/sys/block/nbd{}/queue/io_timeout", disk_.number)) << kRequestLook.count();
}

void NbdKeeper::run() {
  look_after_requests();
  milliseconds backoff = kMinBackoff;
  for (;;) {
    const Outcome outcome = mend();
    if (outcome == Outcome::kGone) {
      raise_event(gone_);
      return;
    }
    std::unique_lock lock(mutex_);
    const auto pause = outcome == Outcome::kSound ? kLookPeriod : backoff;
    // A new loss is no reason to try a server sooner that has just refused.
    wake_.wait_for(lock, pause, [&] { return stopping_ || (look_ && outcome == Outcome::kSound); });
    backoff = outcome == Outcome::kSound ? kMinBackoff : std::min(2 * backoff, kMaxBackoff);
    if (stopping_) return;
    look_ = false;
    offer_ = offer_ || (std::exchange(link_died_, false) && unknown() > 0);
  }
}

// The kernel shuts a socket down when it counts it as dead.
bool NbdKeeper::is_dead(size_t index) const {
  pollfd asked{sockets_[index].get(), 0, 0};
  return ::poll(&asked, 1, 0) > 0 && (asked.revents & (POLLHUP | POLLERR)) != 0;
}

bool NbdKeeper::is_there() const {
  return read_text(fmt::format("/sys/block/nbd{}/backend", disk_.number)) == disk_.backend;
}

NbdKeeper::Outcome NbdKeeper::failed(std::string why, bool refused) {
  const std::lock_guard lock(mutex_);
  if (why != last_error_) log_warning("{}: {}", attach::nbd_node(disk_.number), why);
  last_error_ = std::move(why);
  refused_ = refused;
  return Outcome::kAgain;
}

NbdKeeper::Outcome NbdKeeper::mend() {
  if (!is_there()) return Outcome::kGone;
  // As many as there are: one that dies as soon as it is made waits for its turn.
  for (size_t tries = 0; tries <= disk_.connections; ++tries) {
    size_t dead = 0;
    while (dead < sockets_.size() && !is_dead(dead)) ++dead;
    size_t alive = offer_ ? 0 : unknown();
    for (size_t i = 0; i < sockets_.size(); ++i) alive += is_dead(i) ? size_t{0} : size_t{1};
    {
      const std::lock_guard lock(mutex_);
      if (alive != 0) none_since_ms_ = 0;
      if (alive == 0 && none_since_ms_ == 0) none_since_ms_ = now_ms();
      if (stopping_) return Outcome::kSound;
    }
    const bool known = dead < sockets_.size();
    if (!known && !offer_) return Outcome::kSound;

    // Somebody may have disconnected it and still have it open.
    auto ours = netlink_.is_ours(disk_.number, disk_.backend);
    if (!ours) return failed(ours.error().message, false);
    if (!ours.value()) return Outcome::kGone;
    auto made = peer_.connect(disk_.connect_timeout_ms);
    if (!made) return failed(made.error().message, false);
    NbdConnection& connection = made.value();
    const uint64_t size_bytes = size_bytes_;
    if (connection.size_bytes != size_bytes)
      return failed(fmt::format("not connected again: the export has {} bytes now, and had {}; detach it and attach it anew",
                                connection.size_bytes, size_bytes),
                    true);
    if (connection.flags != disk_.flags)
      return failed(fmt::format("not connected again: the export's flags are {:#x} now, and were {:#x}; detach it and "
                                "attach it anew",
                                connection.flags, disk_.flags),
                    true);
    auto taken = netlink_.replace_dead(disk_.number, disk_.backend, connection.fd.get(), disk_.untimed);
    look_after_requests();
    if (!taken) return failed(taken.error().message, false);
    if (!taken.value()) {
      // All that were not known live.
      offer_ = false;
      return known ? Outcome::kAgain : Outcome::kSound;
    }
    if (known) {
      sockets_[dead] = std::move(connection.fd);
    } else {
      sockets_.push_back(std::move(connection.fd));
    }
    offer_ = offer_ && unknown() > 0;
    const std::lock_guard lock(mutex_);
    ++reconnects_;
    refused_ = false;
    log_info("{}: a connection that had died was made again", attach::nbd_node(disk_.number));
  }
  return Outcome::kAgain;
}

}  // namespace netblk::tools
