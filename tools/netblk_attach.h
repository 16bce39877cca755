// SPDX-License-Identifier: GPL-2.0-only
// What attaching with a helper process has in common, whichever way the disk is made: netblk_attach_fuse.h, _nbd.h, _ublk.h.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "base/result.h"
#include "netblk_helper_process.h"
#include "netblk_source.h"
#include "netblk_state.h"

namespace netblk::tools {

// How long a detach waits for a helper: its release of a healthy connection, or the time-out of one attempt that hangs.
inline constexpr uint64_t kHelperEndMs = 20'000;

struct HelperWay {
  std::string name;  // "fuse", "nbd", "ublk"
  std::string node;  // that is wished for; empty: any
  std::function<Status()> make_room;  // takes away what dead helpers of the same source left
  std::function<int(HelperParent&)> run;  // the helper's life
};

// The node: starts the helper and waits until the disk is there. What is attached already, in the same way, is the answer,
// and gets another helper if its own has died.
Result<std::string> attach_by(const HelperWay& way, const Source& source, const AttachOptions& options);

// Whether the disk of the record is there: its helper lives, or the kernel has it for another helper.
bool is_there(const Record& record);

// What the ways have in common of making room: waits for helpers whose disk others took away, and clears up after them.
Status clear_ended(const std::string& way, const std::string& server);

// Takes away what is left of a helper that has gone: its disk, its names, its record. EBUSY: somebody still holds the disk
// after that time.
Status clear(const Record& record, uint64_t timeout_ms = kHelperEndMs);

// Waits for the end of a helper whose disk is taken away. False: it lives on, and soon if somebody has the disk open.
bool wait_for_end(const Record& record, const std::function<bool()>& is_open);

// Starts another helper for a disk that lost its own.
Status mend(const Record& record);
// The same for all of them, and takes away what is left of disks that have gone; says so on stderr. Without root, nothing.
void mend_all();

std::optional<Record> record_of(const std::string& way, const std::string& node);

// The owner of a disk has taken note of a loss. ENODEV: it is not attached. EINVAL: nothing was lost.
Status reset_by_helper(const std::string& node);

}  // namespace netblk::tools
