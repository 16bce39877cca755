// SPDX-License-Identifier: GPL-2.0-only
#include "attach/ublk/ublk_control.h"

#include <fcntl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <span>

#include "attach/ublk/ublk_abi.h"
#include "base/check.h"
#include "base/limits.h"
#include "base/parse.h"

namespace netblk::attach {
namespace {

constexpr const char* kControlNode = "/dev/ublk-control";
constexpr const char* kModule = "ublk_drv";
constexpr uint32_t kMaxNumber = (1u << 20) - 1;  // minors
// Of one request; the kernel divides what is longer.
constexpr uint32_t kMaxTrimBytes = 1u << 30;

bool module_is_there(const std::string& release) {
  const std::string folder = "/lib/modules/" + release;
  std::ifstream list(folder + "/modules.dep");
  for (std::string line; std::getline(list, line);)
    if (line.find(std::string("/") + kModule + ".ko") < line.find(':')) return true;
  return ::access(fmt::format("{}/kernel/drivers/block/{}.ko", folder, kModule).c_str(), F_OK) == 0;
}

Error no_module() {
  utsname system{};
  (void)::uname(&system);
  if (module_is_there(system.release)) return make_error(ENOENT, "the kernel's module ublk_drv is not loaded: modprobe ublk_drv");
  return make_error(ENOENT,
                    "this kernel ({}) has no module ublk_drv (CONFIG_BLK_DEV_UBLK, Linux 6.0 or later; Debian 12 has it in the "
                    "kernel 6.12 of its security archive, linux-image-6.12-amd64): use another --via",
                    system.release);
}

UblkState state_of(uint16_t state) {
  switch (state) {
    case UBLK_S_DEV_LIVE:
      return UblkState::kLive;
    case UBLK_S_DEV_DEAD:
      return UblkState::kDead;
    default:
      return UblkState::kQuiesced;
  }
}

uint8_t shift_of(uint32_t bytes) { return static_cast<uint8_t>(std::countr_zero(bytes)); }

// Zero, or why not.
Status outcome(int result, const char* what, uint32_t number) {
  if (result >= 0) return Ok{};
  return make_error(-result, "the kernel's ublk does not {} {}: {}", what, ublk_node(number), errno_text(-result));
}

}  // namespace

ublk_params abi::params_of(const UblkTraits& traits) {
  NETBLK_CHECK(std::has_single_bit(traits.logical_bytes) && std::has_single_bit(traits.physical_bytes) &&
                   std::has_single_bit(traits.optimal_bytes) && traits.logical_bytes >= limits::kSectorBytes &&
                   traits.physical_bytes >= traits.logical_bytes && traits.optimal_bytes >= traits.physical_bytes,
               "block sizes that no disk has");
  ublk_params params{};
  params.len = sizeof params;
  params.types = UBLK_PARAM_TYPE_BASIC | UBLK_PARAM_TYPE_DISCARD;
  if (traits.read_only) params.basic.attrs |= UBLK_ATTR_READ_ONLY;
  if (traits.rotational) params.basic.attrs |= UBLK_ATTR_ROTATIONAL;
  if (traits.volatile_cache) params.basic.attrs |= UBLK_ATTR_VOLATILE_CACHE;
  if (traits.volatile_cache && traits.fua) params.basic.attrs |= UBLK_ATTR_FUA;
  params.basic.logical_bs_shift = shift_of(traits.logical_bytes);
  params.basic.physical_bs_shift = shift_of(traits.physical_bytes);
  params.basic.io_min_shift = shift_of(traits.physical_bytes);
  params.basic.io_opt_shift = shift_of(traits.optimal_bytes);
  params.basic.max_sectors = traits.max_io_bytes / limits::kSectorBytes;
  params.basic.dev_sectors = traits.size_bytes / traits.logical_bytes * (traits.logical_bytes / limits::kSectorBytes);
  params.discard.discard_granularity = traits.physical_bytes;
  if (traits.can_trim && !traits.read_only) {
    params.discard.max_discard_sectors = kMaxTrimBytes / limits::kSectorBytes;
    params.discard.max_discard_segments = 1;
  }
  if (traits.can_write_zeroes && !traits.read_only)
    params.discard.max_write_zeroes_sectors = kMaxTrimBytes / limits::kSectorBytes;
  return params;
}

Result<UblkControl> UblkControl::open() {
  io::UniqueFd fd(::open(kControlNode, O_RDWR | O_CLOEXEC));
  if (!fd.valid() && (errno == ENOENT || errno == ENXIO || errno == ENODEV)) return no_module();
  if (!fd.valid()) return make_error(errno, "cannot open {}: {}", kControlNode, errno_text(errno));
  auto ring = io::CommandRing::open();
  if (!ring)
    return make_error(ring.error().code, "ublk speaks io_uring, and {} (see sysctl kernel.io_uring_disabled, and the limits of "
                                         "containers)", ring.error().message);
  UblkControl control(std::move(fd), std::move(ring).value());
  // Kernels before 6.5 do not know the question, and have none of what it could tell.
  uint64_t features = 0;
  ublksrv_ctrl_cmd asked{};
  asked.dev_id = ~0u;
  asked.queue_id = static_cast<uint16_t>(~0u);
  asked.addr = reinterpret_cast<uint64_t>(&features);
  asked.len = sizeof features;
  if (control.ring_.run(control.fd_.get(), abi::control_number(abi::kGetFeatures, true, true),
                        std::as_bytes(std::span(&asked, 1))) >= 0)
    control.features_ = features;
  return control;
}

int UblkControl::run(uint32_t command, uint32_t number, void* buffer, size_t bytes, uint64_t word) {
  ublksrv_ctrl_cmd asked{};
  asked.dev_id = number;
  asked.queue_id = static_cast<uint16_t>(~0u);
  asked.addr = reinterpret_cast<uint64_t>(buffer);
  asked.len = static_cast<uint16_t>(bytes);
  asked.data[0] = word;
  const bool reads = command == UBLK_CMD_GET_DEV_INFO || command == UBLK_CMD_GET_PARAMS;
  return ring_.run(fd_.get(), abi::control_number(command, encoded(), reads), std::as_bytes(std::span(&asked, 1)));
}

Status UblkControl::add(uint32_t number, const UblkSetup& setup) {
  ublksrv_ctrl_dev_info info{};
  info.nr_hw_queues = 1;
  info.queue_depth = static_cast<uint16_t>(setup.depth);
  info.max_io_buf_bytes = setup.max_io_bytes;
  info.dev_id = number;
  info.ublksrv_flags = setup.mark;
  if (setup.recovers) info.flags = UBLK_F_USER_RECOVERY | UBLK_F_USER_RECOVERY_REISSUE;
  return outcome(run(UBLK_CMD_ADD_DEV, number, &info, sizeof info), "make", number);
}

Status UblkControl::set_traits(uint32_t number, const UblkTraits& traits) {
  ublk_params params = abi::params_of(traits);
  return outcome(run(UBLK_CMD_SET_PARAMS, number, &params, sizeof params), "take the sizes of", number);
}

Status UblkControl::start(uint32_t number) {
  return outcome(run(UBLK_CMD_START_DEV, number, nullptr, 0, static_cast<uint64_t>(::getpid())), "begin", number);
}

Status UblkControl::stop(uint32_t number) { return outcome(run(UBLK_CMD_STOP_DEV, number, nullptr, 0), "stop", number); }

// The kernel takes parameters only as long as no block device of this number is there, and one stays until its last close.
Result<bool> UblkControl::is_held(uint32_t number) {
  ublk_params params = abi::params_of({.size_bytes = limits::kSectorBytes, .max_io_bytes = 4096});
  const int result = run(UBLK_CMD_SET_PARAMS, number, &params, sizeof params);
  if (result == -EACCES) return true;
  Status asked = outcome(result, "tell about", number);
  if (!asked) return std::move(asked).error();
  return false;
}

Status UblkControl::remove(uint32_t number) { return outcome(run(UBLK_CMD_DEL_DEV, number, nullptr, 0), "remove", number); }

Result<UblkInfo> UblkControl::info(uint32_t number) {
  ublksrv_ctrl_dev_info info{};
  Status asked = outcome(run(UBLK_CMD_GET_DEV_INFO, number, &info, sizeof info), "tell about", number);
  if (!asked) return std::move(asked).error();
  return UblkInfo{.state = state_of(info.state),
                  .mark = info.ublksrv_flags,
                  .pid = info.ublksrv_pid,
                  .depth = info.queue_depth,
                  .max_io_bytes = info.max_io_buf_bytes,
                  .recovers = (info.flags & UBLK_F_USER_RECOVERY) != 0};
}

Status UblkControl::begin_recovery(uint32_t number) {
  return outcome(run(UBLK_CMD_START_USER_RECOVERY, number, nullptr, 0), "hand over", number);
}

Status UblkControl::end_recovery(uint32_t number) {
  return outcome(run(UBLK_CMD_END_USER_RECOVERY, number, nullptr, 0, static_cast<uint64_t>(::getpid())), "go on with", number);
}

Status UblkControl::resize(uint32_t number, uint64_t size_bytes) {
  if ((features_ & abi::kFeatureUpdateSize) == 0)
    return make_error(EOPNOTSUPP, "the kernel's ublk cannot change the size of {} before Linux 6.16: detach it, and attach it anew",
                      ublk_node(number));
  return outcome(run(abi::kUpdateSize, number, nullptr, 0, size_bytes / limits::kSectorBytes), "resize", number);
}

Status ublk_found() {
  auto control = UblkControl::open();
  if (!control) return std::move(control).error();
  return Ok{};
}

std::optional<uint32_t> ublk_number(const std::string& node) {
  constexpr std::string_view kNode = "/dev/ublkb";
  if (!node.starts_with(kNode)) return std::nullopt;
  const auto number = parse_unsigned(node.substr(kNode.size()), 0, kMaxNumber);
  if (!number || ublk_node(static_cast<uint32_t>(*number)) != node) return std::nullopt;
  return static_cast<uint32_t>(*number);
}

std::string ublk_node(uint32_t number) { return fmt::format("/dev/ublkb{}", number); }

}  // namespace netblk::attach
