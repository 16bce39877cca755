// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_driver.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <netdb.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <memory>
#include <sstream>

#include "base/limits.h"
#include "base/parse.h"
#include "io/fd.h"
#include "netblk_state.h"

namespace netblk::tools {
namespace {

const std::string kAttributes = "/sys/block/netblk/";

Status write_attribute(const char* name, const std::string& value) {
  const std::string path = kAttributes + name;
  const io::UniqueFd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file.valid()) return make_error(errno, "cannot open {}: {}", path, errno_text(errno));
  if (::write(file.get(), value.data(), value.size()) != static_cast<ssize_t>(value.size()))
    return make_error(errno, "writing {} to {} failed: {} (the kernel log says why)", value, path, errno_text(errno));
  return Ok{};
}

// The driver knows IPv4 addresses only.
Result<std::string> ipv4_of(const std::string& host) {
  addrinfo wanted{};
  wanted.ai_family = AF_INET;
  wanted.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int status = ::getaddrinfo(host.c_str(), nullptr, &wanted, &found);
  if (status != 0)
    return make_error(EHOSTUNREACH, "{} has no IPv4 address, which the driver needs: {}", host, ::gai_strerror(status));
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(found, &::freeaddrinfo);
  std::array<char, INET_ADDRSTRLEN> text{};
  ::inet_ntop(AF_INET, &reinterpret_cast<const sockaddr_in*>(found->ai_addr)->sin_addr, text.data(), text.size());
  return std::string(text.data());
}

Status set_read_only(bool read_only) {
  const io::UniqueFd node(::open(kDriverNode, O_RDONLY | O_CLOEXEC));
  const int value = read_only ? 1 : 0;
  if (!node.valid() || ::ioctl(node.get(), BLKROSET, &value) != 0)
    return make_error(errno, "cannot make {} {}: {}", kDriverNode, read_only ? "read-only" : "writable",
                      errno_text(errno));
  return Ok{};
}

}  // namespace

bool driver_is_loaded() { return ::access("/sys/block/netblk/connect", F_OK) == 0; }

Result<DriverState> read_driver_state() {
  if (!driver_is_loaded()) return make_error(ENOENT, "the netblk driver is not loaded");
  DriverState state;
  state.state = read_text(kAttributes + "state");
  state.server = "netblk://" + read_text(kAttributes + "server_ip") + ":" + read_text(kAttributes + "server_port");
  state.size_bytes = parse_unsigned(read_text(kAttributes + "size"), 0, UINT64_MAX / limits::kSectorBytes).value_or(0) *
                     limits::kSectorBytes;
  state.read_only = read_text(kAttributes + "ro") == "1";
  std::istringstream stats(read_text(kAttributes + "stats"));
  std::string label;
  uint64_t value = 0;
  while (stats >> label >> value) {
    if (label == "read_bytes:") state.read_bytes = value;
    if (label == "write_bytes:") state.write_bytes = value;
    if (label == "errors:") state.errors = value;
  }
  return state;
}

Result<std::string> driver_attach(const ServerUri& uri, const DriverOptions& options) {
  auto before = read_driver_state();
  if (!before) return std::move(before).error();
  const DriverState& now = before.value();
  if (options.size_bytes && *options.size_bytes != now.size_bytes)
    return make_error(EINVAL, "{} has {} bytes, not {}: its size is set when the driver is loaded (size_mb=)",
                      kDriverNode, now.size_bytes, *options.size_bytes);
  auto ip = ipv4_of(uri.host);
  if (!ip) return std::move(ip).error();
  const std::string server = fmt::format("netblk://{}:{}", ip.value(), uri.port);
  if (now.state == "connected" && now.server != server)
    return make_error(EBUSY, "{} is connected to {}: detach it first", kDriverNode, now.server);
  if (now.state == "connected" && now.read_only != options.read_only)
    return make_error(EBUSY, "{} is attached already, {}: detach it first", kDriverNode,
                      now.read_only ? "read-only" : "for writing");
  if (options.timeout_ms) {
    for (const char* name : {"io_timeout_ms", "connect_timeout_ms"}) {
      Status set = write_attribute(name, std::to_string(*options.timeout_ms));
      if (!set) return std::move(set).error();
    }
  }
  Status done = write_attribute("server_ip", ip.value());
  if (done) done = write_attribute("server_port", std::to_string(uri.port));
  // Before the connection: no moment in which a read-only disk can be written.
  if (done && now.read_only != options.read_only) done = set_read_only(options.read_only);
  if (done) done = write_attribute("connect", "1");
  if (!done) return std::move(done).error();
  return std::string(kDriverNode);
}

Result<bool> driver_detach() {
  auto before = read_driver_state();
  if (!before || before.value().state == "disconnected") return false;
  Status done = write_attribute("disconnect", "1");
  if (!done) return std::move(done).error();
  return true;
}

}  // namespace netblk::tools
