// SPDX-License-Identifier: GPL-2.0-only
// A receiver of `netblk volume send` and any bytes as the stream: whole or not, in order or not, with right sums. Each record that
// is taken is one that may follow; until the end was found right the volume shows what it had, and then what was sent.
#include <algorithm>
#include <array>
#include <span>

#include "base/crc32c.h"
#include "base/endian.h"
#include "store/volume/stream.h"
#include "volume_world.h"

namespace netblk::fuzz {
namespace {

using namespace store::volume;
using block::Command;

constexpr uint64_t kDiskBytes = 256u << 10;
constexpr size_t kStreams = 3;  // a whole snapshot; what has changed since it; the rest of that, where a part has come
constexpr uint64_t kPart = 65536;

Transfer transfer(size_t number) {
  Transfer what;
  what.to = {.volume = {}, .branch = 1, .lsn = number == 0 ? 5u : 9u, .time_ns = 77};
  what.to.volume.bytes[0] = 42;
  what.to_name = number == 0 ? "first" : "second";
  what.size_bytes = number == 0 ? kDiskBytes : kDiskBytes / 2 + 1536;
  if (number == 0) return what;
  what.from = transfer(0).to;
  what.from_name = "first";
  what.from_size_bytes = kDiskBytes;
  return what;
}

// --- Streams --------------------------------------------------------------------------------------------------------

struct Stream {
  Bytes header;
  std::vector<Bytes> records;  // with what belongs to them
};

Stream stream(size_t number) {
  const StreamHeader header{.what = transfer(number), .start_offset = number == 2 ? kPart : 0};
  const auto head = encode(header);
  StreamWriter writer(head);
  Stream made{.header = Bytes(head.begin(), head.end()), .records = {}};
  const auto put = [&](StreamKind kind, uint64_t at, uint64_t length) {
    const Bytes payload(kind == StreamKind::kData ? length : 0, static_cast<std::byte>(0x30 + number));
    const auto fixed = writer.record(kind, at, length, payload);
    Bytes record(fixed.begin(), fixed.end());
    record.insert(record.end(), payload.begin(), payload.end());
    made.records.push_back(std::move(record));
  };
  if (number != 2) put(StreamKind::kData, 0, 8192);
  if (number != 2) put(StreamKind::kZero, 16384, 4096);
  put(StreamKind::kData, kPart, 4096);
  put(StreamKind::kHole, kPart + 8192, 4096);
  const uint64_t end = header.what.size_bytes, last = end / kBlockBytes * kBlockBytes;
  put(StreamKind::kData, last == end ? last - kBlockBytes : last, last == end ? kBlockBytes : end - last);
  const auto fixed = writer.end();
  made.records.emplace_back(fixed.begin(), fixed.end());
  return made;
}

// The stream after the changes of the input; its numbers and sums are right again where the input does not say otherwise.
Bytes changed(Stream of, Input& input) {
  bool mends = true;
  uint64_t cut = UINT64_MAX;
  for (unsigned i = 0; !input.at_end() && i < 64; ++i) {
    const uint8_t what = input.byte();
    const size_t count = of.records.size(), number = what >> 3 & 15;
    switch (what & 7) {
      case 0: edit(std::span(of.header).first(280), input); break;
      case 1: edit(of.header, input); break;
      case 2:
        if (count != 0) edit(std::span(of.records[number % count]).first(kStreamRecordBytes), input);
        break;
      case 3:
        if (count != 0) edit(of.records[number % count], input);
        break;
      case 4:
        if (count != 0) of.records.erase(of.records.begin() + static_cast<ptrdiff_t>(number % count));
        break;
      case 5:
        if (count != 0 && count < 32) of.records.insert(of.records.begin() + input.byte() % static_cast<ptrdiff_t>(count + 1), Bytes(of.records[number % count]));
        break;
      case 6:
        if (count != 0) of.records[number % count].resize(kStreamRecordBytes + input.number(2) % 16384);
        break;
      default:
        if ((what & 0x80) != 0) mends = false;
        else cut = input.number(3);
    }
  }
  Bytes whole;
  if (mends) {
    store_le(of.header.data() + 8, uint32_t{0});
    store_le(of.header.data() + 8, crc32c(of.header));
  }
  whole = of.header;
  uint32_t sum = 0;
  for (Bytes& record : of.records) {
    if (mends) {
      if (load_le<uint32_t>(record.data() + 16) == static_cast<uint32_t>(StreamKind::kEnd)) store_le(record.data() + 40, sum);
      store_le(record.data() + 4, uint32_t{0});
      const uint32_t crc = crc32c(record, load_le<uint32_t>(of.header.data() + 8));
      store_le(record.data() + 4, crc);
      std::array<std::byte, 4> part;
      store_le(part.data(), crc);
      sum = crc32c(part, sum);
    }
    whole.insert(whole.end(), record.begin(), record.end());
  }
  if (whole.size() > cut) whole.resize(cut);
  return whole;
}

// --- The receiver ---------------------------------------------------------------------------------------------------

class Receiver {
 public:
  Receiver(Loop& loop, Disk& disk) : loop_(loop), disk_(disk) {}

  // A new volume; or one with the first snapshot, and perhaps a part of the second. False: the stream was not taken.
  coro::Task<int> prepare(size_t number) {
    const CreateOptions how{.size_bytes = kDiskBytes, .segment_bytes = 1u << 16};
    {
      File file(disk_);
      const Status made = co_await create_volume(loop_, file, how, environment_);
      check(made.ok(), "a volume is made");
    }
    if (number == 0) co_return 0;
    co_await open();
    Input none({});
    Bytes bytes = changed(stream(0), none);
    bool taken = co_await receive(bytes);
    check(taken, "a sound stream is taken");
    if (number == 2) {
      none = Input({});
      bytes = changed(stream(1), none);
      // Up to the record at kPart.
      bytes.resize(kStreamHeaderBytes + 2 * kStreamRecordBytes + 8192);
      taken = co_await receive(bytes);
      check(!taken && volume_->receiving().has_value(), "a part of a stream is kept");
      const Status kept = co_await volume_->keep_received(kPart);
      check(kept.ok(), "what has come is kept");
    }
    co_await close();
    co_return 0;
  }

  coro::Task<int> run(Bytes bytes) {
    co_await open();
    const Bytes before = co_await contents();
    const size_t snapshots = volume_->snapshots().size();
    const bool taken = co_await receive(bytes);
    // As it is found again.
    co_await close();
    co_await open();
    const Bytes after = co_await contents();
    if (!taken) {
      check(after == before, "a stream that did not come whole shows nothing");
      check(volume_->snapshots().size() == snapshots, "a snapshot that did not come whole is none");
    } else {
      check(!volume_->receiving(), "what has come is not under way");
      check(volume_->snapshots().size() == snapshots + 1, "what has come is a snapshot");
      const auto names = volume_->snapshots();
      auto snapshot = volume_->open_device(PointName(names.back().name));
      check(snapshot.ok() && snapshot.value()->size_bytes() == size_, "the snapshot is as large as was sent");
    }
    const auto report = co_await volume_->check();
    check(report.ok() && report.value().damaged == 0, "a receiver is sound", report.ok() && report.value().damaged != 0 ? report.value().damage[0] : "");
    if (volume_->receiving()) {
      const Status given_up = co_await volume_->give_up_receiving();
      check(given_up.ok(), "a receive can be given up");
    }
    co_await close();
    co_return 0;
  }

 private:
  coro::Task<void> open() {
    VolumeOptions options;
    options.cache_bytes = 1u << 20;
    auto opened = co_await open_volume(loop_, std::make_unique<File>(disk_), options, environment_);
    check(opened.ok() && !opened.value()->info().read_only, "a receiver opens");
    volume_ = std::move(opened).value();
  }
  coro::Task<void> close() {
    const Status closed = co_await volume_->close();
    check(closed.ok(), "a receiver closes");
    volume_.reset();
  }
  // What somebody sees of the disk, up to some bound.
  coro::Task<Bytes> contents() {
    auto device = volume_->open_device();
    check(device.ok(), "the disk opens");
    Bytes bytes(std::min<uint64_t>(device.value()->size_bytes(), 1u << 20));
    const int error = co_await ask(loop_, *device.value(), Command::kRead, 0, bytes.size(), bytes.data());
    check(error == 0, "the disk can be read");
    co_return bytes;
  }

  // As tools/volume_commands_receive.cc. Whether all of it came.
  coro::Task<bool> receive(const Bytes& bytes) {
    std::span<const std::byte> left(bytes);
    if (left.size() < kStreamHeaderBytes) co_return false;
    const auto head = left.first<kStreamHeaderBytes>();
    left = left.subspan(kStreamHeaderBytes);
    const auto header = decode_stream_header(head);
    if (!header.ok()) {
      check(header.error().code == EBADMSG || header.error().code == EPROTONOSUPPORT, "a bad header has its error");
      co_return false;
    }
    const Transfer& what = header.value().what;
    check(encode(header.value()) == std::array<std::byte, kStreamHeaderBytes>(copied<kStreamHeaderBytes>(head)), "a header is what it was when encoded");
    size_ = what.size_bytes;
    const auto token = parse_resume_token(resume_token(what, header.value().start_offset), what);
    check(token.ok() && token.value() == header.value().start_offset, "a token says where it goes on");
    const auto unfinished = volume_->receiving();
    if (unfinished && unfinished->what != what) co_return false;
    if (header.value().start_offset > (unfinished ? unfinished->offset : 0)) co_return false;
    auto disk = co_await volume_->receive(what);
    if (!disk.ok()) co_return false;
    check(disk.value()->size_bytes() >= size_, "there is room for what is sent");
    StreamReader reader(header.value(), head);
    uint64_t upto = header.value().start_offset;
    while (!reader.ended()) {
      if (left.size() < kStreamRecordBytes) co_return false;
      const auto record = reader.record(left.first<kStreamRecordBytes>());
      left = left.subspan(kStreamRecordBytes);
      if (!record.ok()) co_return false;
      const StreamRecord& now = record.value();
      check(now.payload_bytes <= kMaxStreamPayload, "a payload is bounded");
      if (left.size() < now.payload_bytes) co_return false;
      Bytes payload(left.begin(), left.begin() + now.payload_bytes);
      left = left.subspan(payload.size());
      if (!reader.passes(payload)) co_return false;
      if (now.kind != StreamKind::kEnd) {
        check(now.offset >= upto && now.length != 0 && now.offset <= size_ && now.length <= size_ - now.offset, "records ascend, in the disk");
        check(now.kind != StreamKind::kData || payload.size() == now.length, "a record of data has them");
        upto = now.offset + now.length;
        check(reader.offset() == upto, "what has come ends with the record");
      }
      const int error = co_await apply(*disk.value(), now, payload);
      check(error == 0 || error == ENOSPC, "what is taken can be written", std::to_string(error));
      if (error != 0) co_return false;
      if (reader.ended() || upto % 3 != 0) continue;
      const Status kept = co_await volume_->keep_received(reader.offset());
      check(kept.ok(), "what has come is kept");
    }
    disk.value().reset();
    const Status ended = co_await volume_->end_receiving();
    co_return ended.ok();
  }
  template <size_t kSize>
  static std::array<std::byte, kSize> copied(std::span<const std::byte, kSize> from) {
    std::array<std::byte, kSize> to;
    std::copy(from.begin(), from.end(), to.begin());
    return to;
  }
  coro::Task<int> apply(block::Device& disk, const StreamRecord& record, Bytes& payload) {
    uint64_t at = record.offset, length = record.length;
    Command command = record.kind == StreamKind::kData ? Command::kWrite : record.kind == StreamKind::kZero ? Command::kWriteZeroes : Command::kTrim;
    if (record.kind == StreamKind::kEnd) {
      at = size_;
      length = disk.size_bytes() - size_;
      if (length == 0) co_return 0;
    }
    Asked asked(loop_, command, at, length, payload.empty() ? nullptr : payload.data());
    asked.keep_allocated = record.kind == StreamKind::kZero;
    const int error = co_await asked.run(disk);
    co_return error;
  }

  Loop& loop_;
  Disk& disk_;
  Environment environment_;
  std::unique_ptr<Volume> volume_;
  uint64_t size_ = 0;
};

const Bytes& prepared(size_t number) {
  static const std::array<Bytes, kStreams> images = [] {
    std::array<Bytes, kStreams> made;
    for (size_t i = 0; i < kStreams; ++i) {
      Clock clock;
      Loop loop(clock);
      Disk disk;
      Receiver receiver(loop, disk);
      (void)loop.now(receiver.prepare(i));
      made[i] = std::move(disk.bytes);
    }
    return made;
  }();
  return images[number];
}

}  // namespace
}  // namespace netblk::fuzz

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  netblk::fuzz::begin_process();
  return 0;
}

// Which stream, and to which volume it comes; then the changes.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace netblk::fuzz;
  Input input({data, size});
  const uint8_t choice = input.byte();
  const size_t sent = choice % kStreams, to = choice / kStreams % kStreams;
  Disk disk;
  disk.bytes = prepared(to);
  const Bytes bytes = changed(stream(sent), input);
  Clock clock;
  Loop loop(clock);
  Receiver receiver(loop, disk);
  (void)loop.now(receiver.run(bytes));
  return 0;
}
