// SPDX-License-Identifier: GPL-2.0-only
#include "store/identity.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <utility>

#include "base/log.h"

namespace netblk::store {
namespace {

// Two independent FNV-1a sums of a text: the same store gives the same id, whenever it is asked.
Id id_of(std::string_view text) {
  Id id;
  for (size_t half = 0; half < 2; ++half) {
    uint64_t sum = 0xcbf29ce484222325u + half * 0x9e3779b97f4a7c15u;
    for (const char c : text) sum = (sum ^ static_cast<uint8_t>(c)) * 0x100000001b3u;
    for (size_t i = 0; i < 8; ++i) id.bytes[half * 8 + i] = static_cast<uint8_t>(sum >> (56 - 8 * i));
  }
  return id;
}

void describe(StoreRecord& record, const Medium::Seen& seen, const std::string& medium) {
  record.inode = seen.inode;
  record.device = seen.device;
  record.ctime_ns = seen.ctime_ns;
  record.size_bytes = seen.size_bytes;
  record.medium = medium;
}

// A block device without a name of its own is known only until the machine starts again.
std::string medium_of(const Medium::Seen& seen, const std::string& boot_id) {
  if (!seen.is_block_device || !seen.name.empty()) return seen.name;
  return fmt::format("boot {} device {} sequence {}", boot_id, seen.device, seen.disk_sequence);
}

bool is_lasting(const std::string& medium) { return !medium.empty() && !medium.starts_with("boot "); }

// A whole path that fits into a line of a record, or nothing.
std::string whole_path(const std::string& path) {
  std::error_code failed;
  const std::string whole = std::filesystem::absolute(path, failed).string();
  const bool fits = std::none_of(whole.begin(), whole.end(), [](char c) { return static_cast<unsigned char>(c) < ' '; });
  return failed || !fits ? "" : whole;
}

// 0: it is not there.
uint64_t folder_device_of(const std::string& path) {
  struct stat folder {};
  const std::string name = std::filesystem::path(path).parent_path().string();
  return !name.empty() && ::stat(name.c_str(), &folder) == 0 ? folder.st_dev : 0;
}

// A folder that is not mounted is not one whose files were deleted.
bool is_deleted(const RunRecord& record) {
  struct stat seen {};
  return !record.store.empty() && record.folder_device != 0 && folder_device_of(record.store) == record.folder_device &&
         ::lstat(record.store.c_str(), &seen) != 0 && errno == ENOENT;
}

}  // namespace

std::string this_boot_id() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string text;
  std::getline(file, text);
  return text;
}

std::vector<std::string> usual_run_folders() {
  std::vector<std::string> folders{"/run/netblk"};
  const char* const user = std::getenv("XDG_RUNTIME_DIR");
  if (user != nullptr && *user == '/') folders.push_back(std::string(user) + "/netblk");
  return folders;
}

Identity::Identity(IdentityOptions options, std::unique_ptr<Medium> medium, const Medium::Seen& seen)
    : options_(std::move(options)), medium_(std::move(medium)), seen_(seen) {}

Result<std::unique_ptr<Identity>> Identity::open(IdentityOptions options, std::unique_ptr<Medium> medium,
                                                 bool brand_new) {
  auto seen = medium->look();
  if (!seen) return make_error(seen.error().code, "{}: {}", options.store, seen.error().message);
  std::unique_ptr<Identity> identity(new Identity(std::move(options), std::move(medium), seen.value()));
  if (auto decided = identity->decide(brand_new); !decided) return std::move(decided).error();
  return identity;
}

void Identity::take_new_uuid() {
  record_ = StoreRecord{};
  record_.clean = true;
  record_.uuid = random_id();
  if (!options_.read_only) return;
  // Nothing is written down for readers. They have no writes to lose when the counter moves, but a uuid of this process
  // would end them at each restart of the server: it comes from the file, and the counter from its change time.
  record_.uuid = id_of(fmt::format("inode {} born {} medium {}", seen_.inode, seen_.birth_ns,
                                   seen_.is_block_device && seen_.name.empty() ? options_.store : seen_.name));
  record_.counter = static_cast<uint64_t>(seen_.ctime_ns) + 1;
}

Status Identity::decide(bool brand_new) {
  keeps_records_ = !options_.read_only;
  auto text = read_record_file(options_.record_path);
  // Nobody can tell what a record says that cannot be read: a guess of ours might let an old client go on.
  if (!text && text.error().code != EFBIG) {
    if (options_.must_keep && keeps_records_) return make_error(text.error().code, "{}", text.error().message);
    live_without_record(text.error());
    return Ok{};
  }
  if (text && !text.value().has_value()) {
    take_new_uuid();
  } else {
    auto read = text ? decode_store_record(*text.value()) : Result<StoreRecord>(text.error());
    if (!read && read.error().code == EPROTONOSUPPORT)
      return make_error(EPROTONOSUPPORT, "{}: its record {} cannot be used: {}; serve it with the newer netblk_server",
                        options_.store, options_.record_path, read.error().message);
    if (!read) {
      take_new_uuid();
      log_warning("{}: its record {} is damaged: {}; the store gets a new uuid, and clients that had it refuse it until "
                  "they are attached again",
                  options_.store, options_.record_path, read.error().message);
    } else {
      record_ = std::move(read).value();
      const std::string medium = medium_of(seen_, options_.boot_id);
      const bool another_disk = is_lasting(medium) && is_lasting(record_.medium) && medium != record_.medium;
      if (brand_new || another_disk) {
        log_info("{}: the record {} is of a store that was here before; this one gets a uuid of its own", options_.store,
                 options_.record_path);
        take_new_uuid();
      } else if (const std::string why = why_moved(); !why.empty()) {
        log_warning("{}: generation {} becomes {}: {}", options_.store, record_.counter, record_.counter + 1, why);
        ++record_.counter;
        medium_->drop_cache();
        // What is here now is on the disk: it is where this generation begins.
        record_.clean = options_.read_only || medium_->sync() == 0;
      }
    }
  }
  uuid_ = record_.uuid;
  counter_.store(record_.counter, std::memory_order_release);
  writes_begun_.store(!record_.clean, std::memory_order_release);
  return Ok{};
}

// Why answered writes may be gone since the record was written, in words; or an empty text.
std::string Identity::why_moved() {
  // The record is exact: nothing was written after it. Whatever is different now, somebody else did.
  if (record_.clean)
    return same_store_as_closed() ? "" : "it was changed while no server had it, or is another file by now";
  return why_cache_is_lost();
}

bool Identity::same_store_as_closed() const {
  return record_.inode == seen_.inode && record_.ctime_ns == seen_.ctime_ns && record_.size_bytes == seen_.size_bytes &&
         record_.medium == medium_of(seen_, options_.boot_id);
}

// It was not closed: its last writes are where the kernel had them, if that is the same kernel.
std::string Identity::why_cache_is_lost() {
  const std::string name = "/store-" + id_text(record_.uuid);
  std::optional<RunRecord> found;
  for (const std::string& folder : options_.run_folders) {
    auto text = read_record_file(folder + name);
    if (!text || !text.value().has_value()) continue;
    auto read = decode_run_record(*text.value());
    // An older one that was left behind says nothing about this state.
    if (!read || read.value().uuid != record_.uuid || read.value().counter < record_.counter) continue;
    if (!found || read.value().counter > found->counter || !read.value().healthy) found = read.value();
  }
  if (!found) return "it was not closed, and nothing in /run says that the machine has been up since";
  if (found->boot_id != options_.boot_id) return "it was not closed, and the machine was started anew since";
  if (!found->healthy || found->counter != record_.counter) {
    // The durable record may have missed it, on a disk that fails.
    record_.counter = found->counter;
    return "a sync failed while it was open";
  }
  if (found->inode != seen_.inode || found->device != seen_.device || found->disk_sequence != seen_.disk_sequence)
    return "it was not closed, and is another file or disk by now";
  // The kernel tells of a writeback that failed meanwhile once, here.
  if (const int error = medium_->sync(); error != 0) return fmt::format("it cannot be synced: {}", errno_text(error));
  return {};
}

Status Identity::start() {
  const std::lock_guard lock(mutex_);
  if (!keeps_records_) return Ok{};
  auto started = [&]() -> Status {
    if (record_.clean) {
      auto seen = medium_->look();
      if (!seen) return make_error(seen.error().code, "{}: {}", options_.store, seen.error().message);
      seen_ = seen.value();
    }
    StoreRecord wanted = record_;
    describe(wanted, seen_, medium_of(seen_, options_.boot_id));
    if (auto saved = save(std::move(wanted)); !saved) return saved;
    auto saved = save_run(true);
    if (saved) sweep_run_folder();
    return saved;
  }();
  if (started) return Ok{};
  if (options_.must_keep)
    return make_error(started.error().code, "{}: its record cannot be kept: {}", options_.store, started.error().message);
  live_without_record(started.error());
  return Ok{};
}

void Identity::live_without_record(const Error& cause) {
  keeps_records_ = false;
  take_new_uuid();
  uuid_ = record_.uuid;
  counter_.store(record_.counter, std::memory_order_release);
  writes_begun_.store(true, std::memory_order_release);
  if (options_.read_only) return;
  log_warning("{}: no record of it can be kept ({}); after a restart of this server, netblk/2 clients take it for another "
              "disk, and their input and output fails until they are attached again: give --state-dir, or make {} writable",
              options_.store, cause.message, options_.record_path);
}

Status Identity::save(StoreRecord record) {
  if (auto saved = replace_record_file(options_.record_path, encode(record), true, medium_->descriptor()); !saved)
    return saved;
  record_ = std::move(record);
  return Ok{};
}

std::string Identity::run_path() const { return run_folder_ + "/store-" + id_text(record_.uuid); }

Status Identity::save_run(bool healthy) {
  const RunRecord record{.uuid = record_.uuid, .counter = counter_.load(std::memory_order_relaxed),
                         .boot_id = options_.boot_id, .inode = seen_.inode, .device = seen_.device,
                         .disk_sequence = seen_.disk_sequence, .healthy = healthy,
                         .store = whole_path(options_.store), .folder_device = folder_device_of(whole_path(options_.store))};
  const std::string text = encode(record);
  if (!run_folder_.empty()) return replace_record_file(run_path(), text, false, -1);
  for (const std::string& folder : options_.run_folders) {
    if (!make_record_folder(folder)) continue;
    run_folder_ = folder;
    if (replace_record_file(run_path(), text, false, -1)) return Ok{};
  }
  // Without it a killed server counts as a crashed machine, which is safe.
  run_folder_.clear();
  log_warning("{}: no folder for its volatile record: if this server is killed, clients lose what they have not flushed",
              options_.store);
  return Ok{};
}

// A server that was killed leaves its record here for the next one. When the store was deleted there is no next one, and the
// folder would fill until the machine starts anew.
void Identity::sweep_run_folder() const {
  constexpr size_t kMostLookedAt = 16;  // a server may open hundreds of stores, each of which comes here
  if (run_folder_.empty()) return;
  std::error_code failed;
  size_t looked_at = 0;
  for (std::filesystem::directory_iterator at(run_folder_, failed), end; !failed && at != end; at.increment(failed)) {
    const std::string path = at->path().string();
    if (!at->path().filename().string().starts_with("store-") || path == run_path()) continue;
    if (++looked_at > kMostLookedAt) return;
    const auto text = read_record_file(path);
    if (!text || !text.value().has_value()) continue;
    const auto read = decode_run_record(*text.value());
    if (read && is_deleted(read.value())) ::unlink(path.c_str());
  }
}

// Defeats: the server answers a write, and the power fails. If the record still said `clean`, the next server would take
// the old contents for what the client had written.
Status Identity::begin_writes() {
  const std::lock_guard lock(mutex_);
  if (writes_begun()) return Ok{};
  StoreRecord wanted = record_;
  wanted.clean = false;
  if (auto saved = save(std::move(wanted)); !saved) return saved;
  writes_begun_.store(true, std::memory_order_release);
  return Ok{};
}

void Identity::sync_failed() {
  const std::lock_guard lock(mutex_);
  if (healthy_) move_after_failed_sync(EIO);
}

// Defeats: a sync fails, the kernel marks its pages clean, the server is killed and started again. Its sync then
// succeeds, about data that is gone.
void Identity::move_after_failed_sync(int error) {
  healthy_ = false;
  counter_.fetch_add(1, std::memory_order_acq_rel);
  if (!keeps_records_) return;
  // The volatile record first: it needs no disk.
  if (!run_folder_.empty())
    if (auto saved = save_run(false); !saved) ::unlink(run_path().c_str());
  StoreRecord wanted = record_;
  wanted.counter = counter_.load(std::memory_order_relaxed);
  wanted.clean = false;
  writes_begun_.store(true, std::memory_order_release);
  if (auto saved = save(std::move(wanted)); !saved)
    log_error("{}: the sync failed ({}), and its record could not be moved to the next generation: {}", options_.store,
              errno_text(error), saved.error().message);
}

void Identity::resized() {
  const std::lock_guard lock(mutex_);
  if (!keeps_records_ || !record_.clean) return;
  auto seen = medium_->look();
  if (!seen) return;
  StoreRecord wanted = record_;
  describe(wanted, seen.value(), record_.medium);
  if (auto saved = save(std::move(wanted)); !saved)
    log_warning("{}: its record does not have the new size: {}", options_.store, saved.error().message);
}

std::vector<std::byte> Identity::owners() const {
  const std::lock_guard lock(mutex_);
  return record_.owners;
}

// Defeats: a client is fenced away, the server starts anew, and the fenced client comes back as if it still owned the
// store.
Status Identity::keep_owners(std::vector<std::byte> owners) {
  const std::lock_guard lock(mutex_);
  StoreRecord wanted = record_;
  wanted.owners = std::move(owners);
  if (keeps_records_) return save(std::move(wanted));
  record_ = std::move(wanted);
  return Ok{};
}

void Identity::close() {
  const std::lock_guard lock(mutex_);
  if (!keeps_records_ || std::exchange(closed_, true) || !healthy_) return;
  if (!record_.clean) {
    if (const int error = medium_->sync(); error != 0) {
      log_error("{}: the last sync failed: {}; data may be lost", options_.store, errno_text(error));
      return move_after_failed_sync(error);
    }
    // After the sync, which may move the change time; and its result is the last word about these contents.
    auto seen = medium_->look();
    if (!seen) return;
    StoreRecord wanted = record_;
    wanted.clean = true;
    describe(wanted, seen.value(), record_.medium);
    if (auto saved = save(std::move(wanted)); !saved) {
      log_warning("{}: it is closed, but its record does not say so: {}", options_.store, saved.error().message);
      return;
    }
  }
  // From here on only the durable record counts: whoever changes the store now is noticed.
  if (!run_folder_.empty()) ::unlink(run_path().c_str());
}

}  // namespace netblk::store
