// SPDX-License-Identifier: GPL-2.0-only
// What the helper processes of `netblk attach` have in common: how they are started, leave their caller, and answer.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "base/result.h"
#include "io/fd.h"
#include "netblk_state.h"

namespace netblk::tools {

// Tells the caller, who waits for it: the node, or why there is none. Once; then nobody waits any more.
class HelperParent {
 public:
  explicit HelperParent(io::UniqueFd pipe) : pipe_(std::move(pipe)) {}

  int fd() const { return pipe_.get(); }
  // One line for the user's eyes, before the end.
  void note(const std::string& words) { (void)tell("#" + words + "\n"); }
  // False: nobody has heard it.
  bool started(const std::string& node);
  void failed(const Error& error);

 private:
  bool tell(const std::string& line);
  io::UniqueFd pipe_;
};

// How long a helper may take to make its disk; 0: as long as what it does may take. Of the whole process, which runs one
// command.
void set_start_patience(uint64_t milliseconds);

struct HelperStart {
  std::function<int(HelperParent&)> run;  // the child's whole life; its result is the exit status
  std::string source;
  AttachOptions given;
  // Asked when it has told nothing in time, by its process. False: the kernel could not get over its sudden end; it is left
  // alone, and ends by itself since nobody waits for it any more.
  std::function<bool(int64_t pid)> may_be_killed = [](int64_t) { return true; };
  // Ends what it may still wait for when it was killed.
  std::function<void(int64_t pid)> let_go = [](int64_t) {};
};

// Forks, and waits until the child has told the node. ETIME: it has told nothing in time, and was killed.
Result<std::string> start_helper(const HelperStart& start);

// systemd passes over a process with this sign when it ends all others at shutdown ("root storage daemons"): what is still
// mounted then is unmounted after that, and needs its disk.
void outlive_shutdown();

// Called in the child: a session of its own, nothing of the caller's open but the pipe.
void leave_caller(const HelperParent& parent);

// The same for a process that tells nobody anything: of the caller's only that descriptor stays open.
void leave_caller_with(int kept);

// The standard error goes to the file, the others nowhere.
Status log_to(const std::string& file);

// A process that a disk depends on: memory reclaim must not wait for itself, and must not pick it as a victim. Before it
// starts threads.
void become_io_path();
// Nor take its pages, those to come included.
void lock_memory();

// SIGTERM, SIGINT and SIGHUP are read from the descriptor from now on.
Result<io::UniqueFd> catch_signals();

// An eventfd. Thread-safe.
void raise_event(int event);

// /run/netblk/N/control
class ControlSocket {
 public:
  static Result<ControlSocket> open(const std::string& path);

  int fd() const { return socket_.get(); }
  // Takes one word (empty: the peer sent none) and sends the answer to it.
  void answer(const std::function<std::string(const std::string& word)>& answer_to) const;

 private:
  explicit ControlSocket(io::UniqueFd socket) : socket_(std::move(socket)) {}
  io::UniqueFd socket_;
};

}  // namespace netblk::tools
