// SPDX-License-Identifier: GPL-2.0-only
// Layer: what all filters share. It hands on everything; a filter changes what it is for.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "block/device.h"

namespace netblk::store {

class Layer : public block::Device {
 public:
  // The geometry is read before `below` moves: a parameter that is passed by value may have moved already when another
  // argument is evaluated.
  explicit Layer(std::unique_ptr<block::Device>&& below) : Layer(below->geometry(), std::move(below)) {}
  Layer(const block::Geometry& geometry, std::unique_ptr<block::Device>&& below) : block::Device(geometry), below_(std::move(below)) {}

  void refresh_size() override {
    below_->refresh_size();
    set_size_bytes(below_->size_bytes());
  }
  Status grow(uint64_t wanted_bytes) override {
    Status grown = below_->grow(wanted_bytes);
    set_size_bytes(below_->size_bytes());
    return grown;
  }
  block::Generation generation() const override { return below_->generation(); }
  std::vector<std::byte> owners() const override { return below_->owners(); }
  coro::Task<Status> keep_owners(coro::Mailbox& loop, std::vector<std::byte> record) override {
    return below_->keep_owners(loop, std::move(record));
  }
  std::vector<std::string> bases() const override { return below_->bases(); }
  std::shared_ptr<const block::Base> base(std::string_view name) override { return below_->base(name); }

 protected:
  void start(block::Request& request, block::Completion completion) override { forward(*below_, request, std::move(completion)); }

  std::unique_ptr<block::Device> below_;
};

// A request that a filter makes of the one it was given, to see its end. It owns itself.
struct Copied : block::Request {
  using OnEnd = void (*)(Copied&);

  Copied(block::Request& of, block::Completion duty, OnEnd end)
      : Request([](block::Request& self) {
          const std::unique_ptr<Copied> over(&static_cast<Copied&>(self));
          over->on_end(*over);
        }),
        asked(of), completion(std::move(duty)), on_end(end) {
    loop = of.loop;
    command = of.command;
    fua = of.fua;
    keep_allocated = of.keep_allocated;
    fast_zero = of.fast_zero;
    offset = of.offset;
    length = of.length;
    data = of.data;
    abandoned = of.abandoned;
    extents = of.extents;
    max_extents = of.max_extents;
    since = of.since;
  }
  virtual ~Copied() = default;

  block::Request& asked;
  block::Completion completion;
  OnEnd on_end;
};

}  // namespace netblk::store
