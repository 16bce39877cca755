// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_latency.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

namespace netblk::tools {

using client::Latency;
using nlohmann::json;

namespace {

struct Field {
  const char* name;
  uint64_t Latency::*value;
};
constexpr Field kFields[] = {{"requests", &Latency::requests},   {"queue_ns", &Latency::queue_ns},
                             {"trip_ns", &Latency::trip_ns},     {"told", &Latency::told},
                             {"told_trip_ns", &Latency::told_trip_ns}, {"server_ns", &Latency::server_ns},
                             {"store_ns", &Latency::store_ns}};
static_assert(sizeof(Latency) == std::size(kFields) * sizeof(uint64_t), "every field is told");

json told(const Latency& latency) {
  json object = json::object();
  for (const Field& field : kFields) object[field.name] = latency.*field.value;
  return object;
}

bool take(const json& from, const char* name, Latency& latency) {
  const auto at = from.find(name);
  if (at == from.end() || !at->is_object()) return false;
  for (const Field& field : kFields) {
    const auto value = at->find(field.name);
    if (value == at->end() || !value->is_number_unsigned()) return false;
    latency.*field.value = value->get<uint64_t>();
  }
  return true;
}

std::optional<double> mean_us(uint64_t ns, uint64_t count) {
  if (count == 0) return std::nullopt;
  return static_cast<double>(ns) / 1000 / static_cast<double>(count);
}

json number(const std::optional<double>& us) { return us ? json(*us) : json(nullptr); }

}  // namespace

json told_latencies(const Latencies& latencies) {
  return {{"read", told(latencies.reads)},
          {"write", told(latencies.writes)},
          {"flush", told(latencies.flushes)},
          {"trim", told(latencies.trims)}};
}

std::optional<Latencies> latencies_told(const json& told) {
  Latencies latencies;
  if (!told.is_object() || !take(told, "read", latencies.reads) || !take(told, "write", latencies.writes) ||
      !take(told, "flush", latencies.flushes) || !take(told, "trim", latencies.trims))
    return std::nullopt;
  return latencies;
}

Split split_of(const Latency& before, const Latency& now) {
  Latency passed = now;
  for (const Field& field : kFields) {
    if (now.*field.value < before.*field.value) return split_of({}, now);
    passed.*field.value -= before.*field.value;
  }
  Split split;
  split.queue_us = mean_us(passed.queue_ns, passed.requests);
  split.round_trip_us = mean_us(passed.trip_ns, passed.requests);
  // Two of the sums may be of slightly different moments.
  const uint64_t at_server_ns = passed.server_ns + passed.store_ns;
  split.wire_us = mean_us(passed.told_trip_ns > at_server_ns ? passed.told_trip_ns - at_server_ns : 0, passed.told);
  split.server_us = mean_us(passed.server_ns, passed.told);
  split.media_us = mean_us(passed.store_ns, passed.told);
  return split;
}

Latency sum_of(const Latencies& latencies) {
  Latency sum;
  for (const Field& field : kFields)
    for (const Latency* each : {&latencies.reads, &latencies.writes, &latencies.flushes, &latencies.trims})
      sum.*field.value += each->*field.value;
  return sum;
}

json split_json(const Split& split) {
  return {{"queue_us", number(split.queue_us)},
          {"round_trip_us", number(split.round_trip_us)},
          {"wire_us", number(split.wire_us)},
          {"server_us", number(split.server_us)},
          {"media_us", number(split.media_us)}};
}

std::string time_text(const std::optional<double>& us) {
  if (!us) return "-";
  if (*us == 0) return "0";
  if (*us < 1000) return fmt::format("{:.0f} us", *us);
  if (*us < 1'000'000) return fmt::format("{:.3g} ms", *us / 1000);
  return fmt::format("{:.3g} s", *us / 1'000'000);
}

}  // namespace netblk::tools
