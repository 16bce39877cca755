// SPDX-License-Identifier: GPL-2.0-only
// The network between simulated hosts: connections of two byte streams each, which are slow, stall, die in one
// direction or both, are reset, and are accepted late, twice or not at all. Within one stream bytes are never lost,
// reordered or changed, unless the plan mangles them on purpose.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "coro/task.h"
#include "io/dialer.h"
#include "io/stream.h"
#include "sim/world.h"

namespace netblk::sim {

class Network;

// Sees what each side hands to its stream, in order, before it is on its way. End 0 is who dialled.
class Tap {
 public:
  virtual ~Tap() = default;
  virtual void sent(int end, std::span<const std::byte> bytes) = 0;
  // So many of them have come to the other end's program.
  virtual void read(int end, size_t bytes) = 0;
};

// How one run's network behaves.
struct NetworkPlan {
  uint64_t delay_low_us = 20;
  uint64_t delay_high_us = 2'000;
  uint64_t buffer_low_bytes = 8u << 10;
  uint64_t buffer_high_bytes = 256u << 10;
  uint64_t segment_bytes = 16u << 10;
  // Of a hundred dials.
  uint64_t refused = 0, lost = 0, late = 0, accepted_late = 0, duplicated = 0;
  // One in so many segments; 0: never.
  uint64_t flip_one_in = 0;
  // What happens to that one: a bit flips; or also bytes are cut out, doubled, or put in another order.
  bool splices = false;
  // Of a hundred ends of a connection that are resets, the peer never hears.
  uint64_t silent_resets = 0;
  // A host whose peer acknowledges nothing gives its connection up after so long.
  uint64_t keepalive_low_us = 20'000'000;
  uint64_t keepalive_high_us = 60'000'000;
};

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(Network& network, uint64_t number);

  uint64_t number() const { return number_; }
  Tap* tap() const { return tap_.get(); }

  // Faults. `end`: whose bytes no longer arrive, though nobody is told.
  void kill_direction(int end);
  void stall(int end, uint64_t until_us);
  // The host of `end` goes: its process dies (the peer hears of it), or it loses power (the peer does not).
  void end_process(int end, bool peer_hears);
  void host_is_back(int end);  // after a loss of power: what still comes is answered by a reset
  void reset_both();

  bool closed() const { return ends_[0].closed && ends_[1].closed; }
  // Neither side knows of an end.
  bool open() const { return !ends_[0].closed && !ends_[1].closed && ends_[0].error == 0 && ends_[1].error == 0; }

 private:
  friend class SimStream;
  friend class Network;

  enum class Mark : uint8_t { kData, kEnd, kReset };
  struct Segment {
    uint64_t arrive_us;
    Mark mark;
    std::vector<std::byte> bytes;
  };
  // Bytes from one end to the other.
  struct Pipe {
    std::deque<Segment> flying;
    size_t flying_bytes = 0;
    std::vector<std::byte> arrived;  // not read yet, from `read_at`
    size_t read_at = 0;
    size_t capacity = 0;
    uint64_t stalled_until_us = 0;
    uint64_t last_arrival_us = 0;
    uint64_t base_delay_us = 0;
    bool dead = false;
    bool ended = false;  // the end of the stream has arrived
    bool end_sent = false;
    size_t unread() const { return arrived.size() - read_at; }
    size_t room() const { return capacity - std::min(capacity, flying_bytes + unread()); }
  };
  struct End {
    io::Op* receiver = nullptr;
    std::span<std::byte> receive_into;
    io::Op* sender = nullptr;
    std::span<const iovec> send_parts;
    bool send_started = false;  // the host is copying: it looks at the parts when it is done
    int error = 0;              // of the connection, as this side's system knows it: a positive errno value
    bool closed = false;        // this side has no stream (any more)
    bool stream_made = false;
    bool reset_sent = false;
    bool lost_power = false;
    bool read_closed = false;
    bool write_closed = false;
    uint32_t in_flight = 0;
  };

  Pipe& from(int end) { return pipes_[end]; }
  Pipe& to(int end) { return pipes_[1 - end]; }
  bool recv(int end, io::Op& op, std::span<std::byte> into);
  int32_t recv_now(int end, std::span<std::byte> into);
  bool send(int end, io::Op& op, std::span<const iovec> parts);
  int32_t take(int end, std::span<std::byte> into);
  int32_t put(int end, std::span<const iovec> parts);
  bool readable(int end);
  int32_t read_result(int end, std::span<std::byte> into);
  void wake_receiver(int end);
  void wake_sender(int end);
  void mangle(std::vector<std::byte>& bytes);
  void post(int end, Mark mark, std::vector<std::byte> bytes);
  void arrive(int end);
  void schedule_arrival(int end);
  void broken(int end, int error);
  void shutdown_read(int end);
  void shutdown_write(int end);
  void abort(int end);
  void close(int end);

  Network& network_;
  World& world_;
  const uint64_t number_;
  Pipe pipes_[2];
  End ends_[2];
  std::unique_ptr<Tap> tap_;
  std::function<void(std::span<const std::byte>)> copy_hello_;  // what the dialler sent before it heard anything
};

class SimStream final : public io::Stream {
 public:
  SimStream(std::shared_ptr<Connection> connection, int end) : connection_(std::move(connection)), end_(end) {
    connection_->ends_[end_].stream_made = true;
  }
  ~SimStream() override { connection_->close(end_); }

  bool recv(io::Op& op, std::span<std::byte> into) override { return connection_->recv(end_, op, into); }
  int32_t recv_now(std::span<std::byte> into) override { return connection_->recv_now(end_, into); }
  bool send(io::Op& op, std::span<const iovec> parts) override { return connection_->send(end_, op, parts); }
  void shutdown() override;
  void shutdown_read() override { connection_->shutdown_read(end_); }
  void shutdown_write() override { connection_->shutdown_write(end_); }
  size_t unsent_bytes() const override { return connection_->from(end_).flying_bytes; }
  void abort() override { connection_->abort(end_); }

 private:
  std::shared_ptr<Connection> connection_;
  const int end_;
};

// Where a server listens. Null accept: nobody does, and a dial is refused; not `up`: the host is off, and a dial is lost.
struct Host {
  bool up = true;
  std::function<void(std::unique_ptr<io::Stream>, std::shared_ptr<Connection>)> accept;
};

class Network {
 public:
  Network(World& world, const NetworkPlan& plan) : world_(world), plan_(plan) {}
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  World& world() { return world_; }
  NetworkPlan& plan() { return plan_; }

  // Called for each new connection, before its first byte: who looks at it.
  using MakeTap = std::function<std::unique_ptr<Tap>(uint64_t dialler, bool duplicate)>;
  void set_tap(MakeTap make_tap) { make_tap_ = std::move(make_tap); }

  // Nothing passes until then, in either direction; dials during it are lost or wait.
  void partition(uint64_t until_us);
  bool partitioned() const { return world_.now_us() < partitioned_until_us_; }

  // Those whose two ends do not know of an end yet.
  std::vector<std::shared_ptr<Connection>> open_connections();
  void host_is_back();
  void forget_closed();
  size_t live_connections();

  coro::Task<Result<std::unique_ptr<io::Stream>>> dial(io::Loop& loop, Host& host, uint64_t dialler, const bool& process_lives,
                                                       std::vector<std::weak_ptr<Connection>>& of_process,
                                                       uint64_t give_up_at_ms);

 private:
  friend class Connection;
  std::shared_ptr<Connection> make_connection(uint64_t dialler, bool duplicate);
  void accept_at(uint64_t at_us, Host& host, std::shared_ptr<Connection> connection);
  void send_duplicate(Host& host, uint64_t dialler, const std::shared_ptr<std::vector<std::byte>>& hello);

  World& world_;
  NetworkPlan plan_;
  MakeTap make_tap_;
  uint64_t next_number_ = 1;
  uint64_t partitioned_until_us_ = 0;
  std::vector<std::weak_ptr<Connection>> connections_;
};

// The dialler of one client process.
class SimDialer final : public io::Dialer {
 public:
  SimDialer(Network& network, Host& host, uint64_t process) : network_(network), host_(host), process_(process) {}

  coro::Task<Result<std::unique_ptr<io::Stream>>> dial(io::Loop& loop, uint64_t give_up_at_ms) override {
    return network_.dial(loop, host_, process_, lives_, connections_, give_up_at_ms);
  }
  std::string peer() const override { return "simulated"; }

  // The process dies: dials under way fail, connections end, and nobody hears of it if the power was lost.
  void end_process(bool peer_hears);

 private:
  Network& network_;
  Host& host_;
  const uint64_t process_;
  bool lives_ = true;
  std::vector<std::weak_ptr<Connection>> connections_;
};

}  // namespace netblk::sim
