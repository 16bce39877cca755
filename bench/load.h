// SPDX-License-Identifier: GPL-2.0-only
// One pipelined netblk/1 connection of the load generator.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "common.h"

namespace bench {

enum class Mix { kReads, kWrites, kBoth };

struct LoadOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 0;
  unsigned connections = 1;
  unsigned threads = 1;
  unsigned depth = 1;
  uint32_t block_bytes = 4096;
  Mix mix = Mix::kReads;
  unsigned read_percent = 50;
  uint64_t span_bytes = 64u << 20;
  bool sequential = false;
  double seconds = 2;
  double warmup_seconds = 0.2;
  bool fill = false;
  bool check = false;
  unsigned idle = 0;
  uint32_t idle_block_bytes = 4096;
  bool idle_writes = false;
  unsigned idle_burst = 1;
  pid_t server_pid = 0;
};

// A blocking, TCP_NODELAY connection; ends the program when there is none.
int connect_to(const LoadOptions& options);

// Blocks whose content follows from their place: every sector begins with its own number and a constant.
void put_pattern(uint8_t* block, uint64_t offset, uint32_t length);
bool has_pattern(const uint8_t* block, uint64_t offset, uint32_t length);

struct Totals {
  uint64_t sent = 0;
  uint64_t answered = 0;
  uint64_t errors = 0;      // status 0x01, a lost connection, or a wrong content
  uint64_t miscompares = 0; // the wrong contents among them
  uint64_t checked = 0;     // READs whose content was compared
};

class Connection {
 public:
  Connection(const LoadOptions& options, int fd, uint64_t seed);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  int fd() const { return fd_; }
  bool open() const { return fd_ >= 0; }
  bool unsent() const { return sent_slots_ != issued_ || sent_bytes_ != 0; }
  uint64_t outstanding() const { return issued_ - answered_; }
  const Totals& totals() const { return totals_; }

  // Fills the pipeline; `now` is the send time that latencies count from.
  void issue(uint64_t now);
  // Sends what the socket takes now. False: the connection is lost and closed.
  bool flush();
  // One recv; `latency` is null outside the measured window. Every reply is followed by a new request if `go_on`.
  // False: the connection is lost and closed.
  bool receive(int flags, bool go_on, Histogram* latency);
  // DISCONNECT, then close.
  void finish();

 private:
  struct Slot {
    uint64_t sent_ns;
    uint64_t offset;
    bool read;
  };

  void lose();
  bool parse(const uint8_t* from, size_t bytes, uint64_t now, bool go_on, Histogram* latency);
  void complete(uint64_t now, bool go_on, Histogram* latency);
  uint8_t* header(uint64_t number) { return headers_.data() + (number % options_.depth) * kRequestBytes; }
  uint8_t* payload(uint64_t number);

  const LoadOptions& options_;
  int fd_;
  Random random_;
  uint64_t next_block_ = 0;
  std::vector<Slot> slots_;
  std::vector<uint8_t> headers_;  // packed, so that successive READs go out as one piece
  std::vector<uint8_t> payloads_; // one block, or with --check one for each slot
  std::vector<uint8_t> assembly_; // --check: the READ reply being received
  std::vector<uint8_t> input_;
  // Request numbers: [answered_, sent_slots_) await replies, [sent_slots_, issued_) await sending.
  uint64_t issued_ = 0;
  uint64_t sent_slots_ = 0;
  uint64_t answered_ = 0;
  size_t sent_bytes_ = 0;      // of request sent_slots_
  size_t reply_data_left_ = 0; // of request answered_, once its status has come
  Totals totals_;
};

}  // namespace bench
