// SPDX-License-Identifier: GPL-2.0-only
#include "netblk_helper_told.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "base/log.h"
#include "io/fd.h"
#include "store/filter/layer.h"

namespace netblk::tools {

static_assert(std::atomic<uint64_t>::is_always_lock_free, "the counts are shared between processes");

void ToldFile::Unmap::operator()(attach::UblkTold* told) const { (void)::munmap(told, sizeof *told); }

// A new file has zeroes, which is what the counts begin with.
Result<ToldFile> ToldFile::open(const std::string& path) {
  const io::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!fd.valid() || ::ftruncate(fd.get(), sizeof(attach::UblkTold)) != 0)
    return make_error(errno, "cannot make {}: {}", path, errno_text(errno));
  void* const memory = ::mmap(nullptr, sizeof(attach::UblkTold), PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (memory == MAP_FAILED) return make_error(errno, "cannot map {}: {}", path, errno_text(errno));
  return ToldFile(static_cast<attach::UblkTold*>(memory));
}

// A flush, or a change that waits for one.
struct ToldDevice::Counted final : store::Copied {
  Counted(attach::UblkTold& counts, block::Request& of, block::Completion duty)
      : Copied(of, std::move(duty), [](Copied& self) { static_cast<Counted&>(self).ended(); }),
        told(counts),
        flush_mark(counts.acknowledged.load(std::memory_order_relaxed)) {}
  // Before anybody hears of it: whoever comes after a sudden end may count too many, and never too few.
  void ended() {
    if (error == 0 && command == block::Command::kFlush) {
      if (flush_mark > told.flushed.load(std::memory_order_relaxed)) told.flushed.store(flush_mark, std::memory_order_relaxed);
    } else if (error == 0) {
      told.acknowledged.fetch_add(1, std::memory_order_relaxed);
    }
    std::move(completion).finish(error);
  }
  attach::UblkTold& told;
  const uint64_t flush_mark;
};

void ToldDevice::refresh_size() {
  below_.refresh_size();
  set_size_bytes(below_.size_bytes());
}

void ToldDevice::start(block::Request& request, block::Completion completion) {
  const bool flushes = request.command == block::Command::kFlush || (request.modifies() && request.fua);
  if (flushes && lost_.load(std::memory_order_acquire)) return std::move(completion).finish(EIO);
  const bool counts = request.command == block::Command::kFlush || (request.modifies() && !request.fua);
  if (!counts) return forward(below_, request, std::move(completion));
  below_.submit(*new Counted(told_, request, std::move(completion)));  // it owns itself
}

void see_contents(Record& record, const std::optional<block::Generation>& generation) {
  if (generation) record.seen = {.store_uuid = id_text(generation->uuid), .generation = generation->counter, .lost = false, .lost_why = {}};
}

void note_contents(Record& record, const std::optional<block::Generation>& generation, const nlohmann::json& live) {
  SeenContents now = record.seen;
  if (live.value("lost", false) && !now.lost) {
    now.lost = true;
    now.lost_why = live.value("lost_why", "");
  }
  if (generation) now.generation = generation->counter;
  if (now == record.seen) return;
  record.seen = std::move(now);
  (void)write_record(record);
}

Status judge_successor(Record& record, const std::optional<block::Generation>& generation, uint64_t unflushed) {
  SeenContents& seen = record.seen;
  if (!generation) {
    // DESIGN 4.2: what once was netblk/2 does not become netblk/1, which could not tell of a loss.
    if (!seen.store_uuid.empty())
      return make_error(EIO, "{} does not tell its store now, and had told it ({}): does it speak netblk/2?", record.server,
                        seen.store_uuid);
    return Ok{};
  }
  if (id_text(generation->uuid) != seen.store_uuid)
    return make_error(EIO, "{} is another store now ({}, was {}); detach {} and attach it anew", record.server,
                      id_text(generation->uuid), seen.store_uuid.empty() ? "not told" : seen.store_uuid, record.device);
  if (generation->counter != seen.generation && unflushed != 0)
    set_lost(record, fmt::format("the server lost its memory of up to {} acknowledged changes (generation {}, was {})", unflushed,
                                 generation->counter, seen.generation));
  seen.generation = generation->counter;
  return write_record(record);
}

void set_lost(Record& record, std::string why) {
  log_error("{}: LOST: {}; flushes end with EIO until the loss is acknowledged", record.device, why);
  record.seen.lost = true;
  record.seen.lost_why = std::move(why);
}

}  // namespace netblk::tools
