// SPDX-License-Identifier: GPL-2.0-only
// Whole moves on an io::File, whose own may be short.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "coro/task.h"
#include "io/file.h"
#include "io/loop.h"

namespace netblk::store::volume {

inline iovec part(std::span<std::byte> bytes) { return {bytes.data(), bytes.size()}; }
// Of bytes that are only written from.
inline iovec part(std::span<const std::byte> bytes) { return {const_cast<std::byte*>(bytes.data()), bytes.size()}; }

// All of them end with 0 or a positive errno value. The parts are changed; they and their bytes outlive the task.
coro::Task<int> write_parts(io::Loop& loop, io::File& file, std::span<iovec> parts, uint64_t offset);
// What lies behind the file's end reads as zeroes.
coro::Task<int> read_parts(io::Loop& loop, io::File& file, std::span<iovec> parts, uint64_t offset);

coro::Task<int> write_bytes(io::Loop& loop, io::File& file, std::span<const std::byte> from, uint64_t offset);
coro::Task<int> read_bytes(io::Loop& loop, io::File& file, std::span<std::byte> into, uint64_t offset);

// Up to so many bytes, fewer where the file ends: a length that somebody has made up takes no more memory than there is file.
coro::Task<int> read_what_is_there(io::Loop& loop, io::File& file, std::vector<std::byte>& into, uint64_t length, uint64_t offset);

inline auto datasync(io::Loop& loop, io::File& file) {
  return io::await([&loop, &file](io::Op& op) { return file.datasync(loop, op); });
}

}  // namespace netblk::store::volume
