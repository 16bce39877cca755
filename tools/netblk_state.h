// SPDX-License-Identifier: GPL-2.0-only
// What is attached on this machine: one folder of /run/netblk for each attachment that a helper process serves.
//
//   /run/netblk/N/lock        held (flock) by the helper as long as it lives
//                 state.json  the record, replaced as a whole
//                 control     a socket; each connection sends one word and gets one answer: "state" the live state as
//                             JSON, "reset" takes note of a loss ("ok", or "nothing" when there was none), "look" has
//                             it look whether its disk is still there
//                 mnt/disk    the FUSE file under the loop device (by way of fuse)
//                 told        what the users of the disk were told (by way of ublk)
//                 log         the helper's log
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"
#include "io/fd.h"

namespace netblk::tools {

// The kernel's nbd does without its helper until a connection is lost; so that another can go on where one ended.
struct NbdRecord {
  uint64_t given_size_bytes = 0;  // --size
  uint64_t given_timeout_ms = 0;  // --timeout
  unsigned connections = 1;
  uint16_t flags = 0;  // NBD_FLAG_*, as the server sent them
  bool shared = false;
};

// A disk of the kernel's ublk waits for its helper's successor, who has to know which contents its users have seen.
struct UblkRecord {
  int64_t number = -1;     // of /dev/ublkbN; -1: none yet
  uint64_t mark = 0;       // that the kernel keeps for us
  std::string store_uuid;  // empty: the source does not tell
  uint64_t generation = 0;
  bool lost = false;  // acknowledged writes may be gone
  std::string lost_why;
  bool trust_reconnect = false;  // as AttachOptions has it
};

struct Record {
  std::string directory;  // "/run/netblk/0"
  std::string way;        // "fuse", "nbd", "ublk"
  std::string device;     // "/dev/loop3"; empty while the helper is still at it
  std::string server;     // "netblk://127.0.0.1:10809", or a STORE of this machine
  uint64_t size_bytes = 0;
  bool read_only = false;
  int64_t pid = 0;
  NbdRecord nbd;    // by way of nbd; of ublk, all but flags
  UblkRecord ublk;  // by way of ublk

  std::string mount_directory() const { return directory + "/mnt"; }
  std::string disk_file() const { return directory + "/mnt/disk"; }
  std::string log_file() const { return directory + "/log"; }
  std::string told_file() const { return directory + "/told"; }
  std::string control_socket() const { return directory + "/control"; }
};

// A new folder of its own; the lock is taken, and held as long as the descriptor is open.
struct NewFolder {
  std::string directory;
  io::UniqueFd lock;
};
Result<NewFolder> make_state_folder();
// The lock of a folder whose helper has gone. EBUSY: it lives.
Result<io::UniqueFd> take_over_folder(const Record& record);

// Held from the look at what is attached until a new attachment has its record: of two that come at once, the second
// sees the first. Waits for it.
Result<io::UniqueFd> lock_attachments();

Status write_record(const Record& record);
std::vector<Record> read_records();

// Whether the helper lives; one that was killed does not. It waits a moment for the end of such a one.
bool is_alive(const Record& record);
// Waits until the helper has gone; false when the time is over first.
bool wait_until_gone(const Record& record, uint64_t timeout_ms);
// The helper's answer to the word; empty when it does not answer.
std::string ask_helper(const Record& record, const std::string& word);
// Takes away what a helper that has gone left: the FUSE mount and the folder.
Status remove_leftovers(const Record& record);

// Where the block device, or a partition of it, is mounted or used as swap, in words; empty when it is not.
std::vector<std::string> uses_of(const std::string& device);
// Whether somebody has the device for himself (mounted, or opened exclusively).
bool is_in_use(const std::string& device);

// What was written to the device and still waits in the page cache goes to the server. An error says that it did not.
Status write_back(const std::string& device);
// The same, with `look` called again and again meanwhile.
Status write_back(const std::string& device, const std::function<void()>& look);

// The kernel forgets the partitions of a disk that has gone and whose node stays.
void forget_partitions(const std::string& device);

// "loop3" -> "/dev/loop3"; symbolic links are followed.
std::string canonical_device(const std::string& device);

// "" when it cannot be read; without the newline at its end.
std::string read_text(const std::string& path);

}  // namespace netblk::tools
