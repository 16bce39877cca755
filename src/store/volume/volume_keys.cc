// SPDX-License-Identifier: GPL-2.0-only
// The key slots of a volume that is open.
#include <cerrno>
#include <system_error>
#include <thread>
#include <utility>

#include "coro/event.h"
#include "store/volume/keys.h"
#include "store/volume/open_volume.h"

namespace netblk::store::volume {
namespace {

// A file's key is made of it at once.
bool is_slow(const UserKey& key) { return key.kind == UserKey::Kind::kPassphrase; }

// What takes half a second and 128 MiB for every slot is not for the loop that runs the checkpoints.
coro::Task<void> off_the_loop(io::Loop& loop, const std::function<void()>& work) {
  struct Done : coro::Posted {
    Done() : Posted([](coro::Runnable& self) { static_cast<Done&>(self).event.set(); }) {}
    coro::Event event;
  } done;
  std::thread thread;
  try {
    thread = std::thread([&] {
      work();
      loop.post(done);
    });
  } catch (const std::system_error&) {
    work();
    co_return;
  }
  co_await done.event.wait();
  thread.join();
}

}  // namespace

Status OpenVolume::check_key(const UserKey* key) const {
  const Result<Unlocked> unlocked = open_slots(core_.sums.encrypted(), core_.slots.current().key_slots, key);
  return unlocked.ok() ? Status(Ok{}) : Status(unlocked.error());
}

coro::Task<Status> OpenVolume::change_keys(const UserKey& known, bool takes_long, const KeyChange& change) {
  if (core_.cipher == nullptr) co_return make_error(EOPNOTSUPP, "{} is not encrypted, and has no keys", core_.options.name);
  if (!writable()) co_return make_error(EROFS, "{} is open read-only", core_.options.name);
  // The slots that are written are those that were read, and a change of somebody else's would come between.
  if (changes_keys_) co_return make_error(EBUSY, "the keys of {} are being changed by another command: try again when it has ended", core_.options.name);
  changes_keys_ = true;
  KeySlots slots = core_.slots.current().key_slots;
  Status changed = Ok{};
  const std::function<void()> work = [&] {
    const Result<Unlocked> unlocked = unlock(slots, known);
    const RandomBytes random = [this](std::span<std::byte> into) { core_.environment.random_bytes(into); };
    changed = unlocked.ok() ? change(slots, unlocked.value(), random) : Status(unlocked.error());
  };
  if (takes_long) {
    co_await off_the_loop(loop_, work);
  } else {
    work();
  }
  if (changed) changed = co_await background_.write_key_slots(slots);
  changes_keys_ = false;
  co_return changed;
}

coro::Task<Result<uint32_t>> OpenVolume::add_key(const UserKey& known, const UserKey& another) {
  uint32_t number = 0;
  const bool takes_long = is_slow(known) || is_slow(another);
  const uint64_t now_ns = core_.environment.wall_ns();
  const KeyChange change = [&](KeySlots& slots, const Unlocked& by, const RandomBytes& random) -> Status {
    auto added = volume::add_key(slots, by.volume_key, another, now_ns, random);
    if (!added.ok()) return std::move(added).error();
    number = added.value();
    return Ok{};
  };
  Status done = co_await change_keys(known, takes_long, change);
  if (!done) co_return std::move(done).error();
  co_return number;
}

coro::Task<Result<uint32_t>> OpenVolume::change_key(const UserKey& known, const UserKey& another) {
  uint32_t number = 0;
  const bool takes_long = is_slow(known) || is_slow(another);
  const uint64_t now_ns = core_.environment.wall_ns();
  const KeyChange change = [&](KeySlots& slots, const Unlocked& by, const RandomBytes& random) {
    number = by.slot;
    return replace_key(slots, by.slot, by.volume_key, another, now_ns, random);
  };
  Status done = co_await change_keys(known, takes_long, change);
  if (!done) co_return std::move(done).error();
  co_return number;
}

coro::Task<Status> OpenVolume::remove_key(const UserKey& known, uint32_t slot) {
  const KeyChange change = [slot](KeySlots& slots, const Unlocked&, const RandomBytes&) { return volume::remove_key(slots, slot); };
  Status done = co_await change_keys(known, is_slow(known), change);
  co_return done;
}

}  // namespace netblk::store::volume
