// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_client.h"

#include <cerrno>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/log.h"
#include "netblk_names.h"
#include "transport/tcp.h"
#include "transport/tcp_dialer.h"

namespace netblk::tools {

using nlohmann::json;

// Every deadline is the user's --timeout, or three times that.
Status HelperClient::open(io::Backend& backend, const io::Clock& clock, const ServerUri& uri,
                          const AttachOptions& options, const std::string& purpose) {
  const uint64_t timeout_ms = options.timeout_ms;
  client::Options2 netblk2;
  netblk2.name = uri.text();
  netblk2.export_name = uri.export_name;
  netblk2.client_id = client_id_of(purpose + " " + uri.text());
  netblk2.read_only = options.read_only;
  netblk2.shared = options.shared;
  netblk2.takeover = options.takeover;
  netblk2.connections = options.connections;
  netblk2.connect_timeout_ms = timeout_ms;
  if (options.timeout_given) {
    netblk2.dead_time_ms = 3 * timeout_ms;
    netblk2.request_timeout_ms = 4 * timeout_ms;
  }
  const client::Options netblk1{.name = uri.text(),
                                .size_bytes = options.size_bytes,
                                .read_only = options.read_only,
                                .timeout_ms = timeout_ms};
  auto opened = client::open_auto(
      backend, clock, std::make_unique<transport::TcpDialer>(uri.host, uri.port), netblk2,
      [uri](uint64_t within_ms) { return transport::tcp_connect(uri.host, uri.port, within_ms); }, netblk1);
  if (!opened) return std::move(opened).error();
  client_ = std::move(opened).value();
  if (client_.netblk1 && !uri.export_name.empty())
    return make_error(EINVAL, "{} speaks netblk/1, which cannot name an export; leave \"/{}\" out", uri.address(),
                      uri.export_name);
  if (client_.netblk1 && (options.shared || options.takeover))
    return make_error(EINVAL, "{} speaks netblk/1, which has no owners: --shared and --takeover mean nothing there",
                      uri.address());
  const uint64_t size_bytes = client_.device().size_bytes();
  if (options.size_bytes != 0 && options.size_bytes != size_bytes)
    return make_error(EINVAL, "{} has {} bytes, not {}: leave --size out", uri.text(), size_bytes, options.size_bytes);
  if (!options.read_only && client_.device().geometry().read_only)
    return make_error(EROFS, "{} is read-only: attach it with --read-only", uri.text());
  return Ok{};
}

json HelperClient::live_state() {
  const block::Counters counters = device().counters();
  json live = {{"size_bytes", device().size_bytes()},
               {"read_bytes", counters.read_bytes},
               {"write_bytes", counters.write_bytes},
               {"errors", counters.errors}};
  if (client_.netblk1) {
    live["protocol"] = "1";
    live["state"] = client::state_text(client_.netblk1->state());
    live["reconnects"] = client_.netblk1->reconnects();
    live["last_error"] = client_.netblk1->last_error();
    return live;
  }
  const client::Status2 status = client_.netblk2->status();
  live["protocol"] = "2";
  live["state"] = client::state_text(status.state);
  live["reconnects"] = status.reconnects;
  live["last_error"] = status.last_error;
  live["generation"] = client_.netblk2->generation().counter;
  live["lost"] = status.lost;
  live["lost_why"] = status.lost_reason;
  return live;
}

std::string HelperClient::reset_lost(const std::string& disk) {
  if (!client_.netblk2 || !client_.netblk2->lost()) return "nothing";
  log_warning("{}: the owner has taken note of the loss", disk);
  client_.netblk2->reset_lost();
  return "ok";
}

}  // namespace netblk::tools
