// SPDX-License-Identifier: GPL-2.0-only
// Small volumes, made by the engine itself, and changes of their bytes that its checksums do not find: behind each change the
// sums are made anew, of what was changed and of all that names it, so that the parsers behind them are reached.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "store/volume/format.h"
#include "store/volume/keys.h"
#include "volume_world.h"

namespace netblk::fuzz {

inline constexpr size_t kImages = 5;

struct Image {
  struct Page {
    uint64_t offset = 0;
    uint16_t level = 0;
    std::vector<std::pair<size_t, uint32_t>> parents;  // which page, and which of its children
    std::vector<unsigned> roots;                       // of these slots
  };
  struct Record {
    uint64_t offset = 0;
    uint64_t lsn = 0;
    bool copy = false;
  };

  Bytes bytes;
  std::shared_ptr<const store::volume::UserKey> key;  // null: it is not encrypted
  Id uuid;
  std::vector<Page> pages;     // the lowest first
  std::vector<Record> records; // by LSN
};

const Image& image(size_t number);

// Takes all of the input, and changes the bytes of the image as it says.
void change(const Image& image, Input& input, Bytes& bytes);

}  // namespace netblk::fuzz
