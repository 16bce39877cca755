// SPDX-License-Identifier: GPL-2.0-only
// What the process of a helper has from its beginning to its end, whichever way its disk is made.
#pragma once

#include <poll.h>

#include <array>
#include <functional>
#include <optional>
#include <string>

#include "base/result.h"
#include "io/fd.h"
#include "netblk_helper_process.h"
#include "netblk_source.h"
#include "netblk_state.h"

namespace netblk::tools {

// The record of the disk, and the lock that says that its helper lives: it is held until nothing is left. So the life of
// a helper is its first member.
class HelperLife {
 public:
  HelperLife() = default;
  HelperLife(const HelperLife&) = delete;
  HelperLife& operator=(const HelperLife&) = delete;
  // With the process goes the record, unless it was left.
  ~HelperLife();

  // The one or the other, once: with a new record, or with that of a helper that has died.
  Status begin(const std::string& way, const Source& source, const AttachOptions& options);
  Status take_over(const Source& source, const Record& orphan);

  // The source has so many bytes now: `show` makes the kernel show them, and the record says so; or why it does not is noted.
  void follow_size(uint64_t size_bytes, const std::function<Status(uint64_t size_bytes)>& show);
  const std::string& size_note() const { return size_note_; }

  // There is a disk for another helper.
  void leave_record() { leave_record_ = true; }

  // To be asked when there is a signal. Signals end a disk that nobody uses. One in use stays: a shutdown that signals
  // every process first must not cost the file system on it.
  bool may_end_on_signal() const;

  // For poll(), in this order: signals, the event, the control socket, and one more (-1: none).
  std::array<pollfd, 4> watched(int another = -1) const;

  Record record;
  io::UniqueFd signals;
  io::UniqueFd event;  // an eventfd, for what the way's threads have to say
  std::optional<ControlSocket> control;

 private:
  Status become(const Source& source);

  io::UniqueFd lock_;
  bool leave_record_ = false;
  std::string size_note_;
};

}  // namespace netblk::tools
