// SPDX-License-Identifier: GPL-2.0-only
// Server: listeners, shards, exports, and the life of the process between its first listen and its last reply.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"
#include "io/loop.h"
#include "server/config.h"
#include "server/exports.h"
#include "server/gate.h"
#include "server/handover.h"
#include "server/refusal_log.h"
#include "server/shard.h"

namespace netblk::server {

// A place to listen at: nobody who listens already has it, and nobody can connect to it before listen(). Its end gives
// it up.
class Place {
 public:
  virtual ~Place() = default;
  virtual Result<io::UniqueFd> listen() = 0;
};

// Given by main, which knows the transports. Errors name the address and what to do.
using TakePlace = std::function<Result<std::unique_ptr<Place>>(const ListenConfig&)>;

struct ServerOptions {
  unsigned threads = 1;
  // Sets what the transport wants on an accepted socket of the internet. Thread-safe.
  void (*prepare_socket)(int fd) = nullptr;
  // Of the command line: they go before those of the configuration, now and after each reload.
  Settings settings;
  // What the process has descriptors for.
  uint32_t most_connections = limits::kMaxConnections;
  // Read again on SIGHUP. Empty: the configuration came from the command line, and SIGHUP changes nothing.
  std::string config_path;
  // What its `listen` said at the start: a reload that finds another says that it takes a restart.
  std::vector<std::string> config_listens;
  std::string config_state_dir;  // and its `state-dir`
};

class Server {
 public:
  // `backend`, `clock` and what the functions need outlive the server.
  Server(io::Backend& backend, const io::Clock& clock, OpenStore open_store, TakePlace take_place,
         ServerOptions options);
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;
  ~Server();

  // Takes every address, then opens every store, then listens: an address in use is said before a store is created or
  // waited for, and who can connect meets stores that are open, with their generations durable (DESIGN 4.2). On an error
  // nothing is served.
  Status open(const Config& config);

  // One line for each export and each address, for the start-up banner.
  std::vector<std::string> banner() const;

  // Serves until SIGTERM or SIGINT, then drains. SIGHUP reloads. These signals are blocked from block_signals() on,
  // which main calls before open(). With `only`, a connected socket, it serves NBD on that, and ends with it.
  void run(io::UniqueFd only = io::UniqueFd());
  static void block_signals();

  // Thread-safe, from open() on.
  void hand_over(std::shared_ptr<Handover> wanted);

 private:
  struct Bound {
    ListenConfig config;
    std::unique_ptr<Place> place;
    io::UniqueFd fd;
    io::Address address;
    std::unique_ptr<io::Listener> listener;  // while it runs
  };
  struct EverySecond;

  Result<std::shared_ptr<Export>> open_export(const ExportConfig& config);
  coro::Task<void> main_task(std::function<void()> on_drained);
  coro::Task<void> control_task();
  coro::Task<void> accept_loop(Bound& bound);
  coro::Task<void> obey_signals();
  coro::Task<void> reload();
  coro::Task<void> obey_handovers();
  coro::Task<void> obey(Handover& wanted);
  void take_handovers();
  void refuse_handovers();
  void on_main(std::function<void()> what);  // thread-safe, while the main loop runs
  void look_at_sizes();
  void wait_for_signals();
  void got_signal(int number);
  void adopt(io::UniqueFd fd, Protocol protocol);
  void apply(const Settings& of_config);
  void shed(uint64_t number);
  std::string where(const Bound& bound) const;
  void add_uris(const Bound& bound, std::vector<std::string>& lines) const;

  io::Backend& backend_;
  const io::Clock& clock_;
  OpenStore open_store_;
  TakePlace take_place_;
  ServerOptions options_;
  // Until the exports have gone: their stores ask for handovers.
  std::mutex handovers_mutex_;
  std::vector<std::shared_ptr<Handover>> handovers_;
  bool takes_handovers_ = false;
  ExportTable exports_;
  std::string first_name_;  // of the export that netblk/1 clients get
  std::vector<Bound> bound_;
  Gate gate_;
  RefusalLog refusals_;
  ShardContext shared_;
  Timeouts timeouts_;
  uint32_t busy_poll_us_ = 0;
  std::vector<std::unique_ptr<Shard>> shards_;
  io::UniqueFd only_;
  std::atomic<uint32_t> shards_to_drain_{0};
  uint64_t accepted_ = 0;
  bool stopping_ = false;
  std::atomic<bool> done_{false};

  // Signals that the main loop has not obeyed yet; its thread only.
  coro::Event signalled_;
  bool stop_wanted_ = false;
  bool reload_wanted_ = false;
};

}  // namespace netblk::server
