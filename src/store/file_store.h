// SPDX-License-Identifier: GPL-2.0-only
// The `file` store: a raw image or a block device.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/result.h"
#include "block/device.h"
#include "io/loop.h"
#include "store/group_sync.h"
#include "store/write_order.h"

namespace netblk::store {

struct FileOptions {
  std::string path;
  // Bytes. A regular file is created, or grown (sparse) to this; it is never shrunk. 0: as it is, and it must exist.
  uint64_t size_bytes = 0;
  // Bypasses the page cache (O_DIRECT) for requests that are aligned for it; the others go through the cache.
  bool direct = false;
  bool read_only = false;
  // How long to wait for another process to let go of the file. Milliseconds.
  uint64_t lock_wait_ms = 0;
  // Told once, in words, when the wait begins. May be empty.
  std::function<void(const std::string&)> on_wait;
  // Asked while it waits; true ends the wait with EINTR. May be empty.
  std::function<bool()> stop_waiting;
};

// Opens, locks and sizes the file. The lock (flock; exclusive, or shared when read-only) keeps every second process,
// and every second store of this process, away until the store is destroyed. Errors name the path and what to do; EBUSY:
// this process holds the file, EAGAIN: another one does.
Result<std::unique_ptr<block::Device>> open_file_store(io::Backend& backend, const FileOptions& options);

// The engine, on files that are already open; for tests and simulators too.
//   buffered: takes any request. direct: null, or the same storage for requests aligned to direct_alignment bytes.
//   A sync of `buffered` covers both.
class FileStore : public block::Device {
 public:
  FileStore(const block::Geometry& geometry, std::unique_ptr<io::File> buffered, std::unique_ptr<io::File> direct,
            uint32_t direct_alignment);

  bool poisoned() const { return sync_.poisoned(); }
  uint64_t syncs() const { return sync_.syncs(); }

 protected:
  void start(block::Request& request, block::Completion completion) override;

 private:
  // What the operation in flight does: moves the request's data, or punches a hole.
  enum Phase : uint8_t { kMoving, kPunching };

  static FileStore& of(const block::Request& request) { return static_cast<FileStore&>(*request.held.owner); }
  io::File& file_for(uint64_t offset, uint64_t length, const std::byte* data) const;
  void drive(block::Request& request);
  bool begin_operation(block::Request& request);
  bool absorb(block::Request& request, int32_t result);
  void end_data(block::Request& request, int error);

  std::unique_ptr<io::File> buffered_;
  std::unique_ptr<io::File> direct_;
  uint32_t direct_alignment_;
  WriteOrder order_;
  GroupSync sync_;
};

}  // namespace netblk::store
