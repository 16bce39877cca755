// SPDX-License-Identifier: GPL-2.0-only
// Volumes as folders of this machine (docs/volumes.md): how they are named, made and opened, and as stores.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"
#include "block/device.h"
#include "io/fd.h"
#include "io/loop.h"
#include "store/volume/volume.h"
#include "volume_keys.h"
#include "volume_users.h"

namespace netblk::tools {

// PATH, or PATH@POINT: the last @ after the last / separates them; %XX stands for a byte, so that %40 is an @ of the path.
struct VolumeName {
  std::string folder;
  std::string snapshot;  // what stands behind the @; empty: the head
  store::volume::PointName point = {};  // and means
};
Result<VolumeName> parse_volume_name(std::string_view text);

// The wall clock, and the kernel's random bytes.
class MachineEnvironment final : public store::volume::Environment {
 public:
  uint64_t wall_ns() override;
  void random_bytes(std::span<std::byte> into) override;
};

struct VolumeOpening {
  bool read_only = false;
  std::string user = {};  // the export that it is for
  KeyFiles keys;
  uint64_t memory_bytes = store::volume::kDefaultMemoryBytes;  // for the index
  // As FileOptions has them (store/file_store.h). Who waits at all is a server.
  uint64_t lock_wait_ms = 0;
  std::function<void(const std::string&)> on_wait;
  std::function<bool()> stop_waiting;
};

// Says that the page cache which took a volume's writes is still this machine's: a file in /run, which goes with it. Set once
// the volume is open for writing; cleared when it is closed (after an end in order nobody asks), and when a write or a sync
// fails (the cache is no proof then).
class CacheMark {
 public:
  CacheMark(uint64_t device, uint64_t inode);
  bool is_there() const;
  void set() const;
  void clear() const;

 private:
  std::string name_;
};

struct VolumeFile {
  std::unique_ptr<io::File> file;
  CacheMark mark;
};

// The file of a volume, locked: against every other process, or when it is opened for reading against those that write. A server
// that waits for it (lock_wait_ms) says so (store/wanted.h).
Result<VolumeFile> open_volume_file(io::Backend& backend, const std::string& folder, const VolumeOpening& opening);
store::volume::VolumeOptions volume_options(const std::string& folder, bool read_only, const CacheMark& mark, SharedKey key = {});

// EEXIST: something has that name.
Status rename_to_new(const std::string& from, const std::string& to);

// What was named anew in the folder is durable.
Status sync_folder(const std::string& path);

// Makes the folder and the volume in it, durably. EEXIST: there is one.
Status create_volume_folder(io::Backend& backend, const std::string& folder, const store::volume::CreateOptions& options);

// Runs a task on a loop of its own, on this thread.
Status run_on_loop(io::Backend& backend, const std::function<coro::Task<void>(io::Loop&)>& task);

class VolumeHost;

// The volumes that this process serves: all exports of one folder share its volume, which is closed with the last of them.
class OpenVolumes {
 public:
  // Before anything is opened: how exports give a branch back, so that it can be rewound. None: they do not.
  void set_hand_over(HandOver hand_over) { hand_over_ = std::move(hand_over); }

  // The head or a clone; or a snapshot or a moment, for reading only.
  Result<std::unique_ptr<block::Device>> open(io::Backend& backend, const VolumeName& name, const VolumeOpening& opening);

 private:
  HandOver hand_over_;
  std::mutex mutex_;
  std::map<std::pair<uint64_t, uint64_t>, std::weak_ptr<VolumeHost>> hosts_;  // by the folder's device and inode
};

}  // namespace netblk::tools
