// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/file_io.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/limits.h"

namespace netblk::store::volume {
namespace {

// What is left after `moved` bytes of the parts.
std::span<iovec> rest_of(std::span<iovec> parts, size_t moved) {
  while (!parts.empty() && moved >= parts[0].iov_len) {
    moved -= parts[0].iov_len;
    parts = parts.subspan(1);
  }
  if (moved > 0) {
    parts[0].iov_base = static_cast<std::byte*>(parts[0].iov_base) + moved;
    parts[0].iov_len -= moved;
  }
  return parts;
}

std::span<const iovec> at_once(std::span<iovec> parts) {
  return parts.first(std::min<size_t>(parts.size(), limits::kKernelMaxIov));
}

}  // namespace

coro::Task<int> write_parts(io::Loop& loop, io::File& file, std::span<iovec> parts, uint64_t offset) {
  while (!parts.empty()) {
    const int32_t moved = co_await io::await(
        [&](io::Op& op) { return file.write_vector(loop, op, at_once(parts), offset); });
    if (moved <= 0) co_return moved < 0 ? -moved : EIO;
    offset += static_cast<uint64_t>(moved);
    parts = rest_of(parts, static_cast<size_t>(moved));
  }
  co_return 0;
}

coro::Task<int> read_parts(io::Loop& loop, io::File& file, std::span<iovec> parts, uint64_t offset) {
  while (!parts.empty()) {
    const int32_t moved = co_await io::await(
        [&](io::Op& op) { return file.read_vector(loop, op, at_once(parts), offset); });
    if (moved < 0) co_return -moved;
    if (moved == 0) {
      for (const iovec& left : parts) std::memset(left.iov_base, 0, left.iov_len);
      break;
    }
    offset += static_cast<uint64_t>(moved);
    parts = rest_of(parts, static_cast<size_t>(moved));
  }
  co_return 0;
}

coro::Task<int> write_bytes(io::Loop& loop, io::File& file, std::span<const std::byte> from, uint64_t offset) {
  iovec whole = part(from);
  const int error = co_await write_parts(loop, file, {&whole, from.empty() ? 0u : 1u}, offset);
  co_return error;
}

coro::Task<int> read_bytes(io::Loop& loop, io::File& file, std::span<std::byte> into, uint64_t offset) {
  iovec whole = part(into);
  const int error = co_await read_parts(loop, file, {&whole, into.empty() ? 0u : 1u}, offset);
  co_return error;
}

coro::Task<int> read_what_is_there(io::Loop& loop, io::File& file, std::vector<std::byte>& into, uint64_t length, uint64_t offset) {
  constexpr uint64_t kAtOnce = 1u << 20;
  into.clear();
  while (into.size() < length) {
    const size_t had = into.size();
    into.resize(std::min(length, had + kAtOnce));
    const auto room = std::span(into).subspan(had);
    const uint64_t at = offset + had;
    const int32_t moved = co_await io::await([&](io::Op& op) { return file.read(loop, op, room, at); });
    if (moved < 0) co_return -moved;
    into.resize(had + static_cast<size_t>(moved));
    if (moved == 0) break;
  }
  co_return 0;
}

}  // namespace netblk::store::volume
