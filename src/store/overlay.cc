// SPDX-License-Identifier: GPL-2.0-only
#include "store/overlay.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "store/extents.h"

namespace netblk::store {

constexpr uint64_t kBlock = kOverlayBlockBytes;

OverlayFile::OverlayFile(std::unique_ptr<io::File> base, std::unique_ptr<io::File> top, io::UniqueFd base_fd,
                         io::UniqueFd top_fd, std::unique_ptr<OverlayMap> map, bool kept)
    : base_(std::move(base)), top_(std::move(top)), base_fd_(std::move(base_fd)), top_fd_(std::move(top_fd)),
      map_(std::move(map)), kept_(kept) {}

bool OverlayFile::read(io::Loop& loop, io::Op& op, std::span<std::byte> into, uint64_t offset) {
  const uint64_t block = offset / kBlock, end = (offset + into.size() + kBlock - 1) / kBlock;
  // Looked at once: a block that comes meanwhile is read from below, as if the read had come first.
  const bool here = map_->has(block);
  const uint64_t until = (block + std::max<uint64_t>(1, map_->alike(block, end))) * kBlock;
  const auto part = into.first(std::min<uint64_t>(into.size(), until - offset));
  return here ? top_->read(loop, op, part, map_->data_at() + offset) : base_->read(loop, op, part, offset);
}

// What brings blocks here: it owns itself, and its end is the end of the operation that asked for it.
struct OverlayFile::Step final : io::Op {
  enum class Phase { kFetch, kPut, kPunch };

  Step(OverlayFile& of, io::Loop& on, io::Op& whose)
      : Op([](coro::Runnable& self) {
          auto& step = static_cast<Step&>(self);
          if (step.take()) step.go();
        }),
        file(of), loop(on), asked(whose) {
    asked.begin();
  }

  // Starts operations until one is in flight or all is over.
  void go() {
    while (start())
      if (!take()) return;
  }
  bool start() {
    switch (phase) {
      case Phase::kFetch:
        return file.base_->read(loop, *this, std::span(block_bytes).subspan(done), first * kBlock + done);
      case Phase::kPut: return file.top_->write(loop, *this, from.subspan(done), file.map_->data_at() + first * kBlock + done);
      case Phase::kPunch:
        return file.top_->punch_hole(loop, *this, file.map_->data_at() + first * kBlock, (end - first) * kBlock);
    }
    return true;
  }
  // Takes a result. False: it has ended, and is gone.
  bool take() {
    if (result < 0) return finish(result);
    if (phase == Phase::kPunch) return finish(file.map_->add(first, end));
    done += static_cast<uint64_t>(result);
    if (phase == Phase::kFetch) {
      // The image may end inside its last block.
      if (result > 0 && done < kBlock) return true;
      std::memcpy(block_bytes.data() + at_in_block, new_bytes.data(), new_bytes.size());
      from = block_bytes;
      phase = Phase::kPut;
      done = 0;
      return true;
    }
    if (result == 0) return finish(-EIO);
    if (done < from.size()) return true;
    return finish(file.map_->add(first, end));
  }
  bool finish(int32_t error) {
    asked.complete(error != 0 ? error : answer);
    delete this;
    return false;
  }

  OverlayFile& file;
  io::Loop& loop;
  io::Op& asked;
  Phase phase = Phase::kPut;
  uint64_t first = 0, end = 0;  // blocks
  uint64_t done = 0;
  int32_t answer = 0;
  std::span<const std::byte> from;  // that goes to the blocks from `first` on
  std::span<const std::byte> new_bytes;  // kFetch: over a part of the block
  uint64_t at_in_block = 0;
  std::array<std::byte, kBlock> block_bytes{};
};

// A short write: as far as the blocks are alike, and only whole ones or a single one where they come here.
bool OverlayFile::write(io::Loop& loop, io::Op& op, std::span<const std::byte> from, uint64_t offset) {
  const uint64_t block = offset / kBlock, end = (offset + from.size() + kBlock - 1) / kBlock;
  const uint64_t run = std::max<uint64_t>(1, map_->alike(block, end));
  const uint64_t run_bytes = std::min<uint64_t>(from.size(), (block + run) * kBlock - offset);
  if (map_->has(block)) return top_->write(loop, op, from.first(run_bytes), map_->data_at() + offset);
  auto* const step = new Step(*this, loop, op);
  step->first = block;
  if (offset % kBlock == 0 && run_bytes >= kBlock) {
    const uint64_t whole = run_bytes / kBlock;
    step->end = block + whole;
    step->from = from.first(whole * kBlock);
    step->answer = static_cast<int32_t>(whole * kBlock);
  } else {
    step->phase = Step::Phase::kFetch;
    step->end = block + 1;
    step->at_in_block = offset % kBlock;
    step->new_bytes = from.first(std::min<uint64_t>(from.size(), kBlock - step->at_in_block));
    step->answer = static_cast<int32_t>(step->new_bytes.size());
  }
  step->go();
  return false;
}

bool OverlayFile::punch_hole(io::Loop& loop, io::Op& op, uint64_t offset, uint64_t length) {
  auto* const step = new Step(*this, loop, op);
  step->phase = Step::Phase::kPunch;
  step->first = offset / kBlock;
  step->end = (offset + length) / kBlock;
  step->go();
  return false;
}

// One at a time: GroupSync sees to it.
bool OverlayFile::datasync(io::Loop& loop, io::Op& op) {
  if (!kept_) return op.finish_now(0);
  op.begin();
  synced_.op = &op;
  jobs_.run([this, &loop] {
    synced_.result = map_->sync();
    loop.post(synced_);
  });
  return false;
}

void OverlayFile::find_extents(block::Request& request) const {
  const uint64_t end = request.offset + request.length, end_block = (end + kBlock - 1) / kBlock;
  for (uint64_t at = request.offset; at < end;) {
    const uint64_t block = at / kBlock;
    const bool here = map_->has(block);
    const uint64_t until = std::min(end, (block + std::max<uint64_t>(1, map_->alike(block, end_block))) * kBlock);
    const bool room = here ? add_file_extents(top_fd_.get(), map_->data_at(), at, until, request)
                           : add_file_extents(base_fd_.get(), 0, at, until, request);
    if (!room) return;
    at = until;
  }
}

}  // namespace netblk::store
