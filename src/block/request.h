// SPDX-License-Identifier: GPL-2.0-only
// Request: one block request in flight, and Completion: the duty to end it exactly once (DESIGN law 4).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "base/check.h"
#include "coro/mailbox.h"
#include "coro/op.h"

namespace netblk::block {

enum class Command : uint8_t { kRead, kWrite, kFlush, kTrim, kWriteZeroes, kCache, kBlockStatus };

// A piece of what kBlockStatus tells. hole: the storage keeps no space for it. zero: it reads as zeroes. Neither is a
// promise that it is not: an extent without both says nothing.
struct Extent {
  uint64_t length = 0;
  bool hole = false;
  bool zero = false;
  bool changed = false;  // where Request::since is set: it may be another than it was then
  bool operator==(const Extent&) const = default;
};

class Device;
struct Request;

// A moment that a device can compare its contents with (Device::base()). It stays known for as long as somebody holds this.
class Base {
 public:
  Base(const Base&) = delete;
  Base& operator=(const Base&) = delete;
  virtual ~Base() = default;

 protected:
  Base() = default;
};

// Whoever holds it ends the request: by finish(), once. Dropping it unfinished aborts.
class [[nodiscard]] Completion {
 public:
  Completion() = default;
  Completion(Completion&& other) noexcept : request_(std::exchange(other.request_, nullptr)) {}
  Completion& operator=(Completion&& other) noexcept {
    NETBLK_CHECK(request_ == nullptr, "a request is dropped without an answer");
    request_ = std::exchange(other.request_, nullptr);
    return *this;
  }
  ~Completion() { NETBLK_CHECK(request_ == nullptr, "a request is dropped without an answer"); }

  // On the thread of the request's loop. error: 0 or a positive errno value.
  void finish(int error) &&;

 private:
  friend class Device;
  explicit Completion(Request& request) : request_(&request) {}
  Request* request_ = nullptr;
};

// A slot that the caller owns and keeps, neither moved nor copied, until `on_done` was called. `on_done` is called on
// the thread of `loop`, perhaps from inside Device::submit(); the slot may be used again from there on.
struct Request {
  using OnDone = void (*)(Request&);

  explicit Request(OnDone done) : on_done(done) {}
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;

  OnDone on_done;

  // loop: the caller's own, which a store that does input and output knows as an io::Loop.
  // What the caller asks. Bytes; data: `length` bytes for kRead and kWrite, owned by the caller, stable until the end.
  coro::Mailbox* loop = nullptr;
  Command command = Command::kRead;
  bool fua = false;  // kWrite, kTrim, kWriteZeroes: durable before the end (Force Unit Access)
  // kRead, of a device that reads in place: `data` is null, and points to memory of the device's at the end. It stays for
  // as long as the device is there, and later changes show in it: no checksum that is made of it lasts.
  bool in_place = false;
  bool keep_allocated = false;  // kWriteZeroes: the space must not be given back
  bool fast_zero = false;  // kWriteZeroes: EOPNOTSUPP, with nothing changed, where it would be no faster than a write
  uint64_t offset = 0;
  uint64_t length = 0;
  std::byte* data = nullptr;
  // Set by the caller when the one who asked is known to be gone: what has not reached the store then must not
  // (DESIGN 4.1). Null: never.
  const std::atomic<bool>* abandoned = nullptr;
  // kBlockStatus: where the answer goes, owned by the caller, and how many extents it takes (1 or more). The answer
  // begins at `offset`, has one extent at least, and may end before the range does, never after; neighbours differ. Each
  // extent was true at some moment between submit() and the end.
  std::vector<Extent>* extents = nullptr;
  uint32_t max_extents = 0;
  // kBlockStatus: the answer says what has changed since then, too; of what has not it says no more. Of the same device.
  const Base* since = nullptr;

  // The answer: 0 or a positive errno value.
  int error = 0;

  // The device it was submitted to, which counts it at its end.
  Device* device = nullptr;

  // Memory for the device that holds the request; nobody else touches it.
  struct Held {
    struct Io : coro::Op {
      Io() : Op(nullptr) {}
      Request* request = nullptr;
    };
    struct Hop : coro::Posted {
      Hop() : Posted([](coro::Runnable& self) {
          auto& arrived = static_cast<Hop&>(self);
          arrived.action(*arrived.request);
        }) {}
      // Calls `then` with the request on the thread of its loop, from the ready queue.
      void send(Request& to, OnDone then) {
        request = &to;
        action = then;
        to.loop->post(*this);
      }
      Request* request = nullptr;
      OnDone action = nullptr;
    };
    Completion completion;
    Device* owner = nullptr;  // the device that holds it: `device`, or one below a filter
    Io op;
    Hop hop;
    Request* next = nullptr;
    uint64_t progress = 0;
    uint64_t since_ns = 0;  // when the device took it, by the clock of the device's loop
    uint64_t shift = 0;  // what filters have added to `offset`; taken off again at the end
    uint8_t phase = 0;
  };
  Held held;

  bool is_abandoned() const { return abandoned != nullptr && abandoned->load(std::memory_order_acquire); }
  bool modifies() const {
    return command == Command::kWrite || command == Command::kTrim || command == Command::kWriteZeroes;
  }

  // For devices that answer kBlockStatus: the next extent, joined with the one before where they are alike. False: the
  // answer is full, and ends before this one.
  bool add_extent(uint64_t bytes, bool hole, bool zero, bool changed = false) {
    const Extent next{.length = bytes, .hole = hole, .zero = zero, .changed = changed};
    if (!extents->empty()) {
      Extent& last = extents->back();
      if (last.hole == hole && last.zero == zero && last.changed == changed) {
        last.length += bytes;
        return true;
      }
    }
    if (extents->size() >= max_extents) return false;
    extents->push_back(next);
    return true;
  }
};

}  // namespace netblk::block
