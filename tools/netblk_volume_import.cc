// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_volume_import.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "backend.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/parse.h"
#include "command_line.h"
#include "copy_engine.h"
#include "copy_ends.h"
#include "interrupt.h"
#include "netblk_volume_words.h"
#include "progress.h"

namespace netblk::tools {
namespace {

namespace volume = store::volume;

// It is made beside its own name, which it gets when all is in it.
std::string unfinished_name(const VolumeName& name) { return name.folder + ".import"; }

Status is_free(const VolumeName& name) {
  std::error_code unknown;
  for (const std::string& path : {name.folder, unfinished_name(name)}) {
    if (!std::filesystem::exists(std::filesystem::symlink_status(path, unknown))) continue;
    if (path == name.folder && std::filesystem::is_directory(path, unknown) && std::filesystem::is_empty(path, unknown)) continue;
    if (path == name.folder) return make_error(EEXIST, "{} is there and not empty: choose another name, or remove it", path);
    return make_error(EEXIST, "{} is left from an import that was stopped, or one is under way: remove it in the first case", path);
  }
  return Ok{};
}

class Importing {
 public:
  Importing(io::Backend& backend, io::Loop& loop, const VolumeName& name, std::string file, std::optional<uint64_t> size_bytes,
            SharedKey key)
      : backend_(backend), loop_(loop), folder_(unfinished_name(name)), file_(std::move(file)), size_bytes_(size_bytes), key_(std::move(key)) {}

  // One after the other; a step that fails has an outcome, and is the last but for close().
  coro::Task<void> open();
  Result<uint64_t> size() const;
  coro::Task<void> fill();
  coro::Task<void> close() { co_await source_.close(); }
  const Status& outcome() const { return outcome_; }

 private:
  coro::Task<Status> open_and_fill();
  coro::Task<Status> copy_into(volume::Volume& into);

  io::Backend& backend_;
  io::Loop& loop_;
  const std::string folder_;
  const std::string file_;
  const std::optional<uint64_t> size_bytes_;
  const SharedKey key_;
  CopyEnd source_;
  Status outcome_ = Ok{};
};

coro::Task<void> Importing::open() {
  auto source = co_await open_source(backend_, loop_, file_, EndOptions());
  if (source) {
    source_ = std::move(source).value();
  } else {
    outcome_ = std::move(source).error();
  }
}

Result<uint64_t> Importing::size() const {
  if (!source_.size_bytes && !size_bytes_)
    return make_error(EINVAL, "{} does not tell how much will come: say --size", source_.name);
  const uint64_t there = (source_.size_bytes.value_or(0) + limits::kSectorBytes - 1) / limits::kSectorBytes * limits::kSectorBytes;
  const uint64_t wanted = size_bytes_.value_or(there);
  if (wanted < there) return make_error(EFBIG, "{} has {} bytes, and --size {} is less", source_.name, *source_.size_bytes, wanted);
  if (wanted == 0) return make_error(EINVAL, "{} is empty: a disk has at least {} bytes", source_.name, limits::kSectorBytes);
  return wanted;
}

coro::Task<Status> Importing::copy_into(volume::Volume& into) {
  auto device = into.open_device();
  if (!device) co_return std::move(device).error();
  CopyPlan plan;
  plan.source = source_.as_source();
  plan.target.name = folder_;
  plan.target.device = device.value().get();
  plan.target.block_bytes = limits::kSectorBytes;
  plan.target.fresh = true;
  Progress progress(source_.size_bytes, 0);
  plan.on_tick = [&progress](uint64_t done_bytes) {
    progress.show(done_bytes, "");
    return interrupted();
  };
  const std::string version = source_.version();
  Copy copy(loop_, std::move(plan));
  Status copied = co_await copy.run();
  if (copied && source_.version() != version)
    copied = make_error(EAGAIN, "{} was changed while it was read, so that the volume would be a mixture: import it when nobody writes to it",
                        source_.name);
  co_return copied;
}

coro::Task<Status> Importing::open_and_fill() {
  auto file = open_volume_file(backend_, folder_, {.read_only = false, .keys = {}, .on_wait = {}, .stop_waiting = {}});
  if (!file) co_return std::move(file).error();
  MachineEnvironment environment;
  const volume::VolumeOptions how = volume_options(folder_, false, file.value().mark, key_);
  auto opened = co_await volume::open_volume(loop_, std::move(file.value().file), how, environment);
  if (!opened) co_return std::move(opened).error();
  const auto on = std::move(opened).value();
  Status status = co_await copy_into(*on);
  Status closed = co_await on->close();
  if (status) status = std::move(closed);
  co_return status;
}

coro::Task<void> Importing::fill() {
  Status status = co_await open_and_fill();
  outcome_ = std::move(status);
}

Status name_it(const VolumeName& name) {
  if (::rename(unfinished_name(name).c_str(), name.folder.c_str()) != 0)
    return make_error(errno, "cannot rename {} to {}: {}", unfinished_name(name), name.folder, errno_text(errno));
  std::error_code unknown;
  return sync_folder(std::filesystem::absolute(name.folder, unknown).parent_path().string());
}

}  // namespace

int import_volume(const VolumeName& name, const VolumeArguments& arguments) {
  std::optional<uint64_t> size_bytes;
  if (!arguments.size.empty()) {
    size_bytes = parse_size(arguments.size);
    if (!size_bytes || *size_bytes == 0 || *size_bytes % limits::kSectorBytes != 0)
      return fail(kMalformed, fmt::format("bad --size '{}': use bytes or K, M, G, T, a multiple of 512", arguments.size));
  }
  if (!arguments.encrypt && !arguments.keys.none()) return fail(kMalformed, "a key is for a volume that is encrypted: write --encrypt too");
  auto options = creation_options(name, arguments);
  if (!options) return fail(exit_status(options.error()), options.error().message);
  catch_interrupts();
  // What goes wrong on the way is told at the end, in one line.
  set_log_level(LogLevel::kOff);
  Status status = is_free(name);
  if (!status) return fail(kFailed, status.error().message);
  auto backend = make_backend();
  if (!backend) return fail(kFailed, backend.error().message);
  const io::SteadyClock clock;
  auto loop = backend.value()->make_loop(clock);
  if (!loop) return fail(kFailed, loop.error().message);
  Importing importing(*backend.value(), *loop.value(), name, arguments.file, size_bytes, options.value().key);
  loop.value()->run(importing.open());
  if (!importing.outcome()) return fail(kFailed, importing.outcome().error().message);
  const auto bytes = importing.size();
  if (bytes) options.value().size_bytes = bytes.value();
  status = bytes ? create_volume_folder(*backend.value(), unfinished_name(name), options.value()) : Status(bytes.error());
  const bool made = status.ok();
  if (made) {
    loop.value()->run(importing.fill());
    status = importing.outcome();
  }
  loop.value()->run(importing.close());
  if (status) status = name_it(name);
  if (status) return 0;
  std::error_code unknown;
  if (made) std::filesystem::remove_all(unfinished_name(name), unknown);
  return fail(kFailed, status.error().message);
}

}  // namespace netblk::tools
