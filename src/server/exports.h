// SPDX-License-Identifier: GPL-2.0-only
// The exports of a running server: what is served under which name, to whom.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "base/result.h"
#include "block/device.h"
#include "server/config.h"
#include "server/session_table.h"

namespace netblk::server {

// Opens what STORE names; `read_only` as the export has it. Given by main, which knows the stores.
using OpenStore = std::function<Result<std::unique_ptr<block::Device>>(const std::string& store, bool read_only, const std::string& name)>;

// One export. Sessions share it; the device closes when the last of them has gone.
class Export {
 public:
  Export(ExportConfig config, std::shared_ptr<block::Device> device)
      : config_(std::move(config)), device_(std::move(device)), sessions_(*device_, config_.name) {}

  const ExportConfig& config() const { return config_; }
  block::Device& device() const { return *device_; }
  const std::shared_ptr<block::Device>& shared_device() const { return device_; }
  // netblk/2's.
  SessionTable& sessions() { return sessions_; }

  // Whether READs may be sent straight from the store's file. Once one could not, they are read, and errors answered.
  bool sends_files() const { return sends_files_.load(std::memory_order_relaxed); }
  void stop_sending_files() { sends_files_.store(false, std::memory_order_relaxed); }

  // It is removed or replaced: its sessions end, and nobody enters. why: for their log.
  void close(std::string why = "the export was removed or changed");
  // The same unless there are connections, and how many there are.
  uint32_t close_unless_used(const std::string& why);
  // Of one that was closed, and that no session has seen closed.
  void open_again();
  bool closed() const { return closed_.load(std::memory_order_acquire); }
  std::string why_closed() const;

  // Admission. Why `peer` is refused, in words for the log, or an empty text and a place that leave() gives back.
  std::string enter(const io::Address& peer);
  uint32_t connections() const { return connections_.load(std::memory_order_relaxed); }
  // For people; may be empty.
  std::string description() const;
  // Whether `peer` is shown that the export is there.
  bool allows(const io::Address& peer) const;
  void leave() { connections_.fetch_sub(1, std::memory_order_relaxed); }

  // Takes over the rules of a newer configuration; the store is the same, but perhaps larger. Sessions stay. For the
  // thread that reads config().store.
  void change_rules(const ExportConfig& config);

 private:
  mutable std::mutex mutex_;  // of the rules in config_, of who enters, and of why it is closed; a leaf
  ExportConfig config_;
  std::string why_closed_;
  std::shared_ptr<block::Device> device_;
  SessionTable sessions_;
  std::atomic<uint32_t> connections_{0};
  std::atomic<bool> closed_{false};
  std::atomic<bool> sends_files_{true};
};

// Thread-safe: sessions look up, the main loop changes.
class ExportTable {
 public:
  // The first export, or nothing: there is none, or a reload is about to put another into its place.
  std::shared_ptr<Export> first() const;
  // By name; an empty name means the first. Null: there is none.
  std::shared_ptr<Export> find(const std::string& name) const;
  std::vector<std::shared_ptr<Export>> all() const;
  // An empty pointer keeps a place. away: names of exports that are about to come back.
  void replace(std::vector<std::shared_ptr<Export>> exports, std::vector<std::string> away = {});
  // There is none of that name, but there will be one in a moment.
  bool is_away(const std::string& name) const;

 private:
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<Export>> exports_;
  std::vector<std::string> away_;
};

}  // namespace netblk::server
