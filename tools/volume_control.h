// SPDX-License-Identifier: GPL-2.0-only
// VolumeControl: the socket `control` in a volume's folder, by which `netblk volume` asks the process that has it open
// (docs/volumes.md, "The socket").
#pragma once

#include <sys/types.h>

#include <list>
#include <memory>
#include <string>

#include "base/result.h"
#include "coro/scope.h"
#include "coro/task.h"
#include "io/fd.h"
#include "io/loop.h"
#include "store/volume/volume.h"
#include "volume_command.h"

namespace netblk::tools {

// All of it on the loop of the volume's opening.
class VolumeControl {
 public:
  // users: none, or stop()ped with it.
  VolumeControl(io::Loop& loop, store::volume::Volume& volume, std::string folder, VolumeUsers* users = nullptr);
  VolumeControl(const VolumeControl&) = delete;
  VolumeControl& operator=(const VolumeControl&) = delete;
  ~VolumeControl();

  // Whoever holds the volume's lock: a socket that is there is a dead process's, and is replaced. Where none can be made the
  // log says so, and nobody is answered.
  void start();
  // Also of whoever has the volume open for a command of his own.
  Running& running() { return running_; }
  // What runs is asked to end, and is answered; nothing new begins.
  coro::Task<void> stop();

 private:
  struct Caller;

  Status listen();
  static coro::Task<void> accept_all(VolumeControl& control);
  static coro::Task<void> answer(VolumeControl& control, Caller& caller);
  coro::Task<void> converse(Caller& caller);
  coro::Task<void> obey(Caller& caller, const VolumeCommand& command, const Json& question);
  bool make_room();
  void say_busy(int fd) const;

  io::Loop& loop_;
  store::volume::Volume& volume_;
  const std::string folder_;
  VolumeUsers* const users_;
  io::UniqueFd folder_fd_;
  dev_t device_ = 0;  // of the socket's file
  ino_t inode_ = 0;
  std::unique_ptr<io::Listener> listener_;
  std::list<std::unique_ptr<Caller>> callers_;
  bool stopping_ = false;
  Running running_;
  coro::Scope scope_;
};

}  // namespace netblk::tools
