// SPDX-License-Identifier: GPL-2.0-only
// A volume as random writes of 4 KiB to every block leave it: one entry of the index for each, in leaves that are two thirds
// full, in the order of LSNs of chance. The index and the manifest are written as they are, within seconds; the blocks are
// zeroes that keep their space, and segments for them are counted as full, so that their bytes need no room.
#pragma once

#include <cstdint>
#include <string>

#include "store/volume/volume.h"

namespace bench {

struct FullVolume {
  uint64_t entries = 0;
  uint64_t index_bytes = 0;
};

// Into the file `path`, which is not there yet. The size is a multiple of a block.
FullVolume make_full_volume(const std::string& path, uint64_t size_bytes, netblk::store::volume::Environment& environment);

}  // namespace bench
