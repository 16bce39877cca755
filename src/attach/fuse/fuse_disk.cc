// SPDX-License-Identifier: GPL-2.0-only
#include "attach/fuse/fuse_disk.h"

#define FUSE_USE_VERSION 35
#include <fuse_lowlevel.h>

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <future>
#include <string_view>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/limits.h"
#include "base/log.h"

namespace netblk::attach {

using block::Command;
using block::Request;

namespace {

constexpr fuse_ino_t kDiskInode = 2;
constexpr const char* kDiskName = "disk";
// The largest data of one request: what the kernel's 256 pages per request carry.
constexpr uint32_t kMaxIoBytes = 1u << 20;
constexpr size_t kSlots = 64;
// What is read in one go before other work of the loop has its turn: small requests reach the device, and leave for the
// server, together; of large ones each goes on while the processor's cache still holds it.
constexpr unsigned kTurnRequests = 32;
constexpr size_t kTurnBytes = 256u << 10;
// The mode never changes; of a new size the kernel is told.
constexpr double kForeverSeconds = 1e6;

// Where the kernel headers of the build do not name them.
constexpr int kPunchHole = 0x02;  // FALLOC_FL_PUNCH_HOLE
constexpr int kKeepSize = 0x01;   // FALLOC_FL_KEEP_SIZE
constexpr int kZeroRange = 0x10;  // FALLOC_FL_ZERO_RANGE

}  // namespace

// Memory for one request as it is read: the headers end where a page begins, so that the data of a write, and what is
// read for the kernel, are whole pages, which the kernel copies one by one.
class RequestMemory {
 public:
  RequestMemory() = default;
  RequestMemory(const RequestMemory&) = delete;
  RequestMemory& operator=(const RequestMemory&) = delete;
  ~RequestMemory() {
    if (memory_ != nullptr) (void)::munmap(memory_, bytes());
  }
  // On first use: most disks never have all their requests in flight.
  bool make() {
    if (memory_ != nullptr) return true;
    void* const memory = ::mmap(nullptr, bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return false;
    memory_ = static_cast<std::byte*>(memory);
    return true;
  }
  std::byte* begin() const { return data() - kHeaderBytes; }
  std::byte* data() const { return memory_ + page(); }

 private:
  static constexpr size_t kHeaderBytes = 80;  // fuse_in_header and fuse_write_in
  static size_t page() { return static_cast<size_t>(::sysconf(_SC_PAGESIZE)); }
  // The kernel wants room for more headers than a write has.
  static size_t bytes() { return page() + kMaxIoBytes + page(); }
  std::byte* memory_ = nullptr;
};

class FuseDisk::Session {
 public:
  Session(block::Device& device, io::Loop& loop, std::string directory, std::function<void()> on_closed)
      : device_(device), loop_(loop), directory_(std::move(directory)), on_closed_(std::move(on_closed)), begin_(*this),
        again_(*this), news_(*this) {
    for (Slot& slot : slots_) {
      slot.session = this;
      slot.request.loop = &loop_;
      free_.push_back(&slot);
    }
  }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;
  ~Session();

  Status start();
  Status show_size();
  std::string path() const { return directory_ + "/" + kDiskName; }

 private:
  // One request of the kernel: its bytes as they were read, which hold a write's data and are reused for a read's.
  struct Slot {
    Slot() : request(*this) {}

    struct SlotRequest : Request {
      explicit SlotRequest(Slot& owner)
          : Request([](Request& done) {
              Slot& ended = static_cast<SlotRequest&>(done).slot;
              ended.session->answer(ended);
            }),
            slot(owner) {}
      Slot& slot;
    };
    Session* session = nullptr;
    RequestMemory memory;
    fuse_req_t from = nullptr;
    SlotRequest request;
  };

  struct Begin : io::Posted {
    explicit Begin(Session& of) : Posted([](coro::Runnable& self) { static_cast<Begin&>(self).session.begin(); }), session(of) {}
    Session& session;
  };
  struct Again : coro::Runnable {
    explicit Again(Session& of) : Runnable([](coro::Runnable& self) { static_cast<Again&>(self).session.take(); }), session(of) {}
    Session& session;
  };
  struct News : io::Op {
    explicit News(Session& of) : Op([](coro::Runnable& self) { static_cast<News&>(self).session.take(); }), session(of) {}
    Session& session;
  };

  static Session& of(fuse_req_t from) { return *static_cast<Session*>(fuse_req_userdata(from)); }
  static const fuse_lowlevel_ops& operations();

  void begin();
  void take();
  void release(Slot& slot);
  void ended();
  void submit(fuse_req_t from, Command command, uint64_t offset, uint64_t length, std::byte* data);
  void answer(Slot& slot);
  struct stat attributes(fuse_ino_t inode) const;

  static void on_init(void* self, fuse_conn_info* connection);
  static void on_lookup(fuse_req_t from, fuse_ino_t parent, const char* name);
  static void on_getattr(fuse_req_t from, fuse_ino_t inode, fuse_file_info* file);
  static void on_setattr(fuse_req_t from, fuse_ino_t inode, struct stat* wanted, int which, fuse_file_info* file);
  static void on_readdir(fuse_req_t from, fuse_ino_t inode, size_t size, off_t offset, fuse_file_info* file);
  static void on_open(fuse_req_t from, fuse_ino_t inode, fuse_file_info* file);
  static void on_release(fuse_req_t from, fuse_ino_t inode, fuse_file_info* file);
  static void on_read(fuse_req_t from, fuse_ino_t inode, size_t size, off_t offset, fuse_file_info* file);
  static void on_write(fuse_req_t from, fuse_ino_t inode, const char* data, size_t size, off_t offset,
                       fuse_file_info* file);
  static void on_fsync(fuse_req_t from, fuse_ino_t inode, int data_only, fuse_file_info* file);
  static void on_fallocate(fuse_req_t from, fuse_ino_t inode, int mode, off_t offset, off_t length,
                           fuse_file_info* file);

  block::Device& device_;
  io::Loop& loop_;
  const std::string directory_;
  const std::function<void()> on_closed_;
  fuse_session* session_ = nullptr;
  bool mounted_ = false;
  bool begun_ = false;  // the loop has it
  io::UniqueFd watch_;  // an epoll descriptor that holds no reference to what it watches
  std::promise<void> ended_;
  std::future<void> end_ = ended_.get_future();

  // Of the loop's thread.
  Begin begin_;
  Again again_;
  News news_;
  std::unique_ptr<io::Stream> readiness_;
  Slot* current_ = nullptr;  // the one being read or parsed; null once a request took it
  bool starved_ = false;     // the kernel may have more, and no slot was free
  bool over_ = false;        // the mount is gone
  uint64_t openers_ = 0;
  std::vector<Slot*> free_;  // the one used last comes next: its memory is in the cache
  std::array<Slot, kSlots> slots_;
};

const fuse_lowlevel_ops& FuseDisk::Session::operations() {
  static const fuse_lowlevel_ops table = [] {
    fuse_lowlevel_ops ops{};
    ops.init = on_init;
    ops.lookup = on_lookup;
    ops.getattr = on_getattr;
    ops.setattr = on_setattr;
    ops.readdir = on_readdir;
    ops.open = on_open;
    ops.release = on_release;
    ops.read = on_read;
    ops.write = on_write;
    ops.fsync = on_fsync;
    ops.fallocate = on_fallocate;
    return ops;
  }();
  return table;
}

Status FuseDisk::Session::start() {
  const std::string max_read = fmt::format("max_read={}", kMaxIoBytes);
  std::vector<std::string> words = {"netblk", "-o", "fsname=netblk,subtype=netblk,default_permissions", "-o", max_read};
  if (device_.geometry().read_only) words.insert(words.end(), {"-o", "ro"});
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  fuse_args args = FUSE_ARGS_INIT(static_cast<int>(pointers.size()), pointers.data());
  session_ = fuse_session_new(&args, &operations(), sizeof(fuse_lowlevel_ops), this);
  fuse_opt_free_args(&args);
  if (session_ == nullptr) return make_error(EIO, "libfuse refused to make a session");
  errno = 0;
  if (fuse_session_mount(session_, directory_.c_str()) != 0) {
    const int error = errno != 0 ? errno : EIO;
    return make_error(error, "cannot mount FUSE on {}: {} (is /dev/fuse there, and are you root?)", directory_,
                      errno_text(error));
  }
  mounted_ = true;
  // Whoever dies with operations in a ring is held by it for a while: the ring watches this, and not the mount itself,
  // which has to fail its users at once.
  watch_ = io::UniqueFd(::epoll_create1(EPOLL_CLOEXEC));
  epoll_event event{.events = EPOLLIN, .data = {.ptr = nullptr}};
  const int fd = fuse_session_fd(session_);
  if (!watch_.valid() || ::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) | O_NONBLOCK) != 0 ||
      ::epoll_ctl(watch_.get(), EPOLL_CTL_ADD, fd, &event) != 0)
    return make_error(errno, "cannot watch /dev/fuse: {}", errno_text(errno));
  if (!free_.back()->memory.make()) return make_error(ENOMEM, "no memory for a request of FUSE");
  begun_ = true;
  loop_.post(begin_);
  return Ok{};
}

// The kernel forgets what it is told of the size while writes end, except of a truncation.
Status FuseDisk::Session::show_size() {
  struct stat found{};
  if (device_.geometry().read_only) {
    (void)fuse_lowlevel_notify_inval_inode(session_, kDiskInode, -1, 0);
    if (::stat(path().c_str(), &found) == 0) return Ok{};
  } else if (::truncate(path().c_str(), static_cast<off_t>(device_.size_bytes())) == 0) {
    return Ok{};
  }
  return make_error(errno, "the kernel does not take the new size of {}: {}", path(), errno_text(errno));
}

FuseDisk::Session::~Session() {
  if (mounted_) {
    // Not by libfuse, which closes the descriptor first: late answers would then use its number, which may belong to
    // another file by then.
    if (::umount2(directory_.c_str(), MNT_DETACH | UMOUNT_NOFOLLOW) != 0)
      log_warning("cannot unmount {}: {}", directory_, errno_text(errno));
    if (begun_) end_.wait();
    fuse_session_unmount(session_);
  }
  if (session_ != nullptr) fuse_session_destroy(session_);
}

void FuseDisk::Session::begin() {
  readiness_ = loop_.make_stream(std::move(watch_));
  take();
}

// Reads what the kernel has, until it has nothing. Ends when the mount is gone: the kernel lets nobody open the file then,
// and the last opener has closed it.
void FuseDisk::Session::take() {
  size_t bytes = 0;
  for (unsigned requests = 0; requests < kTurnRequests && bytes < kTurnBytes;) {
    if (free_.empty()) {
      starved_ = true;
      return;
    }
    Slot& slot = *free_.back();
    if (!slot.memory.make()) {
      // Those that have memory are at the end of the list, so all of them are in flight, and one comes back.
      NETBLK_CHECK(free_.size() < kSlots, "no memory for one request");
      starved_ = true;
      return;
    }
    fuse_buf buffer{};
    buffer.mem = slot.memory.begin();
    const int got = fuse_session_receive_buf(session_, &buffer);
    if (got > 0) {
      free_.pop_back();
      current_ = &slot;
      fuse_session_process_buf(session_, &buffer);
      if (current_ != nullptr) free_.push_back(std::exchange(current_, nullptr));
      ++requests;
      bytes += static_cast<size_t>(got);
      continue;
    }
    if (got == -EINTR) continue;
    if (got == -EAGAIN) {
      const bool at_once = readiness_->readable(news_);
      NETBLK_CHECK(!at_once, "a loop cannot wait for /dev/fuse");
      return;
    }
    if (got < 0 && got != -ENODEV) log_error("reading from /dev/fuse failed: {}", errno_text(-got));
    over_ = true;
    if (free_.size() == kSlots) ended();
    return;
  }
  coro::ReadyQueue::current().push(again_);
}

void FuseDisk::Session::release(Slot& slot) {
  free_.push_back(&slot);
  if (std::exchange(starved_, false)) coro::ReadyQueue::current().push(again_);
  if (over_ && free_.size() == kSlots) ended();
}

// The last of the session on the loop: whoever waits destroys it.
void FuseDisk::Session::ended() {
  readiness_.reset();
  std::promise<void> told = std::move(ended_);
  told.set_value();
}

void FuseDisk::Session::submit(fuse_req_t from, Command command, uint64_t offset, uint64_t length, std::byte* data) {
  Slot& slot = *std::exchange(current_, nullptr);
  slot.from = from;
  slot.request.command = command;
  slot.request.offset = offset;
  slot.request.length = length;
  slot.request.data = data;
  device_.submit(slot.request);
}

void FuseDisk::Session::answer(Slot& slot) {
  const Request& request = slot.request;
  // A failed reply has nobody to tell: the asker was interrupted or the mount is gone.
  if (request.error != 0) {
    (void)fuse_reply_err(slot.from, request.error);
  } else if (request.command == Command::kRead) {
    (void)fuse_reply_buf(slot.from, reinterpret_cast<const char*>(request.data), request.length);
  } else if (request.command == Command::kWrite) {
    (void)fuse_reply_write(slot.from, request.length);
  } else {
    (void)fuse_reply_err(slot.from, 0);
  }
  release(slot);
}

struct stat FuseDisk::Session::attributes(fuse_ino_t inode) const {
  struct stat result{};
  result.st_ino = inode;
  result.st_uid = ::geteuid();
  result.st_gid = ::getegid();
  if (inode == FUSE_ROOT_ID) {
    result.st_mode = S_IFDIR | 0500;
    result.st_nlink = 2;
  } else {
    result.st_mode = S_IFREG | (device_.geometry().read_only ? 0400 : 0600);
    result.st_nlink = 1;
    result.st_size = static_cast<off_t>(device_.size_bytes());
    result.st_blksize = 4096;
    result.st_blocks = result.st_size / 512;
  }
  return result;
}

void FuseDisk::Session::on_init(void* /*self*/, fuse_conn_info* connection) {
  connection->max_write = kMaxIoBytes;
  connection->max_read = kMaxIoBytes;
  connection->max_background = kSlots;
  connection->congestion_threshold = kSlots;
  connection->time_gran = 1;
  // Data is moved by plain reads and writes of /dev/fuse: a slot's buffer then holds all of it.
  connection->want &= ~static_cast<unsigned>(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
  connection->want |= connection->capable & FUSE_CAP_ASYNC_DIO;
}

void FuseDisk::Session::on_lookup(fuse_req_t from, fuse_ino_t parent, const char* name) {
  if (parent != FUSE_ROOT_ID || std::string_view(name) != kDiskName) return (void)fuse_reply_err(from, ENOENT);
  fuse_entry_param entry{};
  entry.ino = kDiskInode;
  entry.attr = of(from).attributes(kDiskInode);
  entry.attr_timeout = entry.entry_timeout = kForeverSeconds;
  (void)fuse_reply_entry(from, &entry);
}

void FuseDisk::Session::on_getattr(fuse_req_t from, fuse_ino_t inode, fuse_file_info* /*file*/) {
  const struct stat result = of(from).attributes(inode);
  (void)fuse_reply_attr(from, &result, kForeverSeconds);
}

// Times may be set, to no effect; a disk is not truncated, but to the size that it has: that is show_size(). Its owner and
// mode are fixed.
void FuseDisk::Session::on_setattr(fuse_req_t from, fuse_ino_t inode, struct stat* wanted, int which,
                                   fuse_file_info* /*file*/) {
  const struct stat result = of(from).attributes(inode);
  if ((which & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) != 0 ||
      ((which & FUSE_SET_ATTR_SIZE) != 0 && wanted->st_size != result.st_size))
    return (void)fuse_reply_err(from, EPERM);
  (void)fuse_reply_attr(from, &result, kForeverSeconds);
}

void FuseDisk::Session::on_readdir(fuse_req_t from, fuse_ino_t inode, size_t size, off_t offset,
                                   fuse_file_info* /*file*/) {
  if (inode != FUSE_ROOT_ID) return (void)fuse_reply_err(from, ENOTDIR);
  struct Entry {
    const char* name;
    fuse_ino_t inode;
  };
  static constexpr std::array kEntries = {Entry{".", FUSE_ROOT_ID}, Entry{"..", FUSE_ROOT_ID},
                                          Entry{kDiskName, kDiskInode}};
  std::vector<char> listing(size);
  size_t used = 0;
  for (size_t i = static_cast<size_t>(offset < 0 ? 0 : offset); i < kEntries.size(); ++i) {
    const struct stat result = of(from).attributes(kEntries[i].inode);
    const size_t needed = fuse_add_direntry(from, listing.data() + used, size - used, kEntries[i].name, &result,
                                            static_cast<off_t>(i) + 1);
    if (needed > size - used) break;
    used += needed;
  }
  (void)fuse_reply_buf(from, listing.data(), used);
}

void FuseDisk::Session::on_open(fuse_req_t from, fuse_ino_t inode, fuse_file_info* file) {
  if (inode != kDiskInode) return (void)fuse_reply_err(from, EISDIR);
  Session& self = of(from);
  if (self.device_.geometry().read_only && (file->flags & O_ACCMODE) != O_RDONLY)
    return (void)fuse_reply_err(from, EROFS);
  // No page cache between the loop device, which has one above it, and the device.
  file->direct_io = 1;
  file->noflush = 1;
  if (fuse_reply_open(from, file) == 0) ++self.openers_;
}

void FuseDisk::Session::on_release(fuse_req_t from, fuse_ino_t /*inode*/, fuse_file_info* /*file*/) {
  Session& self = of(from);
  (void)fuse_reply_err(from, 0);
  if (--self.openers_ == 0 && self.on_closed_) self.on_closed_();
}

void FuseDisk::Session::on_read(fuse_req_t from, fuse_ino_t /*inode*/, size_t size, off_t offset,
                                fuse_file_info* /*file*/) {
  Session& self = of(from);
  const uint64_t end = self.device_.size_bytes();
  const auto start = static_cast<uint64_t>(offset);
  if (offset < 0 || size > kMaxIoBytes) return (void)fuse_reply_err(from, EINVAL);
  if (start >= end || size == 0) return (void)fuse_reply_buf(from, nullptr, 0);
  const uint64_t length = size < end - start ? size : end - start;
  self.submit(from, Command::kRead, start, length, self.current_->memory.data());
}

void FuseDisk::Session::on_write(fuse_req_t from, fuse_ino_t /*inode*/, const char* data, size_t size, off_t offset,
                                 fuse_file_info* /*file*/) {
  Session& self = of(from);
  const uint64_t end = self.device_.size_bytes();
  if (offset < 0 || static_cast<uint64_t>(offset) > end || size > end - static_cast<uint64_t>(offset))
    return (void)fuse_reply_err(from, ENOSPC);
  // The data lies in the slot's own buffer, which stays until the answer.
  auto* const bytes = reinterpret_cast<std::byte*>(const_cast<char*>(data));
  self.submit(from, Command::kWrite, static_cast<uint64_t>(offset), size, bytes);
}

void FuseDisk::Session::on_fsync(fuse_req_t from, fuse_ino_t /*inode*/, int /*data_only*/, fuse_file_info* /*file*/) {
  of(from).submit(from, Command::kFlush, 0, 0, nullptr);
}

void FuseDisk::Session::on_fallocate(fuse_req_t from, fuse_ino_t /*inode*/, int mode, off_t offset, off_t length,
                                     fuse_file_info* /*file*/) {
  Session& self = of(from);
  if (offset < 0 || length <= 0) return (void)fuse_reply_err(from, EINVAL);
  Command command;
  if (mode == (kPunchHole | kKeepSize) && self.device_.geometry().can_trim) {
    command = Command::kTrim;
  } else if (mode == (kZeroRange | kKeepSize)) {
    command = Command::kWriteZeroes;
  } else {
    return (void)fuse_reply_err(from, EOPNOTSUPP);
  }
  self.submit(from, command, static_cast<uint64_t>(offset), static_cast<uint64_t>(length), nullptr);
}

FuseDisk::FuseDisk(std::unique_ptr<Session> session) : session_(std::move(session)) {}
FuseDisk::~FuseDisk() = default;

Result<std::unique_ptr<FuseDisk>> FuseDisk::mount(block::Device& device, io::Loop& loop, const std::string& directory,
                                                  std::function<void()> on_closed) {
  auto session = std::make_unique<Session>(device, loop, directory, std::move(on_closed));
  Status started = session->start();
  if (!started) return std::move(started).error();
  return std::unique_ptr<FuseDisk>(new FuseDisk(std::move(session)));
}

Status FuseDisk::show_size() { return session_->show_size(); }
std::string FuseDisk::path() const { return session_->path(); }

}  // namespace netblk::attach
