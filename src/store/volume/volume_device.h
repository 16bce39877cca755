// SPDX-License-Identifier: GPL-2.0-only
// VolumeDevice: the head of a volume, or a point of it, as a block::Device.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "block/device.h"
#include "store/volume/core.h"
#include "store/volume/log.h"
#include "store/volume/points.h"

namespace netblk::store::volume {

// A point that a device of its volume is compared with.
struct PointBase final : block::Base {
  View view;
  uint64_t size_bytes = 0;
  std::shared_ptr<const void> use;  // as a device's
};

class VolumeDevice final : public block::Device {
 public:
  // Of a branch. log: null where nothing can be changed.
  VolumeDevice(Core& core, Log* log, std::shared_ptr<const Head> head);
  // Of a point, for reading only.
  VolumeDevice(Core& core, const View& view, uint64_t size_bytes, const Id& contents);

  // Kept for as long as the device is there.
  void keep(std::shared_ptr<const void> use) { use_ = std::move(use); }

  const Head& head() const { return *head_; }
  // Behind the branch's end, as it is now.
  bool is_beyond(const block::Request& request) const {
    return !trims_beyond_ && request.offset + request.length > head_->size_bytes.load(std::memory_order_acquire);
  }
  // It may change what lies behind the branch's end, up to the size that it was made with.
  void trim_beyond() { trims_beyond_ = true; }

  void refresh_size() override;

  block::Generation generation() const override;
  std::vector<std::byte> owners() const override;
  coro::Task<Status> keep_owners(coro::Mailbox& loop, std::vector<std::byte> record) override;
  std::vector<std::string> bases() const override;
  std::shared_ptr<const block::Base> base(std::string_view name) override { return core_.base_of(name); }

 protected:
  void start(block::Request& request, block::Completion completion) override;

 private:
  Core& core_;
  Log* const log_;
  const std::shared_ptr<const Head> head_;
  bool trims_beyond_ = false;
  std::shared_ptr<const void> use_;
};

}  // namespace netblk::store::volume
