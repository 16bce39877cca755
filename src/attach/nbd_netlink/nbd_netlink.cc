// SPDX-License-Identifier: GPL-2.0-only
#include "attach/nbd_netlink/nbd_netlink.h"

#include <fcntl.h>
#include <linux/nbd-netlink.h>
#include <netlink/attr.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <fstream>

#include "base/parse.h"

namespace netblk::attach {
namespace {

constexpr const char* kModule = "nbd";
constexpr uint32_t kMaxNumber = (1u << 20) - 1;  // minors

// A time-out that nobody else would set: the kernel puts its own in its place on a socket that it takes.
constexpr timeval kMark{.tv_sec = 86'399, .tv_usec = 0};
// So that it has one for the moment. Requests that begin in that moment keep it.
constexpr uint64_t kMomentS = 30;

// Whether this kernel has the module as a file.
bool module_is_there() {
  utsname system{};
  if (::uname(&system) != 0) return false;
  const std::string folder = std::string("/lib/modules/") + system.release;
  const std::string file = fmt::format("/{}.ko", kModule);
  std::ifstream list(folder + "/modules.dep");
  for (std::string line; std::getline(list, line);) {
    const std::string path = line.substr(0, line.find(':'));
    if (const size_t at = path.rfind('/'); at != std::string::npos && path.compare(at, file.size(), file) == 0)
      return true;
  }
  return ::access(fmt::format("{}/kernel/drivers/block{}", folder, file).c_str(), F_OK) == 0;
}

Error no_family() {
  utsname system{};
  (void)::uname(&system);
  if (module_is_there())
    return make_error(ENOENT, "the kernel's module nbd is not loaded: modprobe nbd");
  return make_error(ENOENT, "this kernel ({}) has no module nbd (CONFIG_BLK_DEV_NBD): use another --via", system.release);
}

int put_socket(nl_msg* message, int socket) {
  nlattr* const item = nla_nest_start(message, NBD_SOCK_ITEM);
  if (item == nullptr) return -1;
  const int put = nla_put_u32(message, NBD_SOCK_FD, static_cast<uint32_t>(socket));
  nla_nest_end(message, item);
  return put;
}

int put_sockets(nl_msg* message, std::span<const int> sockets) {
  nlattr* const list = nla_nest_start(message, NBD_ATTR_SOCKETS);
  if (list == nullptr) return -1;
  for (const int socket : sockets)
    if (put_socket(message, socket) < 0) return -1;
  nla_nest_end(message, list);
  return 0;
}

int put_name(nl_msg* message, uint32_t number, const std::string& backend) {
  const int put = nla_put_u32(message, NBD_ATTR_INDEX, number);
  return put < 0 ? put : nla_put_string(message, NBD_ATTR_BACKEND_IDENTIFIER, backend.c_str());
}

int put_setup(nl_msg* message, const NbdSetup& setup) {
  const std::array<std::pair<int, uint64_t>, 6> numbers = {{{NBD_ATTR_SIZE_BYTES, setup.size_bytes},
                                                            {NBD_ATTR_BLOCK_SIZE_BYTES, setup.block_bytes},
                                                            {NBD_ATTR_TIMEOUT, setup.timeout_s},
                                                            {NBD_ATTR_DEAD_CONN_TIMEOUT, setup.dead_conn_timeout_s},
                                                            {NBD_ATTR_SERVER_FLAGS, setup.server_flags},
                                                            // the disk stays after a disconnect, and after its last close
                                                            {NBD_ATTR_CLIENT_FLAGS, 0}}};
  for (const auto& [attribute, number] : numbers)
    if (const int put = nla_put_u64(message, attribute, number); put < 0) return put;
  if (setup.number)
    if (const int put = nla_put_u32(message, NBD_ATTR_INDEX, *setup.number); put < 0) return put;
  return nla_put_string(message, NBD_ATTR_BACKEND_IDENTIFIER, setup.backend.c_str());
}

}  // namespace

Result<NbdNetlink> NbdNetlink::open() {
  auto family = Genl::open(NBD_GENL_FAMILY_NAME, NBD_GENL_VERSION, NBD_ATTR_MAX);
  if (!family && family.error().code == ENOENT) return no_family();
  if (!family) return std::move(family).error();
  return NbdNetlink(std::move(family).value());
}

Result<uint32_t> NbdNetlink::connect(const NbdSetup& setup, std::span<const int> sockets) {
  std::optional<uint32_t> number;
  Status done = family_.ask(
      NBD_CMD_CONNECT,
      [&](nl_msg* message) {
        const int put = put_setup(message, setup);
        return put < 0 ? put : put_sockets(message, sockets);
      },
      [&](std::span<nlattr* const> answer) {
        if (const auto told = u32_of(answer[NBD_ATTR_INDEX])) number = told;
      });
  if (!done && done.error().code == EBUSY && setup.number)
    return make_error(EBUSY, "{} is in use: detach it, or leave --device out", nbd_node(*setup.number));
  if (!done) return make_error(done.error().code, "the kernel's nbd refuses: {} (its log says why)", done.error().message);
  if (!number) return make_error(EPROTO, "the kernel's nbd does not say which disk it took");
  return *number;
}

// The kernel answers the same whether it had a use for the socket; on one that it takes it sets its time-out, if it has one.
Result<bool> NbdNetlink::replace_dead(uint32_t number, const std::string& backend, int socket, bool untimed) {
  timeval before{};
  socklen_t length = sizeof before;
  if (::getsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &before, &length) != 0 ||
      ::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &kMark, sizeof kMark) != 0)
    return make_error(errno, "cannot set a socket's time-out: {}", errno_text(errno));
  Status done = family_.ask(NBD_CMD_RECONFIGURE, [&](nl_msg* message) {
    int put = put_name(message, number, backend);
    if (put >= 0 && untimed) put = nla_put_u64(message, NBD_ATTR_TIMEOUT, kMomentS);
    return put < 0 ? put : put_sockets(message, std::span(&socket, 1));
  });
  if (untimed) {
    Status taken_back = family_.ask(NBD_CMD_RECONFIGURE, [&](nl_msg* message) {
      const int put = put_name(message, number, backend);
      return put < 0 ? put : nla_put_u64(message, NBD_ATTR_TIMEOUT, 0);
    });
    if (done) done = std::move(taken_back);
  }
  if (!done) return make_error(done.error().code, "the kernel's nbd refuses a socket: {}", done.error().message);
  timeval after{};
  length = sizeof after;
  if (::getsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &after, &length) != 0)
    return make_error(errno, "cannot read a socket's time-out: {}", errno_text(errno));
  if (untimed && ::setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &before, sizeof before) != 0)
    return make_error(errno, "cannot set a socket's time-out: {}", errno_text(errno));
  return after.tv_sec != kMark.tv_sec;
}

Status NbdNetlink::resize(uint32_t number, const std::string& backend, uint64_t size_bytes) {
  Status done = family_.ask(NBD_CMD_RECONFIGURE, [&](nl_msg* message) {
    const int put = put_name(message, number, backend);
    return put < 0 ? put : nla_put_u64(message, NBD_ATTR_SIZE_BYTES, size_bytes);
  });
  if (!done) return make_error(done.error().code, "the kernel's nbd refuses a size: {}", done.error().message);
  return Ok{};
}

// A reconfiguration that changes nothing is refused where there is nothing to reconfigure.
Result<bool> NbdNetlink::is_ours(uint32_t number, const std::string& backend) {
  Status done = family_.ask(NBD_CMD_RECONFIGURE, [&](nl_msg* message) { return put_name(message, number, backend); });
  if (done) return true;
  if (done.error().code == EINVAL) return false;
  return std::move(done).error();
}

Status NbdNetlink::disconnect(uint32_t number) {
  Status done = family_.ask(NBD_CMD_DISCONNECT,
                            [&](nl_msg* message) { return nla_put_u32(message, NBD_ATTR_INDEX, number); });
  if (!done)
    return make_error(done.error().code, "the kernel's nbd does not disconnect {}: {}", nbd_node(number),
                      done.error().message);
  return Ok{};
}

Result<NbdEvents> NbdEvents::open() {
  auto events = GenlEvents::open(NBD_GENL_FAMILY_NAME, NBD_GENL_MCAST_GROUP_NAME, NBD_ATTR_MAX);
  if (!events && events.error().code == ENOENT) return no_family();
  if (!events) return std::move(events).error();
  return NbdEvents(std::move(events).value());
}

bool NbdEvents::link_died(uint32_t number) const {
  bool died = false;
  const bool all = events_.take([&](uint8_t command, std::span<nlattr* const> told) {
    if (command == NBD_CMD_LINK_DEAD && u32_of(told[NBD_ATTR_INDEX]) == number) died = true;
  });
  return died || !all;
}

std::string nbd_node(uint32_t number) { return fmt::format("/dev/nbd{}", number); }

std::optional<uint32_t> nbd_number(const std::string& node) {
  constexpr std::string_view kPrefix = "/dev/nbd";
  if (!node.starts_with(kPrefix)) return std::nullopt;
  const auto number = parse_unsigned(std::string_view(node).substr(kPrefix.size()), 0, kMaxNumber);
  if (!number || nbd_node(static_cast<uint32_t>(*number)) != node) return std::nullopt;
  return static_cast<uint32_t>(*number);
}

}  // namespace netblk::attach
