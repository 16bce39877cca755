// SPDX-License-Identifier: GPL-2.0-only
// The files that a command of a volume reads or writes beside its answer: --input, --output, or the standard ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "base/result.h"
#include "pipe_file.h"
#include "volume_command.h"

namespace netblk::tools {

// What is written to, with the name of it. A new file has its name with kPartSuffix behind it until publish(), and goes again
// without.
class OutputFile {
 public:
  static constexpr const char* kPartSuffix = ".part";

  // "" and "-": the standard output, if it is no terminal. ECANCELED: the user wants no more; a FIFO waits for its reader.
  static Result<std::unique_ptr<OutputFile>> open(const std::string& path);
  OutputFile(io::UniqueFd fd, std::string name, bool is_new) : fd_(std::move(fd)), name_(std::move(name)), is_new_(is_new) {}
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;
  ~OutputFile();

  int fd() const { return fd_.get(); }
  const std::string& name() const { return name_; }
  bool is_new() const { return is_new_; }
  // As if nothing had been written; false: it has gone down a pipe, or to a device.
  bool begin_anew();
  // Durable, and under its own name, where nothing may be yet.
  Status publish(uint64_t size_bytes);

 private:
  io::UniqueFd fd_;
  const std::string name_;
  bool is_new_;
};

// "" and "-": the standard input.
struct InputFile {
  static Result<InputFile> open(const std::string& path);
  io::UniqueFd fd;
  std::string name;
};

// Both are of the file that they are given, and end before it.
class FileSource final : public ByteSource {
 public:
  FileSource(io::Loop& loop, const InputFile& file);

  coro::Task<Result<size_t>> read(std::span<std::byte> into) override;
  void cancel() override { pipe_.cancel(); }

 private:
  PipeFile pipe_;
  const std::string& name_;
};

// A new file is sparse where zeroes are written.
class FileSink final : public ByteSink {
 public:
  FileSink(io::Loop& loop, OutputFile& file);

  coro::Task<Status> write(std::span<const std::byte> from) override;
  void cancel() { pipe_.cancel(); }
  Status finish() { return file_.publish(written_bytes_); }

 private:
  PipeFile pipe_;
  OutputFile& file_;
  uint64_t written_bytes_ = 0;
};

}  // namespace netblk::tools
