// SPDX-License-Identifier: GPL-2.0-only
// A part of a device as a device.
#include <algorithm>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "store/filter/filter.h"
#include "store/filter/layer.h"

namespace netblk::store {
namespace {

uint64_t shown_bytes(uint64_t below_bytes, uint64_t offset_bytes, uint64_t size_bytes) {
  const uint64_t rest = below_bytes > offset_bytes ? below_bytes - offset_bytes : 0;
  return size_bytes == 0 ? rest : std::min(rest, size_bytes);
}

block::Geometry part_of(block::Geometry geometry, uint64_t offset_bytes, uint64_t size_bytes) {
  NETBLK_CHECK(offset_bytes < geometry.size_bytes && size_bytes <= geometry.size_bytes - offset_bytes,
               "a window beyond its device");
  geometry.size_bytes = shown_bytes(geometry.size_bytes, offset_bytes, size_bytes);
  return geometry;
}

class WindowFilter final : public Layer {
 public:
  WindowFilter(std::unique_ptr<block::Device>&& below, uint64_t offset_bytes, uint64_t size_bytes)
      : Layer(part_of(below->geometry(), offset_bytes, size_bytes), std::move(below)),
        offset_bytes_(offset_bytes), size_bytes_(size_bytes) {}

  void refresh_size() override {
    below_->refresh_size();
    set_size_bytes(shown_bytes(below_->size_bytes(), offset_bytes_, size_bytes_));
  }
  Status grow(uint64_t wanted_bytes) override { return Device::grow(wanted_bytes); }

  // Other bytes than the whole device has: another disk to a client that knew one of them.
  block::Generation generation() const override {
    block::Generation other = below_->generation();
    for (const uint64_t number : {offset_bytes_ + 1, size_bytes_}) {
      uint64_t mixed = (number ^ (number >> 29)) * 0xbf58476d1ce4e5b9u;
      mixed ^= mixed >> 32;
      uint64_t half;
      std::memcpy(&half, other.uuid.bytes.data() + 8 * (number == size_bytes_), sizeof half);
      half ^= mixed;
      std::memcpy(other.uuid.bytes.data() + 8 * (number == size_bytes_), &half, sizeof half);
    }
    return other;
  }

 protected:
  void start(block::Request& request, block::Completion completion) override {
    move_range(request, offset_bytes_);
    Layer::start(request, std::move(completion));
  }

 private:
  const uint64_t offset_bytes_;
  const uint64_t size_bytes_;  // 0: the rest
};

}  // namespace

std::unique_ptr<block::Device> make_window_filter(std::unique_ptr<block::Device> below, uint64_t offset_bytes,
                                                  uint64_t size_bytes) {
  return std::make_unique<WindowFilter>(std::move(below), offset_bytes, size_bytes);
}

}  // namespace netblk::store
