// SPDX-License-Identifier: GPL-2.0-only
// Where a copy comes from and goes to: a file, a block device, a pipe, an export of a netblk or NBD server.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/result.h"
#include "block/device.h"
#include "copy_engine.h"
#include "io/fd.h"
#include "io/loop.h"
#include "netblk_export.h"
#include "pipe_file.h"

namespace netblk::tools {

struct EndOptions {
  // Also a file that another process has locked, an export that another client writes; grows a smaller file.
  bool force = false;
  unsigned connections = 1;
  uint64_t timeout_ms = 120'000;  // without a server
  bool trust_reconnect = false;   // NBD: see client::NbdOptions
};

// One end, open. Used and closed on the loop's thread.
struct CopyEnd {
  std::string name;      // for messages
  std::string identity;  // of what is behind the name, for a state file; empty: a pipe has none
  std::optional<uint64_t> size_bytes;
  bool fresh = false;     // a target that has nothing but zeroes: this copy made the file
  uint32_t block_bytes = 1;

  std::unique_ptr<PipeFile> pipe;
  std::unique_ptr<block::Device> disk;  // a file or block device
  std::unique_ptr<Export> served;       // an export
  io::UniqueFd file;                    // of a regular file, beside `disk`
  std::string path;                     // of a regular file

  block::Device* device() const { return served ? &served->device() : disk.get(); }
  CopySource as_source() const;
  CopyTarget as_target() const;

  // What changes when somebody else writes to it, as far as that can be seen: size and time of a file; the size of a
  // block device; the size and the generation of an export.
  std::string version() const;

  // A new file gets its size and is durable with its name.
  Status settle(uint64_t bytes);
  coro::Task<void> close();
};

// text: a path, "-", or a URI that parse_server_uri() takes.
coro::Task<Result<CopyEnd>> open_source(io::Backend& backend, io::Loop& loop, std::string text, EndOptions options);

// A target that cannot hold what comes from `source` is refused, before anything is written.
coro::Task<Result<CopyEnd>> open_target(io::Backend& backend, io::Loop& loop, std::string text, const CopyEnd& source,
                                        EndOptions options);

}  // namespace netblk::tools
