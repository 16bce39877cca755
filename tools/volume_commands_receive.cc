// SPDX-License-Identifier: GPL-2.0-only
// What comes into a volume: `receive` (docs/volume-stream.md), how far it is, and giving it up.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/id.h"
#include "block_await.h"
#include "store/volume/stream.h"
#include "volume_commands.h"

namespace netblk::tools {
namespace {

namespace volume = store::volume;
using block::Command;

// So much is written between two records of how far it is.
constexpr uint64_t kKeepBytes = 16u << 20;

std::string words_of(const volume::Transfer& what) {
  return what.is_whole() ? fmt::format("'{}'", what.to_name) : fmt::format("'{}' since '{}'", what.to_name, what.from_name);
}

Json told(const volume::Receiving& receiving) {
  return {{"name", receiving.what.to_name},
          {"since", receiving.what.from_name},
          {"size_bytes", receiving.what.size_bytes},
          {"done_bytes", receiving.offset},
          {"token", volume::resume_token(receiving.what, receiving.offset)}};
}

// The header of the stream, which who asks has read already.
Result<std::array<std::byte, volume::kStreamHeaderBytes>> header_in(const Json& asked) {
  const auto text = text_in(asked, "header");
  if (!text) return text.error();
  std::array<std::byte, volume::kStreamHeaderBytes> bytes;
  constexpr std::string_view kDigits = "0123456789abcdef";
  const std::string& digits = text.value();
  if (digits.size() != 2 * bytes.size() || digits.find_first_not_of(kDigits) != std::string::npos)
    return make_error(EINVAL, "what is asked of a volume has a bad 'header'");
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<std::byte>(kDigits.find(digits[2 * i]) << 4 | kDigits.find(digits[2 * i + 1]));
  return bytes;
}

class Receive {
 public:
  Receive(VolumeWork& on, const volume::StreamHeader& header, std::span<const std::byte, volume::kStreamHeaderBytes> bytes)
      : on_(on), header_(header), reader_(header, bytes) {}

  coro::Task<Status> run();

 private:
  coro::Task<Status> begin();
  coro::Task<Status> records();
  coro::Task<Status> take(std::span<std::byte> into);
  coro::Task<Status> apply(const volume::StreamRecord& record);
  coro::Task<Status> change(Command command, uint64_t offset, uint64_t length, std::byte* data, bool keep_allocated = false);

  VolumeWork& on_;
  const volume::StreamHeader header_;
  volume::StreamReader reader_;
  std::unique_ptr<block::Device> disk_;
  std::vector<std::byte> buffer_;
  uint64_t applied_ = 0;  // of this stream, everything below is on the disk
  uint64_t kept_ = 0;
  uint64_t unkept_bytes_ = 0;
  Telling telling_{on_};
};

coro::Task<Status> Receive::begin() {
  BranchTurn turn(on_.running, "");
  co_await turn.come();
  const volume::Transfer& what = header_.what;
  std::optional<volume::Receiving> unfinished = on_.volume.receiving();
  if (unfinished && unfinished->what != what)
    co_return make_error(EBUSY, "a receive of {} is unfinished there: go on with it, or give it up with `netblk volume receive --abort {}`",
                         words_of(unfinished->what), on_.folder);
  if (header_.start_offset > (unfinished ? unfinished->offset : 0))
    co_return make_error(ESTALE, "the stream begins at byte {}, and what has come ends at byte {}: send it with the --resume of "
                                 "`netblk volume receive --status {}`",
                         header_.start_offset, unfinished ? unfinished->offset : 0, on_.folder);
  kept_ = unfinished ? unfinished->offset : 0;
  auto disk = co_await on_.volume.receive(what);
  if (!disk) co_return disk.error();
  disk_ = std::move(disk).value();
  co_return Ok{};
}

coro::Task<Status> Receive::take(std::span<std::byte> into) {
  const auto got = co_await on_.input->read(into);
  if (!got) co_return got.error();
  if (got.value() < into.size())
    co_return make_error(EPIPE, "the stream ends at byte {} of the disk, before its end", reader_.offset());
  co_return Ok{};
}

coro::Task<Status> Receive::change(Command command, uint64_t offset, uint64_t length, std::byte* data, bool keep_allocated) {
  const int error = co_await Asked(*disk_, on_.loop, command, offset, length, data, keep_allocated);
  if (error != 0) co_return make_error(error, "byte {} of the disk cannot be written: {}", offset, errno_text(error));
  co_return Ok{};
}

coro::Task<Status> Receive::apply(const volume::StreamRecord& record) {
  switch (record.kind) {
    case volume::StreamKind::kData: {
      Status written = co_await change(Command::kWrite, record.offset, record.length, buffer_.data());
      co_return written;
    }
    case volume::StreamKind::kZero: {
      Status written = co_await change(Command::kWriteZeroes, record.offset, record.length, nullptr, true);
      co_return written;
    }
    case volume::StreamKind::kHole: {
      Status written = co_await change(Command::kTrim, record.offset, record.length, nullptr);
      co_return written;
    }
    case volume::StreamKind::kEnd: break;
  }
  // A disk that has become smaller has nothing behind its end.
  const uint64_t end = header_.what.size_bytes;
  if (disk_->size_bytes() == end) co_return Ok{};
  Status trimmed = co_await change(Command::kTrim, end, disk_->size_bytes() - end, nullptr);
  co_return trimmed;
}

coro::Task<Status> Receive::records() {
  buffer_.resize(volume::kMaxStreamPayload);
  std::array<std::byte, volume::kStreamRecordBytes> fixed;
  while (!reader_.ended()) {
    Status status = co_await take(fixed);
    if (!status) co_return status;
    const auto record = reader_.record(fixed);
    if (!record) co_return record.error();
    const auto payload = std::span(buffer_).first(record.value().payload_bytes);
    status = co_await take(payload);
    if (status) status = reader_.passes(payload);
    if (!status) co_return status;
    status = co_await apply(record.value());
    if (!status) co_return status;
    applied_ = reader_.offset();
    if (telling_.is_due()) on_.tell({{"done_bytes", applied_}, {"total_bytes", header_.what.size_bytes}});
    unkept_bytes_ += record.value().payload_bytes + volume::kStreamRecordBytes;
    if (unkept_bytes_ < kKeepBytes || reader_.ended() || applied_ <= kept_) continue;
    unkept_bytes_ = 0;
    status = co_await on_.volume.keep_received(applied_);
    if (!status) co_return status;
    kept_ = applied_;
  }
  co_return Ok{};
}

coro::Task<Status> Receive::run() {
  Status status = co_await begin();
  if (!status) co_return status;
  status = co_await records();
  if (status) {
    status = co_await on_.volume.end_receiving();
    co_return status;
  }
  // What has come stays.
  if (applied_ > kept_) {
    const Status kept = co_await on_.volume.keep_received(applied_);
    if (kept) kept_ = applied_;
  }
  co_return make_error(status.error().code, "{}; the disk is as it was before, and what has come up to byte {} is kept: go on with "
                                            "`netblk volume send ... --resume {}`",
                       status.error().message, kept_, volume::resume_token(header_.what, kept_));
}

// (Its disk is closed when it ends.)
coro::Task<Status> received_from(VolumeWork& on, const volume::StreamHeader& header, std::span<const std::byte, volume::kStreamHeaderBytes> bytes) {
  Receive receive(on, header, bytes);
  Status received = co_await receive.run();
  co_return received;
}

}  // namespace

coro::Task<Result<Json>> volume_receive(VolumeWork& on, const Json& asked) {
  const auto bytes = header_in(asked);
  if (!bytes) co_return bytes.error();
  const auto header = volume::decode_stream_header(bytes.value());
  if (!header) co_return header.error();
  if (on.running.receive != nullptr)
    co_return make_error(EBUSY, "another receive is under way there: wait for its end, or end it with `netblk volume receive --abort {}`",
                         on.folder);
  on.running.receive = on.input;
  Status received = co_await received_from(on, header.value(), bytes.value());
  on.running.receive = nullptr;
  if (std::exchange(on.running.gives_up, false)) {
    if (!received) received = make_error(ECANCELED, "it was given up by `netblk volume receive --abort`; the disk is as it was before");
    on.running.has_given_up.set();
  }
  if (!received) co_return std::move(received).error();
  Json answer = {{"name", header.value().what.to_name},
                 {"since", header.value().what.from_name},
                 {"size_bytes", header.value().what.size_bytes}};
  co_return answer;
}

coro::Task<Result<Json>> volume_receive_status(VolumeWork& on, const Json&) {
  const auto receiving = on.volume.receiving();
  if (!receiving)
    co_return make_error(ENOENT, "no receive is unfinished there");
  co_return told(*receiving);
}

coro::Task<Result<Json>> volume_receive_abort(VolumeWork& on, const Json&) {
  if (on.running.gives_up) co_return make_error(EBUSY, "it is being given up already");
  if (on.running.receive != nullptr) {
    on.running.gives_up = true;
    on.running.receive->cancel();
    co_await on.running.has_given_up.wait();
  }
  BranchTurn turn(on.running, "");
  co_await turn.come();
  const auto receiving = on.volume.receiving();
  if (!receiving) co_return make_error(ENOENT, "no receive is unfinished there");
  const Status given_up = co_await on.volume.give_up_receiving();
  if (!given_up) co_return given_up.error();
  co_return Json{{"name", receiving->what.to_name}, {"since", receiving->what.from_name}};
}

}  // namespace netblk::tools
