// SPDX-License-Identifier: GPL-2.0-only
// What is attached on this machine: one folder of /run/netblk for each attachment that a helper process serves.
//
//   /run/netblk/N/lock        held (flock) by the helper as long as it lives
//                 state.json  the record, replaced as a whole
//                 control     a socket; each connection sends one word and gets one answer: "state" the live state as
//                             JSON, "reset" takes note of a loss ("ok", or "nothing" when there was none), "look" has
//                             it look whether its disk is still there
//                 mnt/disk    the FUSE file under the loop device (by way of fuse)
//                 told        what the users of the disk were told (by way of ublk, and of nbd)
//                 guard       locked by the disk's guard (by way of ublk), whose process it names; who takes the file away
//                             calls the guard off
//                 log         the helper's log
#pragma once

#include <cerrno>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "io/fd.h"

namespace netblk::tools {

// Longer than anybody waits, and short enough to be added to a time, or counted in the kernel's ticks.
inline constexpr uint64_t kForEverMs = uint64_t{1000} << 30;

struct AttachOptions {
  uint64_t size_bytes = 0;  // 0: the server has to tell it (netblk/2)
  uint64_t timeout_ms = 5000;
  bool timeout_given = false;  // otherwise netblk/2 has deadlines of its own
  bool for_ever = false;       // no request ends because of time; timeout_ms is not given then
  unsigned connections = 1;
  bool connections_given = false;
  bool read_only = false;
  bool shared = false;
  bool takeover = false;
  bool trust_reconnect = false;  // NBD: a server that came back still has what it acknowledged
  bool reconnect_given = false;

  // How long nothing may be connected until requests fail.
  uint64_t dead_time_ms() const { return for_ever ? kForEverMs : timeout_given ? 3 * timeout_ms : 120'000; }
};

struct UblkRecord {
  int64_t number = -1;  // of /dev/ublkbN; -1: none yet
  uint64_t mark = 0;    // that the kernel keeps for us
};

// A disk that waits in the kernel for its helper's successor, who has to know which contents its users have seen.
struct SeenContents {
  std::string store_uuid;  // empty: the source does not tell
  uint64_t generation = 0;
  bool lost = false;  // acknowledged writes may be gone
  std::string lost_why;
  bool operator==(const SeenContents&) const = default;
};

struct Record {
  std::string directory;    // "/run/netblk/0"
  uint64_t lock_inode = 0;  // of its lock, when it was read: the number may be another's by now, who is not meant
  std::string way;          // "fuse", "nbd", "ublk"
  std::string device;       // "/dev/loop3"; empty while the helper is still at it
  std::string server;       // "netblk://127.0.0.1:10809", or a STORE of this machine
  uint64_t size_bytes = 0;
  int64_t pid = 0;
  AttachOptions given;     // another helper goes on with them, and takes nothing over from others
  uint16_t nbd_flags = 0;  // by way of nbd: NBD_FLAG_*, as the server sent them
  UblkRecord ublk;         // by way of ublk
  SeenContents seen;       // by way of ublk, or of nbd where the helper serves the disk

  std::string mount_directory() const { return directory + "/mnt"; }
  std::string disk_file() const { return directory + "/mnt/disk"; }
  std::string log_file() const { return directory + "/log"; }
  std::string told_file() const { return directory + "/told"; }
  std::string guard_file() const { return directory + "/guard"; }
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
// sees the first. Waits for it, for a minute unless it was told otherwise; then ETIMEDOUT, and who has it.
Result<io::UniqueFd> lock_attachments();
void set_lock_patience(uint64_t milliseconds);

Status write_record(const Record& record);
std::vector<Record> read_records();
// Nothing: there is none, or it is not ours.
std::optional<Record> read_record(const std::string& directory);

// Whether the helper lives; one that was killed does not. It waits a moment for the end of such a one.
bool is_alive(const Record& record);
// Whether it was killed, and has not come to its end.
bool is_dying(const Record& record);
// Waits until the helper has gone; false when the time is over first.
bool wait_until_gone(const Record& record, uint64_t timeout_ms);
// A system call made again as long as something interrupts it. That needs no signal: a ring of io_uring that was closed
// has work to do in its process, and a socket with a time limit then says EINTR.
template <class Call>
auto uninterrupted(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

// The helper's answer to the word; empty when it does not answer.
std::string ask_helper(const Record& record, const std::string& word);
// Takes away what a helper that has gone left: the FUSE mount and the folder.
Status remove_leftovers(const Record& record);

// Where the block device, or a partition of it, is mounted or used as swap, in words; empty when it is not.
std::vector<std::string> uses_of(const std::string& device);
// Whether somebody has the device for himself (mounted, or opened exclusively).
bool is_in_use(const std::string& device);
// EBUSY, in words, when the one or the other is so.
Status check_unused(const std::string& device);

// What was written to the device and still waits in the page cache goes to the server. An error says that it did not.
Status write_back(const std::string& device);
// The same, with `look` called again and again meanwhile.
Status write_back(const std::string& device, const std::function<void()>& look);

// To be asked after write_back(), which may take minutes: EBUSY when somebody has begun to use the device meanwhile.
Status check_still_unused(const std::string& device, const Status& written);

// The kernel forgets the partitions of a disk that has gone and whose node stays.
void forget_partitions(const std::string& device);

// "loop3" -> "/dev/loop3"; symbolic links are followed.
std::string canonical_device(const std::string& device);

// "" when it cannot be read; without the newline at its end.
std::string read_text(const std::string& path);

}  // namespace netblk::tools
