// SPDX-License-Identifier: GPL-2.0-only
// STORE as people write it (DESIGN 5), and how it is opened.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "block/device.h"
#include "io/loop.h"
#include "volume_store.h"

namespace netblk::tools {

// What a store is opened with beside its own text.
struct Surroundings {
  // Where the records of file: stores are kept (store/identity.h); empty: beside each.
  std::string state_folder;
  // How long to wait for a file that another process has; the wait is told on stdout, and ends when a SIGTERM or SIGINT is
  // pending.
  uint64_t lock_wait_ms = 0;
  // Where every request is written down (store/filter/trace_line.h); empty: nowhere.
  std::string trace;
  // What this process has open of them.
  std::shared_ptr<OpenVolumes> volumes = std::make_shared<OpenVolumes>();
};

//   file:PATH[?size=10G][&direct=1]   file:PATH?overlay=FILE|temp   mem:SIZE   null:SIZE
//   vol:PATH[@SNAPSHOT][?key-file=FILE|passphrase-file=FILE]
// and for any of them, in the query:
//   offset=BYTES[&size=BYTES]   a part; with offset= the size is the part's, and nothing is created or grown
//   partition=N                 a partition of its table
//   readonly=1   rate=BYTES burst=BYTES iops=N iops-burst=N   trace=FILE
//   delay-ms=N, delay-read-ms=N and so on   fault=read+write+flush+trim+status, fault-one-in=N fault-seed=N fault-count=N
// In PATH and FILE, %XX stands for a byte, so that a '?' (%3F), '&' (%26) or ',' (%2C) can be written; of a volume also an
// '@' (%40).

// EINVAL: it is malformed, in words. Nothing is opened or looked at.
Status check_store(const std::string& text);

// name: of the export, for traces. Of a store that check_store() lets pass, what fails here is not its text.
Result<std::unique_ptr<block::Device>> open_store(io::Backend& backend, const std::string& text, bool read_only,
                                                  const Surroundings& surroundings, const std::string& name);

// A path as PATH and FILE are written.
std::string store_path_text(std::string_view path);

// The same store wherever a process stands: PATH and FILE from the root on. What has none, or has them so, stays as it is.
std::string with_whole_paths(const std::string& text);

// Its changes go with the process that has it open.
bool has_discarded_overlay(const std::string& text);

}  // namespace netblk::tools
