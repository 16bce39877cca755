// SPDX-License-Identifier: GPL-2.0-only
// The `file` store: a raw image or a block device.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "block/device.h"
#include "io/fd.h"
#include "io/loop.h"
#include "store/group_sync.h"
#include "store/identity.h"
#include "store/job_thread.h"
#include "store/write_order.h"

namespace netblk::store {

struct FileOptions {
  std::string path;
  // Bytes. A regular file is created, or grown (sparse) to this; it is never shrunk. 0: as it is, and it must exist.
  uint64_t size_bytes = 0;
  // Bypasses the page cache (O_DIRECT) for requests that are aligned for it; the others go through the cache.
  bool direct = false;
  bool read_only = false;
  // Keeps a record of the store (store/identity.h): PATH.netblk, or in state_folder; a block device's is in
  // kDeviceStateFolder. Without it the store has an identity of this process.
  bool keep_identity = false;
  std::string state_folder;
  // How long to wait for another process to let go of the file. Milliseconds.
  uint64_t lock_wait_ms = 0;
  // Told once, in words, when the wait begins. May be empty.
  std::function<void(const std::string&)> on_wait;
  // Asked while it waits; true ends the wait with EINTR. May be empty.
  std::function<bool()> stop_waiting;
};

inline constexpr const char* kDeviceStateFolder = "/var/lib/netblk";

// Opens, locks and sizes the file. The lock (flock; exclusive, or shared when read-only) keeps every second process,
// and every second store of this process, away until the store is destroyed. Errors name the path and what to do; EBUSY:
// this process holds the file, EAGAIN: another one does.
Result<std::unique_ptr<block::Device>> open_file_store(io::Backend& backend, const FileOptions& options);

inline constexpr const char* kDiscardedOverlay = "temp";

// The image of `options`, which is only read, under an overlay (store/overlay.h): a file that is made if it is missing,
// or kDiscardedOverlay for one that goes with the process. Errors name the paths and what to do.
Result<std::unique_ptr<block::Device>> open_overlay_store(io::Backend& backend, const FileOptions& options,
                                                          const std::string& overlay);

// Makes the file at least that large, durably, its name included: otherwise an answered write could be lost with the
// file. ENOSPC: a block device, which nobody can grow from here.
Status grow_file(int fd, uint64_t size_bytes, const std::string& path);

// What a FileStore knows of its file beside the files that it reads and writes. All of it may be missing.
struct FileHome {
  std::string path;
  io::UniqueFd fd;                     // the same open file as `buffered`: for its size, and for readers of read_fd()
  bool direct = false;
  // Ranges that are not whole multiples of this cannot be punched out (a block device's sectors).
  uint32_t punch_alignment = 1;
  // Changes of one unit are kept apart, though they do not overlap.
  uint64_t exclusion_bytes = 1;
  // What the file cannot say or do by itself: answers kBlockStatus, may wait for the disk; makes the store durable before
  // its record says that it was closed, 0 or an errno value. May be empty.
  std::function<void(block::Request&)> find_extents = {};
  std::function<int()> before_close = {};
  io::UniqueFd record_fd = {};  // for the identity, where `fd` is none
  std::unique_ptr<Identity> identity;  // on the same descriptor
};

// The engine, on files that are already open; for tests and simulators too.
//   buffered: takes any request. direct: null, or the same storage for requests aligned to direct_alignment bytes.
//   A sync of `buffered` covers both.
class FileStore : public block::Device {
 public:
  FileStore(const block::Geometry& geometry, std::unique_ptr<io::File> buffered, std::unique_ptr<io::File> direct,
            uint32_t direct_alignment, FileHome home = {});
  // Syncs what is not, and writes down that the store was closed.
  ~FileStore() override;

  void refresh_size() override;
  Status grow(uint64_t size_bytes) override;
  int read_fd() const override { return home_.direct ? -1 : home_.fd.get(); }

  block::Generation generation() const override;
  std::vector<std::byte> owners() const override;
  coro::Task<Status> keep_owners(coro::Mailbox& loop, std::vector<std::byte> record) override;

  bool poisoned() const { return sync_.poisoned(); }
  uint64_t syncs() const { return sync_.syncs(); }

 protected:
  void start(block::Request& request, block::Completion completion) override;

 private:
  // What the operation in flight does: moves the request's data (or zeroes), punches a hole, or zeroes a range.
  enum Phase : uint8_t { kMoving, kPunching, kZeroing };

  static FileStore& of(const block::Request& request) { return static_cast<FileStore&>(*request.held.owner); }
  struct KeepOwners;
  io::File& file_for(uint64_t offset, uint64_t length, const std::byte* data) const;
  void look_at_size(bool cached);
  bool cut_off(const block::Request& request);
  void wait_for_record(block::Request& request);
  void record_done(const Status& begun);
  Phase first_phase(const block::Request& request) const;
  void begin_change(block::Request& request);
  void drive(block::Request& request);
  bool begin_operation(block::Request& request);
  bool absorb(block::Request& request, int32_t result);
  void end_data(block::Request& request, int error);
  void look(block::Request& request);

  std::unique_ptr<io::File> buffered_;
  std::unique_ptr<io::File> direct_;
  uint32_t direct_alignment_;
  FileHome home_;
  WriteOrder order_;
  GroupSync sync_;

  std::mutex size_mutex_;  // of looking at the size and changing it
  std::atomic<uint64_t> last_look_{0};  // by cut_off(): in which round of which loop

  // Changes that wait until the record says that the store is being written; newest first. A leaf.
  std::mutex unrecorded_mutex_;
  block::Request* unrecorded_ = nullptr;
  bool recording_ = false;

  // The last members: their jobs use the others. Looking waits for nobody's record.
  JobThread jobs_;
  JobThread looks_;
};

}  // namespace netblk::store
