// SPDX-License-Identifier: GPL-2.0-only
#include "volume_store.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>
#include <thread>

#include "base/id.h"
#include "base/log.h"
#include "base/parse.h"
#include "coro/event.h"
#include "io/fd.h"
#include "store/file_store.h"
#include "store/filter/layer.h"
#include "store/identity.h"
#include "store/open_parts.h"
#include "store/record.h"
#include "store/wanted.h"
#include "volume_control.h"

namespace netblk::tools {
namespace {

namespace volume = store::volume;

std::string data_path(const std::string& folder) { return folder + "/data"; }

// File systems that write everything to a new place. (One that shares blocks between files does too, with those that are shared,
// and nobody tells.)
bool overwrites_in_place(const std::string& folder) {
  constexpr std::array<uint64_t, 3> kToNewPlaces{0x9123683e, 0xca451a4e, 0x2fc12fc1};  // btrfs, bcachefs, ZFS
  struct statfs status {};
  return ::statfs(folder.c_str(), &status) != 0 ||
         std::find(kToNewPlaces.begin(), kToNewPlaces.end(), static_cast<uint64_t>(status.f_type)) == kToNewPlaces.end();
}

Error no_volume(const std::string& folder, const char* why) {
  return make_error(ENOENT, "{} is no volume: {}; `netblk volume create` makes one", folder, why);
}

store::FileOptions lock_options(const std::string& folder, const VolumeOpening& opening) {
  store::FileOptions options;
  options.path = folder;
  options.read_only = opening.read_only;
  options.lock_wait_ms = opening.lock_wait_ms;
  options.on_wait = opening.on_wait;
  options.stop_waiting = opening.stop_waiting;
  return options;
}

}  // namespace

// The name of a new file or folder is durable when the folder that has it is.
Status sync_folder(const std::string& path) {
  const io::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid() || (::fsync(fd.get()) != 0 && errno != EINVAL))
    return make_error(errno, "cannot sync {}: {}", path, errno_text(errno));
  return Ok{};
}

Status rename_to_new(const std::string& from, const std::string& to) {
  // Some file systems cannot rename like that: there, a name more is made.
  bool is_named = ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE) == 0;
  if (!is_named && errno == EINVAL) is_named = ::link(from.c_str(), to.c_str()) == 0 && ::unlink(from.c_str()) == 0;
  if (is_named) return Ok{};
  if (errno == EEXIST) return make_error(EEXIST, "{} is there, and was not before: choose another name, or remove it", to);
  return make_error(errno, "cannot make {}: {}", to, errno_text(errno));
}

CacheMark::CacheMark(uint64_t device, uint64_t inode) : name_(fmt::format("/volume-{:x}-{}", device, inode)) {}

bool CacheMark::is_there() const {
  const auto folders = store::usual_run_folders();
  return std::any_of(folders.begin(), folders.end(), [&](const std::string& folder) {
    // One that this process could not remove may have outlived a failed disk.
    if (::access(folder.c_str(), W_OK) != 0) return false;
    std::ifstream file(folder + name_);
    std::string boot;
    return std::getline(file, boot) && boot == store::this_boot_id();
  });
}

void CacheMark::set() const {
  for (const std::string& folder : store::usual_run_folders()) {
    if (!store::make_record_folder(folder)) continue;
    std::ofstream file(folder + name_, std::ios::trunc);
    if (file << store::this_boot_id() << '\n' << std::flush) return;
  }
}

void CacheMark::clear() const {
  for (const std::string& folder : store::usual_run_folders()) ::unlink((folder + name_).c_str());
}

Result<VolumeName> parse_volume_name(std::string_view text) {
  const size_t slash = text.rfind('/');
  const size_t at = text.rfind('@');
  const bool has_snapshot = at != std::string_view::npos && (slash == std::string_view::npos || at > slash);
  VolumeName name;
  name.folder = percent_decoded_loosely(text.substr(0, has_snapshot ? at : text.size()));
  if (name.folder.empty()) return make_error(EINVAL, "bad volume '{}': the path is missing", text);
  if (name.folder.find('\0') != std::string::npos) return make_error(EINVAL, "bad volume '{}': a path has no %00", text);
  while (name.folder.size() > 1 && name.folder.back() == '/') name.folder.pop_back();
  if (!has_snapshot) return name;
  name.snapshot = text.substr(at + 1);
  auto point = volume::parse_point_name(name.snapshot);
  if (!point) return make_error(EINVAL, "{} in '{}' (an @ of the path is written %40)", point.error().message, text);
  name.point = std::move(point).value();
  return name;
}

uint64_t MachineEnvironment::wall_ns() { return io::wall_us() * 1000; }

void MachineEnvironment::random_bytes(std::span<std::byte> into) {
  while (!into.empty()) {
    const Id id = random_id();
    const size_t part = std::min(into.size(), id.bytes.size());
    std::memcpy(into.data(), id.bytes.data(), part);
    into = into.subspan(part);
  }
}

Result<VolumeFile> open_volume_file(io::Backend& backend, const std::string& folder, const VolumeOpening& opening) {
  struct stat status;
  if (::stat(folder.c_str(), &status) != 0) {
    if (errno == ENOENT) return no_volume(folder, "there is nothing of that name");
    return make_error(errno, "cannot open {}: {}", folder, errno_text(errno));
  }
  if (!S_ISDIR(status.st_mode)) return no_volume(folder, "a volume is a folder");
  const std::string path = data_path(folder);
  io::UniqueFd fd(::open(path.c_str(), (opening.read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW));
  if (!fd.valid()) {
    if (errno == ENOENT) return no_volume(folder, "the folder has no file `data`");
    return make_error(errno, "cannot open {}: {}", path, errno_text(errno));
  }
  if (::fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode)) return no_volume(folder, "`data` is no regular file");
  store::FileOptions options = lock_options(folder, opening);
  io::UniqueFd wanted;
  options.on_wait = [&](const std::string& words) {
    if (!opening.read_only && opening.lock_wait_ms > 0) wanted = store::Wanted::set(path);
    if (opening.on_wait) opening.on_wait(words);
  };
  Status locked = store::lock_file(fd.get(), options);
  if (!locked) return std::move(locked).error();
  return VolumeFile{backend.make_file(std::move(fd), false), CacheMark(status.st_dev, status.st_ino)};
}

volume::VolumeOptions volume_options(const std::string& folder, bool read_only, const CacheMark& mark, SharedKey key) {
  volume::VolumeOptions options;
  options.name = folder;
  options.read_only = read_only;
  options.cache_survived = mark.is_there();
  options.key = std::move(key);
  options.on_poison = [mark] { mark.clear(); };
  options.overwrites_in_place = overwrites_in_place(folder);
  return options;
}

Status run_on_loop(io::Backend& backend, const std::function<coro::Task<void>(io::Loop&)>& task) {
  const io::SteadyClock clock;
  auto loop = backend.make_loop(clock);
  if (!loop) return std::move(loop).error();
  loop.value()->run(task(*loop.value()));
  return Ok{};
}

namespace {

coro::Task<void> create_on(io::Loop& loop, io::File& file, const volume::CreateOptions& options, Status& outcome) {
  MachineEnvironment environment;
  Status made = co_await volume::create_volume(loop, file, options, environment);
  outcome = std::move(made);
}

}  // namespace

Status create_volume_folder(io::Backend& backend, const std::string& folder, const volume::CreateOptions& options) {
  std::error_code unknown;
  const bool is_ours = ::mkdir(folder.c_str(), 0700) == 0;
  if (!is_ours) {
    if (errno != EEXIST) return make_error(errno, "cannot make {}: {}", folder, errno_text(errno));
    if (!std::filesystem::is_directory(folder, unknown))
      return make_error(EEXIST, "{} is there and no folder: choose another name", folder);
    if (!std::filesystem::is_empty(folder, unknown))
      return make_error(EEXIST, "{} is there and not empty: choose another name, or remove it", folder);
  }
  // Under its name only when it is whole: who is stopped before leaves a folder that is no volume.
  const std::string path = data_path(folder);
  const std::string unfinished = path + ".new";
  io::UniqueFd fd(::open(unfinished.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (!fd.valid()) {
    const int error = errno;
    if (is_ours) ::rmdir(folder.c_str());
    return make_error(error, "cannot make {}: {}", unfinished, errno_text(error));
  }
  const auto give_up = [&](Error error) {
    ::unlink(unfinished.c_str());
    // An empty folder that was there stays.
    if (is_ours) ::rmdir(folder.c_str());
    return error;
  };
  const auto file = backend.make_file(std::move(fd), false);
  Status outcome = Ok{};
  Status ran = run_on_loop(backend, [&](io::Loop& loop) { return create_on(loop, *file, options, outcome); });
  if (!ran) return give_up(std::move(ran).error());
  if (!outcome) return give_up(std::move(outcome).error());
  // Somebody may have put one there meanwhile.
  if (Status named = rename_to_new(unfinished, path); !named) return give_up(std::move(named).error());
  if (Status synced = sync_folder(folder); !synced) return synced;
  return sync_folder(std::filesystem::absolute(folder, unknown).parent_path().string());
}

// A volume that is open, with the thread that runs its checkpoints.
class VolumeHost : public std::enable_shared_from_this<VolumeHost> {
 public:
  static Result<std::shared_ptr<VolumeHost>> open(io::Backend& backend, const std::string& folder, const VolumeOpening& opening,
                                                  const HandOver& hand_over) {
    auto file = open_volume_file(backend, folder, opening);
    if (!file) return std::move(file).error();
    auto key = read_key(opening.keys);
    if (!key) return std::move(key).error();
    auto host = std::make_shared<VolumeHost>(folder);
    host->key_ = std::move(key).value();
    auto loop = backend.make_loop(host->clock_);
    if (!loop) return std::move(loop).error();
    host->loop_ = std::move(loop).value();
    host->memory_bytes_ = opening.memory_bytes;
    host->users_ = std::make_unique<ServedVolume>(*host->loop_, hand_over, [weak = host->weak_from_this()] { return weak.lock(); });
    Status begun = host->begin(std::move(file).value(), opening.read_only);
    if (!begun) return std::move(begun).error();
    return host;
  }
  explicit VolumeHost(std::string folder) : folder_(std::move(folder)), stop_(*this) {}
  VolumeHost(const VolumeHost&) = delete;
  VolumeHost& operator=(const VolumeHost&) = delete;
  ~VolumeHost() {
    if (!thread_.joinable()) return;
    loop_->post(stop_);
    thread_.join();
  }

  volume::Volume& volume() { return *volume_; }
  ServedVolume& users() { return *users_; }
  bool read_only() const { return read_only_; }

 private:
  struct Stop : io::Posted {
    explicit Stop(VolumeHost& of)
        : Posted([](coro::Runnable& self) { static_cast<Stop&>(self).host.stopped_.set(); }), host(of) {}
    VolumeHost& host;
  };

  Status begin(VolumeFile file, bool read_only) {
    read_only_ = read_only;
    thread_ = std::thread([this, given = std::move(file)]() mutable { loop_->run(main(std::move(given))); });
    std::unique_lock lock(mutex_);
    told_.wait(lock, [this] { return outcome_.has_value(); });
    return *outcome_;
  }

  void tell(Status outcome) {
    const std::lock_guard lock(mutex_);
    outcome_.emplace(std::move(outcome));
    told_.notify_all();
  }

  coro::Task<void> main(VolumeFile given) {
    const CacheMark mark = given.mark;
    volume::VolumeOptions options = volume_options(folder_, read_only_, mark, std::exchange(key_, nullptr));
    options.share_memory(memory_bytes_);
    auto opened = co_await volume::open_volume(*loop_, std::move(given.file), options, environment_);
    if (!opened.ok()) {
      tell(make_error(opened.error().code, "{}: {}", folder_, opened.error().message));
    } else {
      volume_ = std::move(opened).value();
      if (!volume_->info().read_only) mark.set();
    }
    if (volume_ != nullptr && !read_only_) {
      control_ = std::make_unique<VolumeControl>(*loop_, *volume_, folder_, users_.get());
      control_->start();
    }
    if (volume_ != nullptr) tell(Ok{});
    co_await stopped_.wait();
    users_->stop();
    if (control_ != nullptr) co_await control_->stop();
    control_.reset();
    if (volume_ == nullptr) co_return;
    const Status closed = co_await volume_->close();
    if (!read_only_) mark.clear();
    if (!closed.ok()) log_error("{}: it was not closed in order, and the next opening reads its log: {}", folder_, closed.error().message);
    volume_.reset();
  }

  const std::string folder_;
  const io::SteadyClock clock_;
  MachineEnvironment environment_;
  SharedKey key_;  // until it is open
  std::unique_ptr<io::Loop> loop_;
  std::unique_ptr<volume::Volume> volume_;
  std::unique_ptr<ServedVolume> users_;
  std::unique_ptr<VolumeControl> control_;
  bool read_only_ = false;
  uint64_t memory_bytes_ = 0;  // for the index
  std::thread thread_;
  coro::Event stopped_;
  Stop stop_;
  std::mutex mutex_;
  std::condition_variable told_;
  std::optional<Status> outcome_;
};

namespace {

// An export of a volume that is open already says the same key, or none if it has none.
Status may_open(const volume::Volume& of, const std::string& folder, const KeyFiles& keys) {
  if (!of.info().encrypted && keys.none()) return Ok{};
  auto key = read_key(keys);
  if (!key) return std::move(key).error();
  Status may = of.check_key(key.value().get());
  return may ? std::move(may) : Status(make_error(may.error().code, "{}: {}", folder, may.error().message));
}

// A device of a volume, which stays open as long as it is there.
class VolumeStore final : public store::Layer {
 public:
  VolumeStore(std::unique_ptr<block::Device> device, std::shared_ptr<VolumeHost> host, std::string branch, std::string user)
      : Layer(std::move(device)), host_(std::move(host)), branch_(std::move(branch)), user_(std::move(user)) {
    host_->users().add(branch_, user_);
  }
  // Devices end before their volume.
  ~VolumeStore() override {
    below_.reset();
    host_->users().remove(branch_, user_);
  }

 private:
  const std::shared_ptr<VolumeHost> host_;
  const std::string branch_;  // or a point's name: no branch has the same
  const std::string user_;
};

}  // namespace

Result<std::unique_ptr<block::Device>> OpenVolumes::open(io::Backend& backend, const VolumeName& name,
                                                         const VolumeOpening& opening) {
  // Held while it opens: a second export of the same folder waits for the first.
  const std::lock_guard lock(mutex_);
  struct stat status{};
  std::shared_ptr<VolumeHost> host;
  std::weak_ptr<VolumeHost>* place = nullptr;
  if (::stat(name.folder.c_str(), &status) == 0) {
    place = &hosts_[{status.st_dev, status.st_ino}];
    host = place->lock();
  }
  if (host == nullptr) {
    // For writing if that can be: an export that writes may come later.
    VolumeOpening wanted = opening;
    wanted.read_only = false;
    auto opened = VolumeHost::open(backend, name.folder, wanted, hand_over_);
    const bool reads_only = opening.read_only || !name.snapshot.empty();
    if (!opened.ok() && reads_only && (opened.error().code == EACCES || opened.error().code == EROFS)) {
      wanted.read_only = true;
      opened = VolumeHost::open(backend, name.folder, wanted, hand_over_);
    }
    if (!opened.ok()) return std::move(opened).error();
    host = std::move(opened).value();
    if (place != nullptr) *place = host;
  }
  if (Status may = may_open(host->volume(), name.folder, opening.keys); !may) return std::move(may).error();
  auto device = host->volume().open_device(name.point);
  if (!device.ok()) return std::move(device).error();
  return std::unique_ptr<block::Device>(std::make_unique<VolumeStore>(std::move(device).value(), std::move(host), name.snapshot, opening.user));
}

}  // namespace netblk::tools
