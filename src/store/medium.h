// SPDX-License-Identifier: GPL-2.0-only
// Medium: what a store's identity is told of the file or block device that holds the blocks.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"

namespace netblk::store {

class Medium {
 public:
  struct Seen {
    uint64_t inode = 0;   // 0: a block device
    uint64_t device = 0;  // of the file system, or the block device itself
    // Which disk lies behind that number (the kernel's diskseq); 0 where nobody says. A disk that was unplugged and came
    // back has another: what was in the page cache has gone, although the machine did not start anew.
    uint64_t disk_sequence = 0;
    uint64_t size_bytes = 0;
    int64_t ctime_ns = 0;  // 0: a block device
    int64_t birth_ns = 0;  // when the file was made; 0 where nobody says
    std::string name;      // a block device's own: serial number, dm uuid, backing file; may be empty
    bool is_block_device = false;

    bool operator==(const Seen&) const = default;
  };

  virtual ~Medium() = default;
  virtual Result<Seen> look() = 0;
  // Data and metadata, the change time included. 0 or a positive errno value.
  virtual int sync() = 0;
  // After a failed sync the page cache may have what the disk has not, marked clean: later reads ask the disk.
  virtual void drop_cache() = 0;
  // For the owner and group of a record; -1: none.
  virtual int descriptor() const = 0;
};

// `fd` outlives the result.
std::unique_ptr<Medium> make_fd_medium(int fd);

// Whether seeks cost on the disk below, as the kernel has it; false where nobody says.
bool is_rotational(int fd);

// In whole sectors, as it is now. `cached`: as this kernel knows it, without asking a server of a network file system, nor
// writing back what that one has not got yet.
Result<uint64_t> fd_size_bytes(int fd, bool cached);

}  // namespace netblk::store
