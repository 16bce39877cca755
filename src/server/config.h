// SPDX-License-Identifier: GPL-2.0-only
// What a server serves and where: the command line's and the configuration file's common form (DESIGN 5).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "io/address.h"

namespace netblk::server {

// An address range: "192.0.2.0/24", "2001:db8::/32", or one address.
struct Cidr {
  std::array<uint8_t, 16> network{};
  unsigned prefix_bits = 128;  // of the IPv6 form

  bool contains(const io::Address& address) const;
  bool operator==(const Cidr&) const = default;
};

Result<Cidr> parse_cidr(std::string_view text);

struct ExportConfig {
  std::string name;
  std::string store;  // without the export options: "file:/srv/a.img?size=10G"
  std::string description;  // for people who ask what is exported
  bool read_only = false;
  std::vector<Cidr> allow;  // empty: everybody
  uint32_t max_connections = 0;  // 0: only the server's own limit

  bool operator==(const ExportConfig&) const = default;
};

// NAME=STORE. Export options stand in STORE's query beside the store's own ("file:/srv/a.img?size=10G&ro&max-conns=4")
// or after it with commas ("file:/srv/a.img?size=10G,ro,max-conns=4"). `allow` takes a list with commas; in `description`
// %XX stands for a byte.
Result<ExportConfig> parse_export(std::string_view text);

// Whether a description can be told to a client.
Status check_description(std::string_view name, std::string_view text);

// A store's text without its option `size=`, and that size in bytes; 0: it names none.
struct SizedStore {
  std::string rest;
  uint64_t size_bytes = 0;
};
SizedStore split_size(std::string_view store);

enum class Protocol : uint8_t { kNetblk, kNbd };

// kInherited: a listening socket that whoever started the server gave it.
enum class ListenKind : uint8_t { kTcp, kUnix, kInherited };

struct ListenConfig {
  std::string uri;  // as it was written; of an inherited one: which it is
  Protocol protocol = Protocol::kNetblk;
  ListenKind kind = ListenKind::kTcp;
  std::string host;  // kTcp; empty: every address
  uint16_t port = 0;
  std::string path;  // kUnix: of the socket's file,
  uint32_t mode = 0;  // and its mode
  int fd = -1;  // kInherited
  // Left out, with a line in the log, where the machine does not have this family of addresses.
  bool optional = false;
};

//   netblk://HOST:PORT   nbd://HOST:PORT   netblk+unix:///PATH[?mode=600]   nbd+unix:///PATH[?mode=600]
// Without a port 10809, which is what clients take a URI without one to mean. Other schemes are refused by name.
Result<ListenConfig> parse_listen(std::string_view text);

// Where a server listens that was not told: netblk on 10809 and NBD on 10810 of the loopback addresses.
std::vector<ListenConfig> default_listens();

// The limits that a user may set; what is not set has the value of limits.h.
struct Settings {
  std::optional<uint32_t> max_connections;
  std::optional<uint32_t> max_connections_per_address;
  std::optional<uint64_t> handshake_timeout_ms;
  std::optional<uint64_t> request_timeout_ms;
  std::optional<uint64_t> send_timeout_ms;
  std::optional<uint32_t> busy_poll_us;

  // These, and where they are silent `other`'s.
  Settings over(const Settings& other) const;
};

struct Config {
  std::vector<ExportConfig> exports;  // in order: netblk/1 and an empty name mean the first
  std::vector<ListenConfig> listens;
  std::string state_dir;  // where stores keep their records; empty: beside themselves
  Settings settings;
};

// `text`: of the file `path`, which errors name with line and column.
//   listen = ["netblk://127.0.0.1:10809"]
//   state-dir = "/var/lib/netblk"
//   max-connections = 1000
//   max-connections-per-address = 100
//   handshake-timeout = 10
//   request-timeout = 30
//   send-timeout = 30
//   busy-poll = 50
//   [export.NAME]
//   store = "file:/srv/a.img?size=10G"
//   ro = true
//   allow = ["192.0.2.0/24"]
//   max-conns = 4
//   description = "the disk of host a"
Result<Config> parse_config(std::string_view text, const std::string& path);
Result<Config> read_config(const std::string& path);

// Where a configuration listens, as it is written there.
std::vector<std::string> listen_uris(const Config& config);

}  // namespace netblk::server
