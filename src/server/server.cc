// SPDX-License-Identifier: GPL-2.0-only
#include "server/server.h"

#include <signal.h>
#include <time.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/limits.h"
#include "base/log.h"
#include "base/parse.h"
#include "coro/scope.h"

namespace netblk::server {
namespace {

constexpr uint64_t kAcceptRetryMs = 100;
constexpr uint64_t kSizePeriodMs = 1'000;
constexpr uint64_t kReopenWaitMs = 10'000;
constexpr uint64_t kReopenPollMs = 50;
constexpr size_t kShownUris = 16;  // of one listener

sigset_t handled_signals() {
  sigset_t set;
  ::sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&set, signal);
  return set;
}

std::string_view scheme_of(Protocol protocol) { return protocol == Protocol::kNbd ? "nbd" : "netblk"; }

}  // namespace

Server::Server(io::Backend& backend, const io::Clock& clock, OpenStore open_store, TakePlace take_place,
               ServerOptions options)
    : backend_(backend),
      clock_(clock),
      open_store_(std::move(open_store)),
      take_place_(std::move(take_place)),
      options_(std::move(options)),
      shared_{exports_, gate_, refusals_, options_.prepare_socket, nullptr} {}

// A volume ends only when who asks it for something has been answered.
Server::~Server() { refuse_handovers(); }

void Server::block_signals() {
  const sigset_t set = handled_signals();
  ::sigprocmask(SIG_BLOCK, &set, nullptr);
  // A peer that goes away in the middle of a reply is an error of that send, not of the process.
  ::signal(SIGPIPE, SIG_IGN);
}

Result<std::shared_ptr<Export>> Server::open_export(const ExportConfig& config) {
  auto device = open_store_(config.store, config.read_only, config.name);
  if (!device) {
    const Error& cause = device.error();
    if (options_.config_path.empty()) return cause;
    return make_error(cause.code, "{}: export '{}': {}", options_.config_path, config.name, cause.message);
  }
  return std::make_shared<Export>(config, std::shared_ptr<block::Device>(std::move(device).value()));
}

Status Server::open(const Config& config) {
  for (const ListenConfig& listen : config.listens) {
    auto place = take_place_(listen);
    if (!place && listen.optional && (place.error().code == EAFNOSUPPORT || place.error().code == EADDRNOTAVAIL)) {
      log_info("{}; not listening there", place.error().message);
      continue;
    }
    if (!place) return std::move(place).error();
    bound_.push_back({listen, std::move(place).value(), io::UniqueFd(), io::Address(), nullptr});
  }
  std::vector<std::shared_ptr<Export>> exports;
  for (const ExportConfig& entry : config.exports) {
    auto made = open_export(entry);
    if (!made) return std::move(made).error();
    exports.push_back(std::move(made).value());
  }
  first_name_ = config.exports.front().name;
  exports_.replace(std::move(exports));
  apply(config.settings);
  for (unsigned i = 0; i < options_.threads; ++i) {
    auto loop = backend_.make_loop(clock_);
    if (!loop) return std::move(loop).error();
    loop.value()->set_busy_poll_us(busy_poll_us_);
    loop.value()->allow_rests();
    shards_.push_back(std::make_unique<Shard>(std::move(loop).value(), shared_, timeouts_));
  }
  for (Bound& bound : bound_) {
    auto fd = bound.place->listen();
    if (!fd) return std::move(fd).error();
    bound.fd = std::move(fd).value();
    auto address = io::local_address(bound.fd.get());
    if (!address) return std::move(address).error();
    bound.address = address.value();
  }
  take_handovers();
  return Ok{};
}

void Server::apply(const Settings& of_config) {
  const Settings now = options_.settings.over(of_config);
  const uint32_t connections = std::min(now.max_connections.value_or(limits::kMaxConnections), options_.most_connections);
  gate_.set_limits({connections, now.max_connections_per_address.value_or(limits::kMaxConnections)});
  timeouts_ = {now.request_timeout_ms.value_or(limits::kRequestTimeoutMs),
               now.send_timeout_ms.value_or(limits::kSendStallTimeoutMs),
               now.handshake_timeout_ms.value_or(limits::kHandshakeTimeoutMs)};
  busy_poll_us_ = now.busy_poll_us.value_or(0);
  for (const auto& shard : shards_) {
    shard->set_timeouts(timeouts_);
    shard->set_busy_poll_us(busy_poll_us_);
  }
}

std::string Server::where(const Bound& bound) const {
  const std::string_view scheme = scheme_of(bound.config.protocol);
  if (bound.address.is_unix()) return fmt::format("{}+unix://{}", scheme, percent_encoded(bound.address.unix_name));
  return fmt::format("{}://{}", scheme, bound.address.text());
}

// What a client is told to use: the public NBD URI of each export. A listener at every address is shown as this machine
// reaches it.
void Server::add_uris(const Bound& bound, std::vector<std::string>& lines) const {
  io::Address address = bound.address;
  if (address.is_any()) address.ip = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1};
  size_t shown = 0;
  const auto exports = exports_.all();
  for (const auto& entry : exports) {
    if (shown++ == kShownUris) {
      lines.push_back(fmt::format("and {} more exports there", exports.size() - kShownUris));
      break;
    }
    const std::string name = percent_encoded(entry->config().name);
    if (address.is_unix()) {
      lines.push_back(fmt::format("nbd+unix:///{}?socket={}", name, percent_encoded(address.unix_name)));
    } else {
      lines.push_back(fmt::format("nbd://{}{}{}", address.text(), name.empty() ? "" : "/", name));
    }
  }
}

std::vector<std::string> Server::banner() const {
  std::vector<std::string> lines;
  for (const auto& entry : exports_.all()) {
    const block::Geometry& geometry = entry->device().geometry();
    lines.push_back(fmt::format("export '{}': {}, {}{}", entry->config().name, entry->config().store,
                                size_text(geometry.size_bytes), geometry.read_only ? ", read-only" : ""));
  }
  for (const Bound& bound : bound_) {
    lines.push_back("listening on " + where(bound));
    if (bound.config.protocol == Protocol::kNbd) add_uris(bound, lines);
  }
  lines.push_back(fmt::format("{}, {} thread{}", shards_.front()->loop().description(), shards_.size(),
                              shards_.size() == 1 ? "" : "s"));
  return lines;
}

void Server::run(io::UniqueFd only) {
  only_ = std::move(only);
  for (const Bound& bound : bound_)
    if (!bound.address.is_loopback())
      log_warning("{} is reachable from other machines, without encryption or authentication: trust its network, or use "
                  "allow=",
                  where(bound));
  shards_to_drain_.store(static_cast<uint32_t>(shards_.size()), std::memory_order_relaxed);

  std::thread signals([this] { wait_for_signals(); });
  std::vector<std::thread> threads;
  const auto on_drained = [this] {
    // The last shard to drain lets all of them end: until then one may still sync what another's connection wrote.
    if (shards_to_drain_.fetch_sub(1, std::memory_order_acq_rel) == 1)
      for (const auto& shard : shards_) shard->stop();
  };
  for (size_t i = 1; i < shards_.size(); ++i)
    threads.emplace_back([this, i, &on_drained] { shards_[i]->loop().run(shards_[i]->serve(on_drained)); });
  shards_[0]->loop().run(main_task(on_drained));
  for (std::thread& thread : threads) thread.join();
  done_.store(true, std::memory_order_release);
  ::pthread_kill(signals.native_handle(), SIGHUP);  // ends its wait
  signals.join();
}

// The first shard's loop: its connections, and beside them the listeners and the signals.
coro::Task<void> Server::main_task(std::function<void()> on_drained) {
  coro::Scope scope;
  scope.spawn(control_task());
  co_await shards_[0]->serve(std::move(on_drained));
  co_await scope.join();
}

// Stores that were resized below the server are noticed within about a second, and what was left out of the log is told.
struct Server::EverySecond : io::Timer {
  explicit EverySecond(Server& owner)
      : Timer(owner.shards_[0]->loop(), [](coro::Runnable& self) { static_cast<EverySecond&>(self).look(); }),
        server(owner) {
    arm(server.clock_.now_ms() + kSizePeriodMs);
  }
  void look() {
    server.look_at_sizes();
    server.refusals_.tick();
    arm(server.clock_.now_ms() + kSizePeriodMs);
  }
  Server& server;
};

void Server::look_at_sizes() {
  for (const auto& entry : exports_.all())
    if (entry != nullptr) entry->device().refresh_size();
}

coro::Task<void> Server::control_task() {
  coro::Scope scope;
  const auto every_second = std::make_unique<EverySecond>(*this);
  for (Bound& bound : bound_) {
    bound.listener = shards_[0]->loop().make_listener(std::move(bound.fd));
    scope.spawn(accept_loop(bound));
  }
  if (only_.valid()) {
    shared_.on_end = [this] {
      stop_wanted_ = true;
      signalled_.set();
    };
    adopt(std::move(only_), Protocol::kNbd);
  }
  co_await obey_signals();
  every_second->cancel();
  log_info("stopping: {} connections to drain", gate_.connections());
  stopping_ = true;
  for (Bound& bound : bound_) bound.listener->shutdown();
  co_await scope.join();
  for (Bound& bound : bound_) {
    bound.listener.reset();
    bound.place.reset();
  }
  for (const auto& shard : shards_) shard->drain();
}

coro::Task<void> Server::accept_loop(Bound& bound) {
  bool told = false;
  while (!stopping_) {
    const int32_t fd = co_await io::accept(*bound.listener);
    if (fd >= 0) {
      told = false;
      adopt(io::UniqueFd(fd), bound.config.protocol);
      continue;
    }
    if (stopping_) break;
    // A peer that left while it waited is its own affair; without descriptors or memory, wait for some to come free.
    if (fd == -ECONNABORTED || fd == -EINTR || fd == -EAGAIN || fd == -EPROTO) continue;
    if (!told) {
      log_error("cannot accept on {}: {}; trying again", where(bound), errno_text(-fd));
    } else if (const auto oldest = gate_.shed()) {
      // The shortage has lasted for a while, and so has that one's silence: nobody is sent away who has just come.
      shed(*oldest);
    }
    told = true;
    io::SleepUntil pause(shards_[0]->loop(), clock_.now_ms() + kAcceptRetryMs);
    co_await pause;
  }
}

void Server::adopt(io::UniqueFd fd, Protocol protocol) {
  const uint64_t number = ++accepted_;
  const auto peer = io::peer_address(fd.get());
  if (!peer) {
    refusals_.line(LogLevel::kInfo, fmt::format("connection {} refused: its peer is gone", number));
    return;
  }
  const Gate::Answer answer = gate_.enter(number, peer.value(), protocol == Protocol::kNbd);
  if (!answer.refusal.empty()) {
    refusals_.line(LogLevel::kWarning,
                   fmt::format("connection {} from {} refused: {}", number, peer.value().text(), answer.refusal));
    return;
  }
  if (answer.shed) shed(*answer.shed);
  shards_[number % shards_.size()]->adopt(std::move(fd), number, protocol);
}

void Server::shed(uint64_t number) { shards_[number % shards_.size()]->shed(number); }

// Runs on a thread of its own until the server is done. Signals are taken by sigwait, on any back end alike.
void Server::wait_for_signals() {
  const sigset_t set = handled_signals();
  bool stopping = false;
  uint64_t give_up_at = 0;
  for (;;) {
    siginfo_t info;
    const timespec patience{.tv_sec = 1, .tv_nsec = 0};
    const int number = ::sigtimedwait(&set, &info, &patience);
    if (done_.load(std::memory_order_acquire)) return;
    if (stopping && clock_.now_ms() >= give_up_at) {
      log_error("stopping at once: {} connections are not drained", gate_.connections());
      ::_exit(1);
    }
    // The drain has its limit: asking for it again changes nothing.
    if (number < 0 || stopping) continue;
    if (number != SIGHUP) {
      stopping = true;
      give_up_at = clock_.now_ms() + limits::kDrainTimeoutMs;
    }
    got_signal(number);
  }
}

void Server::on_main(std::function<void()> what) {
  struct Message : io::Posted {
    explicit Message(std::function<void()> of)
        : Posted([](coro::Runnable& self) {
            const std::unique_ptr<Message> message(&static_cast<Message&>(static_cast<Posted&>(self)));
            message->what();
          }),
          what(std::move(of)) {}
    std::function<void()> what;
  };
  shards_[0]->loop().post(*std::make_unique<Message>(std::move(what)).release());
}

void Server::got_signal(int number) {
  on_main([this, number] {
    (number == SIGHUP ? reload_wanted_ : stop_wanted_) = true;
    signalled_.set();
  });
}

coro::Task<void> Server::obey_signals() {
  while (!stop_wanted_) {
    if (!reload_wanted_) co_await signalled_.wait();
    if (std::exchange(reload_wanted_, false)) co_await reload();
    if (!stop_wanted_) co_await obey_handovers();
  }
  refuse_handovers();
}

// Whatever can be opened is opened before anything changes, so that a bad configuration changes nothing. Only a store
// whose file is held by the export that it replaces waits until the last session of that one has gone.
coro::Task<void> Server::reload() {
  look_at_sizes();
  if (options_.config_path.empty()) {
    log_warning("SIGHUP: nothing to reload, the server was started without --config");
    co_return;
  }
  auto config = read_config(options_.config_path);
  if (!config) {
    log_error("SIGHUP: {}; the configuration stays as it was", config.error().message);
    co_return;
  }
  const std::vector<ExportConfig>& wanted = config.value().exports;
  std::vector<std::shared_ptr<Export>> old = exports_.all();
  const std::string old_first = first_name_;
  std::vector<std::shared_ptr<Export>> next(wanted.size());
  std::vector<size_t> later;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const auto same = std::find_if(old.begin(), old.end(), [&](const std::shared_ptr<Export>& had) {
      return had != nullptr && had->config().name == wanted[i].name &&
             split_size(had->config().store).rest == split_size(wanted[i].store).rest &&
             had->config().read_only == wanted[i].read_only;
    });
    if (same != old.end()) {
      next[i] = std::exchange(*same, nullptr);
      continue;
    }
    auto made = open_export(wanted[i]);
    if (made) {
      next[i] = std::move(made).value();
    } else if (made.error().code == EBUSY) {
      later.push_back(i);
    } else {
      log_error("SIGHUP: {}; the configuration stays as it was", made.error().message);
      co_return;
    }
  }

  // A store of which only `size=` has changed stays open: it grows, and is never shrunk.
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (next[i] == nullptr || next[i]->config().store == wanted[i].store) continue;
    if (auto grown = next[i]->device().grow(split_size(wanted[i].store).size_bytes); !grown) {
      log_error("SIGHUP: export '{}': {}; the configuration stays as it was", wanted[i].name, grown.error().message);
      co_return;
    }
  }

  // From here on the new configuration holds.
  if (old_first != wanted.front().name)
    log_warning("SIGHUP: the first export was '{}' and is now '{}': netblk/1 clients that connect get another disk",
                old_first, wanted.front().name);
  if (listen_uris(config.value()) != options_.config_listens)
    log_warning("SIGHUP: listen has changed: that takes a restart");
  if (config.value().state_dir != options_.config_state_dir)
    log_warning("SIGHUP: state-dir has changed: that takes a restart");
  apply(config.value().settings);
  first_name_ = wanted.front().name;
  for (size_t i = 0; i < wanted.size(); ++i)
    if (next[i] != nullptr) next[i]->change_rules(wanted[i]);
  exports_.replace(next);
  std::vector<std::weak_ptr<block::Device>> going;
  for (const auto& gone : old) {
    if (gone == nullptr) continue;
    log_info("export '{}' is removed", gone->config().name);
    gone->close();
    going.push_back(gone->shared_device());
  }
  old.clear();
  for (const auto& shard : shards_) shard->look_at_exports();
  const uint64_t give_up_at = clock_.now_ms() + kReopenWaitMs;
  const auto closed = [](const std::weak_ptr<block::Device>& device) { return device.expired(); };
  while (!later.empty() && !stop_wanted_ && clock_.now_ms() < give_up_at && !std::all_of(going.begin(), going.end(), closed)) {
    io::SleepUntil pause(shards_[0]->loop(), clock_.now_ms() + kReopenPollMs);
    co_await pause;
  }
  for (const size_t i : later) {
    auto made = open_export(wanted[i]);
    if (made) {
      next[i] = std::move(made).value();
    } else {
      log_error("SIGHUP: not served: {}", made.error().message);
    }
  }
  // An export that could not be opened keeps its place, empty: the next one must not become the first, which netblk/1
  // clients would take for their own disk.
  const auto served = next.size() - static_cast<size_t>(std::count(next.begin(), next.end(), nullptr));
  exports_.replace(std::move(next));
  log_info("SIGHUP: {} serves {} export{}", options_.config_path, served, served == 1 ? "" : "s");
}

}  // namespace netblk::server
