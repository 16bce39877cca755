// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/quick_read.h"

#include <array>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include "io/loop.h"
#include "store/volume/file_io.h"

namespace netblk::store::volume {
namespace {

using block::Request;
using Otherwise = void (*)(Core&, const View&, Request&);

// Memory of one READ, which a thread uses again.
class QuickRead : public io::Op {
 public:
  QuickRead() : Op([](coro::Runnable& self) { static_cast<QuickRead&>(self).moved(); }) {}

  static void begin(Core& core, const View& view, Request& request, Otherwise otherwise, const Entry& entry) {
    std::unique_ptr<QuickRead> read = taken();
    read->core_ = &core;
    read->view_ = &view;
    read->request_ = &request;
    read->otherwise_ = otherwise;
    read->entry_ = entry;
    read->header_bytes_ = data_header_bytes(entry.place, core.sums.encrypted());
    read->header_is_next_ = false;
    // Itself, while it is in flight.
    QuickRead& held = *read.release();
    if (held.begin_move()) held.moved();
  }

 private:
  static constexpr size_t kMostKept = 256;
  static std::vector<std::unique_ptr<QuickRead>>& kept() {
    static thread_local std::vector<std::unique_ptr<QuickRead>> free;
    return free;
  }
  static std::unique_ptr<QuickRead> taken() {
    if (kept().empty()) return std::make_unique<QuickRead>();
    std::unique_ptr<QuickRead> read = std::move(kept().back());
    kept().pop_back();
    return read;
  }

  bool begin_move() {
    io::Loop& loop = io::loop_of(*request_->loop);
    const uint64_t record = Place::offset(entry_.place);
    const std::span<std::byte> header = std::span(header_).first(header_bytes_), block{request_->data, kBlockBytes};
    if (Place::index(entry_.place) == 0) {
      parts_ = {part(header), part(block)};
      expected_ = header_bytes_ + kBlockBytes;
      return core_->file->read_vector(loop, *this, parts_, record);
    }
    // Other blocks are between the header and this one.
    header_is_next_ = !header_is_next_;
    expected_ = static_cast<uint32_t>(header_is_next_ ? kBlockBytes : header_bytes_);
    if (!header_is_next_) return core_->file->read(loop, *this, header, record);
    return core_->file->read(loop, *this, block, record + header_bytes_ + uint64_t{Place::index(entry_.place)} * kBlockBytes);
  }

  // The operation has ended.
  void moved() {
    while (std::cmp_equal(result, expected_) && header_is_next_) {
      if (!begin_move()) return;
    }
    const bool good = std::cmp_equal(result, expected_) && passes();
    Core& core = *core_;
    const View& view = *view_;
    Request& request = *request_;
    const Otherwise otherwise = otherwise_;
    std::unique_ptr<QuickRead> over(this);
    if (kept().size() < kMostKept) kept().push_back(std::move(over));
    over.reset();
    if (!good) return otherwise(core, view, request);
    std::move(request.held.completion).finish(0);
  }

  // And decrypts it, where it is encrypted.
  bool passes() const {
    const auto header = decode_record(header_, core_->sums);
    const uint32_t index = Place::index(entry_.place);
    const std::span<std::byte> block{request_->data, kBlockBytes};
    if (!header || !is_record_of(*header, entry_) ||
        core_->sums.block(entry_.branch, entry_.block, entry_.lsn, block) != header->sums[index])
      return false;
    if (core_->cipher == nullptr) return true;
    Cipher::Use use(*core_->cipher, Cipher::Purpose::kRecords, header->incarnation, false);
    return open_block(use, *header, index, block);
  }

  Core* core_ = nullptr;
  const View* view_ = nullptr;
  Request* request_ = nullptr;
  Otherwise otherwise_ = nullptr;
  Entry entry_;
  uint32_t header_bytes_ = 0;
  uint32_t expected_ = 0;  // bytes of the operation in flight
  bool header_is_next_ = false;
  std::array<iovec, 2> parts_;
  std::array<std::byte, kMaxHeaderBytes> header_;
};

}  // namespace

bool quick_read(Core& core, const View& view, Request& request, Otherwise otherwise) {
  if (request.length != kBlockBytes || request.offset % kBlockBytes != 0) return false;
  Entry entry;
  if (!core.index->glance(view, request.offset / kBlockBytes, entry)) return false;
  if (Place::is_data(entry.place)) {
    if (Place::stored_units(entry.place) != 0) return false;  // compressed
    QuickRead::begin(core, view, request, otherwise, entry);
  } else {
    std::memset(request.data, 0, kBlockBytes);
    std::move(request.held.completion).finish(0);
  }
  return true;
}

}  // namespace netblk::store::volume
