// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_ublk_source.h"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <utility>

#include "base/limits.h"

namespace netblk::tools {
namespace {

using attach::UblkTraits;

// What file systems align themselves to, where the source prefers nothing.
constexpr uint32_t kUsualBytes = 4096;

}  // namespace

UblkTraits ublk_traits(HelperDisk& disk) {
  const block::Geometry geometry = disk.device().geometry();
  const DiskTraits known = disk.traits();
  UblkTraits traits;
  traits.size_bytes = geometry.size_bytes;
  traits.read_only = geometry.read_only;
  traits.rotational = geometry.rotational;
  traits.can_trim = geometry.can_trim;
  traits.logical_bytes = std::max(known.block_bytes, limits::kSectorBytes);
  traits.physical_bytes = std::max(traits.logical_bytes, kUsualBytes);
  traits.optimal_bytes = std::max(traits.physical_bytes, std::bit_floor(known.preferred_bytes));
  traits.volatile_cache = known.volatile_cache;
  traits.fua = known.fua;
  traits.can_write_zeroes = known.can_write_zeroes;
  return traits;
}

Result<std::unique_ptr<HelperDisk>> open_ublk_source(io::Backend& backend, const io::Clock& clock, const Source& source,
                                                     const AttachOptions& options, uint64_t unflushed) {
  auto disk = open_helper_disk(backend, clock, source, options, "ublk", unflushed);
  if (!disk) return disk;
  const UblkTraits traits = ublk_traits(*disk.value());
  const auto page = static_cast<uint32_t>(::sysconf(_SC_PAGESIZE));
  if (traits.size_bytes < traits.logical_bytes)
    return make_error(EINVAL, "{} has {} bytes: a disk has at least one block of {}", source.text, traits.size_bytes,
                      traits.logical_bytes);
  if (traits.logical_bytes > page)
    return make_error(EINVAL, "{} has blocks of {} bytes: a disk of ublk can have {} at most", source.text, traits.logical_bytes,
                      page);
  return disk;
}

}  // namespace netblk::tools
