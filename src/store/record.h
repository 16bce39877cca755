// SPDX-License-Identifier: GPL-2.0-only
// What is written down about a store, outside the store: two small files of text, each with a checksum in its last line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/id.h"
#include "base/result.h"

namespace netblk::store {

// The durable one: beside the store, or in --state-dir. Survives a power cut.
struct StoreRecord {
  Id uuid;
  uint64_t counter = 1;
  // Everything answered was durable when the store was closed, and it looked like this:
  bool clean = false;
  uint64_t inode = 0;
  uint64_t device = 0;  // for people: a file system may have another number after the next start of the machine
  int64_t ctime_ns = 0;
  uint64_t size_bytes = 0;
  std::string medium;  // a block device's own name: its serial number or the like
  std::vector<std::byte> owners;

  bool operator==(const StoreRecord&) const = default;
};

// The volatile one: in /run, which a start of the machine empties. Survives the process.
struct RunRecord {
  Id uuid;
  uint64_t counter = 1;
  std::string boot_id;
  uint64_t inode = 0;
  uint64_t device = 0;
  uint64_t disk_sequence = 0;
  bool healthy = false;  // no sync has failed
  // Where the store was, so that the record of one that is deleted can go: a whole path (empty: it cannot be said in a
  // line), and the file system of its folder.
  std::string store;
  uint64_t folder_device = 0;

  bool operator==(const RunRecord&) const = default;
};

std::string encode(const StoreRecord& record);
std::string encode(const RunRecord& record);

// EBADMSG: damaged, or something else. EPROTONOSUPPORT: of a version that this one does not know.
Result<StoreRecord> decode_store_record(std::string_view text);
Result<RunRecord> decode_run_record(std::string_view text);

// The whole file, or nothing when there is none. EFBIG: longer than any record.
Result<std::optional<std::string>> read_record_file(const std::string& path);

// Puts `text` into the place of the file, whole or not at all, whenever the power fails: written to PATH.new, synced,
// renamed, and the folder synced. A crash leaves the old one or the new one. Not `durable`: without the syncs.
// Owner and group become those of `like` (a descriptor; -1: nobody's) where this process may give them away.
Status replace_record_file(const std::string& path, std::string_view text, bool durable, int like);

// Makes the folder and those above it; what is new is durable. Fine if it is there.
Status make_record_folder(const std::string& path);

}  // namespace netblk::store
