// SPDX-License-Identifier: GPL-2.0-only
// Where the time of a disk's requests goes: the client's queue, the wire, the server, its medium.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

#include "client/state.h"

namespace netblk::tools {

// Of all that a client has had answered, by kind.
struct Latencies {
  client::Latency reads{}, writes{}, flushes{}, trims{};
};

// As a helper tells it to `netblk status`, and back. What makes no sense is taken for nothing.
nlohmann::json told_latencies(const Latencies& latencies);
std::optional<Latencies> latencies_told(const nlohmann::json& told);

// The mean of a request, in microseconds.
struct Split {
  std::optional<double> queue_us, round_trip_us;  // nothing: no request was answered
  // Parts of the round trip; nothing: the server does not tell, or has not told yet.
  std::optional<double> wire_us, server_us, media_us;
};
// Of the requests that were answered between two looks. `before` empty: since ever. A client that has begun anew
// meanwhile has begun from zero.
Split split_of(const client::Latency& before, const client::Latency& now);
// Of all kinds together.
client::Latency sum_of(const Latencies& latencies);

nlohmann::json split_json(const Split& split);
// "1.25 ms", "80 us"; "-" for nothing.
std::string time_text(const std::optional<double>& us);

}  // namespace netblk::tools
