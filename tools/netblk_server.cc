// SPDX-License-Identifier: GPL-2.0-only
// netblk_server: serves block devices (DESIGN 5).
#include <malloc.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/limits.h"
#include "base/log.h"
#include "base/parse.h"
#include "command_line.h"
#include "io/epoll/epoll_backend.h"
#include "io/uring/uring_backend.h"
#include "netblk_version.h"
#include "server/server.h"
#include "server_places.h"
#include "server_stdio.h"
#include "store_spec.h"
#include "transport/tcp.h"

namespace netblk::tools {
namespace {

constexpr unsigned kFileThreads = 8;
constexpr rlim_t kKeptDescriptors = 128;  // of rings, threads, records and what a reload opens

struct Arguments {
  std::vector<std::string> positional;
  std::vector<std::string> exports;
  std::vector<std::string> listens;
  std::string config_path;
  std::vector<std::string> config_listens;
  std::string config_state_dir;
  std::string state_dir;
  std::string trace;
  std::string io = "auto";
  std::string busy_poll;
  unsigned threads = 0;
  bool stdio = false;
  server::Settings settings;
};

// PORT FILE SIZE_MB: netblk on every address, one unnamed export.
Result<server::Config> original_form(const std::vector<std::string>& words) {
  const auto port = parse_unsigned(words[0], 1, 65535);
  if (!port) return make_error(EINVAL, "bad port '{}': use a number from 1 to 65535", words[0]);
  const auto size_mib = parse_unsigned(words[2], 1, limits::kMaxDeviceBytes >> 20);
  if (!size_mib)
    return make_error(EINVAL, "bad size '{}': SIZE_MB is a number of MiB from 1 to {}", words[2],
                      limits::kMaxDeviceBytes >> 20);
  if (words[1].empty()) return make_error(EINVAL, "FILE is empty: name the file that keeps the blocks");
  server::Config config;
  server::ExportConfig served;
  served.store = fmt::format("file:{}?size={}M", store_path_text(words[1]), *size_mib);
  config.exports.push_back(std::move(served));
  config.listens.push_back(server::parse_listen(fmt::format("netblk://:{}", *port)).value());
  return config;
}

Result<server::Config> from_options(const Arguments& arguments) {
  server::Config config;
  for (const std::string& text : arguments.exports) {
    auto parsed = server::parse_export(text);
    if (!parsed) return std::move(parsed).error();
    const server::ExportConfig& wanted = parsed.value();
    if (auto sound = check_store(wanted.store); !sound) return std::move(sound).error();
    if (std::any_of(config.exports.begin(), config.exports.end(), [&](const auto& other) { return other.name == wanted.name; }))
      return make_error(EINVAL, "two exports are named '{}': give each a name of its own", wanted.name);
    config.exports.push_back(std::move(parsed).value());
  }
  for (const std::string& text : arguments.listens) {
    auto parsed = server::parse_listen(text);
    if (!parsed) return std::move(parsed).error();
    config.listens.push_back(std::move(parsed).value());
  }
  return config;
}

Result<std::unique_ptr<io::Backend>> choose_backend(const std::string& wanted) {
  if (wanted == "epoll") return io::make_epoll_backend(kFileThreads);
  auto ring = io::make_uring_backend();
  if (ring || wanted == "uring") return ring;
  log_info("{}; using epoll", ring.error().message);
  return io::make_epoll_backend(kFileThreads);
}

// Each connection is a descriptor: takes all that the system lets this process have. How many connections that makes,
// beside `others`, stores and listeners.
uint32_t raise_descriptor_limit(size_t others) {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return limits::kMaxConnections;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, rlim_t{limits::kMaxConnections} * 2);
  (void)::setrlimit(RLIMIT_NOFILE, &limit);
  (void)::getrlimit(RLIMIT_NOFILE, &limit);
  const rlim_t kept = kKeptDescriptors + 4 * others;
  return static_cast<uint32_t>(std::clamp<rlim_t>(limit.rlim_cur > kept ? limit.rlim_cur - kept : 1, 1,
                                                  limits::kMaxConnections));
}

int serve(const Arguments& arguments, const server::Config& config) {
  const uint32_t most = raise_descriptor_limit(config.exports.size() + config.listens.size());
  // Before the first thread and the first listen: from there on a signal means a drain, not a sudden end.
  server::Server::block_signals();
  std::unique_ptr<StdioClient> client;
  if (arguments.stdio) {
    auto taken = StdioClient::take();
    if (!taken) return fail(kFailed, taken.error().message);
    client = std::move(taken).value();
  }
  auto backend = choose_backend(arguments.io);
  if (!backend) return fail(kFailed, backend.error().message);
  const io::SteadyClock clock;
  server::ServerOptions options;
  options.threads = arguments.threads != 0 ? arguments.threads : std::thread::hardware_concurrency();
  if (arguments.stdio) options.threads = 1;
  options.threads = std::clamp(options.threads, 1u, limits::kMaxLoops);
  options.settings = arguments.settings;
  options.most_connections = most;
  options.prepare_socket = transport::tune_tcp;
  options.config_path = arguments.config_path;
  options.config_listens = arguments.config_listens;
  options.config_state_dir = arguments.config_state_dir;
  // A starting server waits for one that is still stopping; a running one does not wait for a file at a reload.
  Surroundings surroundings{.state_folder = arguments.state_dir, .lock_wait_ms = limits::kStoreLockWaitMs, .trace = arguments.trace};
  const auto open = [&](const std::string& store, bool read_only, const std::string& name) {
    return open_store(*backend.value(), store, read_only, surroundings, name);
  };
  server::Server server(*backend.value(), clock, open, take_place, options);
  surroundings.volumes->set_hand_over([&server](std::shared_ptr<server::Handover> wanted) { server.hand_over(std::move(wanted)); });
  if (auto opened = server.open(config); !opened) return fail(kFailed, opened.error().message);
  surroundings.lock_wait_ms = 0;
  std::printf("netblk_server " NETBLK_VERSION "\n");
  for (const std::string& line : server.banner()) std::printf("  %s\n", line.c_str());
  std::fflush(stdout);
  io::UniqueFd only;
  if (client != nullptr) only = client->socket();
  server.run(std::move(only));
  client.reset();
  std::printf("stopped\n");
  return 0;
}

// What to serve, by whichever way it was said; not 0: the exit status of a mistake that was told.
int configuration(Arguments& arguments, server::Config& config) {
  if (!arguments.positional.empty()) {
    if (!arguments.exports.empty() || !arguments.listens.empty() || !arguments.config_path.empty() || arguments.stdio)
      return fail(kMalformed, "PORT FILE SIZE_MB goes without --export, --listen, --config and --stdio");
    if (arguments.positional.size() != 3)
      return fail(kMalformed, "usage: netblk_server PORT FILE SIZE_MB, or --export NAME=STORE; see --help");
    auto original = original_form(arguments.positional);
    if (!original) return fail(kMalformed, original.error().message);
    config = std::move(original).value();
    return 0;
  }
  if (!arguments.config_path.empty()) {
    if (!arguments.exports.empty()) return fail(kMalformed, "exports come from --config or from --export, not from both");
    auto read = server::read_config(arguments.config_path);
    if (!read) return fail(kFailed, read.error().message);
    config = std::move(read).value();
    arguments.config_listens = server::listen_uris(config);
    arguments.config_state_dir = config.state_dir;
    if (arguments.state_dir.empty()) arguments.state_dir = config.state_dir;
  }
  auto given = from_options(arguments);
  if (!given) return fail(kMalformed, given.error().message);
  if (arguments.config_path.empty()) config.exports = given.value().exports;
  config.listens.insert(config.listens.end(), given.value().listens.begin(), given.value().listens.end());
  if (config.exports.empty())
    return fail(kMalformed, "nothing to export; usage: netblk_server PORT FILE SIZE_MB, or netblk_server --export NAME=STORE; "
                            "see --help");
  return 0;
}

int run(int argc, char** argv) {
  // Large blocks go back to the system when they are freed, whatever was freed before.
  ::mallopt(M_MMAP_THRESHOLD, 128 << 10);

  Arguments arguments;
  CLI::App app("Serves block devices: netblk/1, netblk/2 and NBD, over TCP and unix sockets.", "netblk_server");
  app.set_version_flag("--version", std::string("netblk_server " NETBLK_VERSION));
  app.add_option("PORT FILE SIZE_MB", arguments.positional,
                 "The original form: netblk on PORT of every address; FILE is created, or grown to SIZE_MB MiB");
  app.add_option("--export", arguments.exports,
                 "NAME=STORE, again for more. STORE: file:PATH[?size=10G][&direct=1], vol:PATH[@SNAPSHOT], mem:SIZE, null:SIZE; in its query "
                 "also ro, allow=CIDR[,CIDR], max-conns=N, description=TEXT; offset=BYTES&size=BYTES, partition=N, rate=BYTES, "
                 "iops=N, trace=FILE, readonly=1, delay-ms=N, fault=read+write+flush+trim. netblk/1 clients get the first export")
      ->type_name("NAME=STORE")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("--listen", arguments.listens,
                 "netblk://HOST:PORT, nbd://HOST:PORT, nbd+unix:///PATH[?mode=600] or netblk+unix:///PATH, again for more. "
                 "Default: netblk on port 10809 and NBD on port 10810 of 127.0.0.1 and ::1")
      ->type_name("URI")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("--config", arguments.config_path, "TOML file with listen = [URI] and [export.NAME]; SIGHUP reloads it")
      ->type_name("FILE");
  app.add_option("--state-dir", arguments.state_dir,
                 "Keep the records of file: stores in this folder. Default: FILE.netblk beside each FILE, and "
                 "/var/lib/netblk for block devices")
      ->type_name("DIR");
  CLI::Option* const trace =
      app.add_option("--trace", arguments.trace,
                     "One line for each request of every export, appended to FILE, or printed; for netblk replay")
          ->type_name("[FILE]")
          ->expected(0, 1);
  app.add_option("--io", arguments.io, "How to wait for input and output: auto, uring or epoll")
      ->check(CLI::IsMember({"auto", "uring", "epoll"}))
      ->type_name("KIND");
  app.add_option("--threads", arguments.threads, "Threads that serve connections. Default: one for each CPU")
      ->check(CLI::Range(1u, limits::kMaxLoops))
      ->type_name("N");
  CLI::Option* const busy_poll =
      app.add_option("--busy-poll", arguments.busy_poll,
                     "Microseconds for which a thread looks for the next request before it sleeps: quick answers for one "
                     "processor's time. 0 to 10000; 50 without a number. Default: 0")
          ->type_name("[MICROSECONDS]")
          ->expected(0, 1);
  app.add_flag("--stdio", arguments.stdio, "Serve one NBD client on the standard input and output, and end with it");
  const auto count = [&app](const char* name, std::optional<uint32_t>& value, const char* text) {
    app.add_option(name, value, text)->check(CLI::Range(1u, limits::kMaxConnections))->type_name("N");
  };
  count("--max-connections", arguments.settings.max_connections,
        "Connections at a time; at the limit a new one takes the place of the oldest that is still in its handshake, or is "
        "refused. Default: 16384");
  count("--max-connections-per-address", arguments.settings.max_connections_per_address,
        "The same, of one client's address (unix sockets have none). Default: no limit of its own");
  const auto seconds = [&app](const char* name, std::optional<uint64_t>& value_ms, const char* text) {
    app.add_option_function<double>(name, [&value_ms](double given) { value_ms = static_cast<uint64_t>(given * 1000); }, text)
        ->check(CLI::Range(limits::kMinTimeoutSeconds, limits::kMaxTimeoutSeconds))
        ->type_name("SECONDS");
  };
  seconds("--handshake-timeout", arguments.settings.handshake_timeout_ms,
          "Seconds that a client has for its handshake, all of it. Default: 10");
  seconds("--request-timeout", arguments.settings.request_timeout_ms,
          "Seconds that a request's header (at most 10), and then its data, may take to arrive. Default: 30");
  seconds("--send-timeout", arguments.settings.send_timeout_ms,
          "Seconds for which a client may take no byte of its replies. Default: 30");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return app.exit(error);
    return fail(kMalformed, std::string(error.what()) + "; see netblk_server --help");
  }
  if (trace->count() > 0 && arguments.trace.empty()) arguments.trace = "-";
  if (busy_poll->count() > 0) {
    const auto microseconds = arguments.busy_poll.empty() ? limits::kBusyPollUs
                                                          : parse_unsigned(arguments.busy_poll, 0, limits::kMaxBusyPollUs);
    if (!microseconds)
      return fail(kMalformed, fmt::format("bad --busy-poll '{}': use microseconds, 0 to {}", arguments.busy_poll,
                                          limits::kMaxBusyPollUs));
    arguments.settings.busy_poll_us = static_cast<uint32_t>(*microseconds);
  }

  auto inherited = inherited_listens();
  if (!inherited) return fail(kFailed, inherited.error().message);
  if (arguments.stdio) {
    if (!arguments.listens.empty()) return fail(kMalformed, "--stdio serves one client, and goes without --listen");
    if (!inherited.value().empty())
      return fail(kMalformed, "--stdio serves one client, and goes without the sockets of LISTEN_FDS");
  }
  server::Config config;
  if (auto made = configuration(arguments, config); made != 0) return made;
  if (arguments.stdio) {
    config.listens.clear();
  } else if (!inherited.value().empty()) {
    say_on_stderr();
    config.listens.insert(config.listens.end(), inherited.value().begin(), inherited.value().end());
  } else if (config.listens.empty()) {
    config.listens = server::default_listens();
  }
  return serve(arguments, config);
}

}  // namespace
}  // namespace netblk::tools

int main(int argc, char** argv) { return netblk::tools::run(argc, argv); }
