// SPDX-License-Identifier: GPL-2.0-only
#include "sim/volume/asked.h"

#include <algorithm>
#include <vector>

namespace netblk::sim {

coro::Task<int> read_contents(io::Loop& loop, World& world, block::Device& device, Contents& contents) {
  constexpr uint64_t kMost = 256;
  std::vector<std::byte> bytes(kMost * kVolumeSector);
  uint64_t count = 0;
  for (uint64_t first = 0; first < contents.sectors(); first += count) {
    count = std::min(kMost, contents.sectors() - first);
    Asked read(loop, block::Command::kRead, first, count);
    read.data = bytes.data();
    co_await read.run(device, [](int) {});
    if (read.error != 0) co_return read.error;
    for (uint64_t i = 0; i < count; ++i) {
      const auto stamp = stamp_of(std::span<const std::byte>(bytes).subspan(i * kVolumeSector, kVolumeSector), first + i);
      if (!stamp) world.fail("a read gives what was written", "sector {} has bytes that nobody wrote there", first + i);
      contents.set(first + i, *stamp);
    }
  }
  co_return 0;
}

}  // namespace netblk::sim
