// SPDX-License-Identifier: GPL-2.0-only
// One line for each request (store/filter/trace_line.h).
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <map>
#include <mutex>
#include <utility>

#include "base/log.h"
#include "io/clock.h"
#include "io/fd.h"
#include "store/filter/filter.h"
#include "store/filter/layer.h"
#include "store/filter/trace_line.h"

namespace netblk::store {
namespace {

// A copy of a request has no memory to point to.
block::Geometry without_places(block::Geometry geometry) {
  geometry.reads_in_place = false;
  return geometry;
}

class TraceFilter final : public Layer {
 public:
  TraceFilter(std::unique_ptr<block::Device>&& below, io::UniqueFd file, std::string path, std::string name)
      : Layer(without_places(below->geometry()), std::move(below)), file_(std::move(file)), path_(std::move(path)),
        name_(std::move(name)) {}

 protected:
  void start(block::Request& request, block::Completion completion) override {
    auto* const traced = new Traced(*this, request, std::move(completion));
    below_->submit(*traced);
  }

 private:
  struct Traced final : Copied {
    Traced(TraceFilter& owner, block::Request& of, block::Completion duty)
        : Copied(of, std::move(duty), [](Copied& self) { static_cast<Traced&>(self).ended(); }), filter(owner) {}
    void ended() {
      filter.write(*this);
      std::move(completion).finish(error);
    }
    TraceFilter& filter;
    const uint64_t came_us = io::wall_us();
    const uint64_t began_ns = io::monotonic_ns();
  };

  uint64_t connection_of(const void* flag) {
    const std::lock_guard lock(mutex_);
    const auto found = connections_.find(flag);
    if (found != connections_.end()) return found->second;
    return connections_[flag] = connections_.size() + 1;
  }

  // One write each, so that a line is whole whoever else appends, and there when the request's answer is.
  void write(const Traced& ended) {
    TraceLine line;
    line.time_us = ended.came_us;
    line.connection = connection_of(ended.abandoned);
    line.disk = name_;
    line.command = ended.command;
    line.offset = ended.command == block::Command::kFlush ? 0 : ended.offset;
    line.length = ended.command == block::Command::kFlush ? 0 : ended.length;
    line.fua = ended.fua && ended.modifies();
    line.keep_allocated = ended.keep_allocated;
    line.fast_zero = ended.fast_zero;
    line.status = errno_word(ended.error);
    line.latency_us = (io::monotonic_ns() - ended.began_ns) / 1000;
    const std::string text = trace_text(line) + "\n";
    if (::write(file_.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size())) return;
    if (!failed_.exchange(true))
      log_warning("{}: the trace cannot be written, lines are missing: {}", path_, errno_text(errno));
  }

  const io::UniqueFd file_;
  const std::string path_;
  const std::string name_;
  std::atomic<bool> failed_{false};
  std::mutex mutex_;  // a leaf
  // By the flag that says that a connection has gone: a later connection may have the number of one that went.
  std::map<const void*, uint64_t> connections_;
};

}  // namespace

Result<std::unique_ptr<block::Device>> make_trace_filter(std::unique_ptr<block::Device> below, const std::string& path,
                                                         const std::string& name) {
  io::UniqueFd file(path == kTraceToStdout ? ::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 0)
                                : ::open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600));
  if (!file.valid()) return make_error(errno, "cannot write the trace to {}: {}", path, errno_text(errno));
  return std::unique_ptr<block::Device>(std::make_unique<TraceFilter>(std::move(below), std::move(file), path, name));
}

}  // namespace netblk::store
