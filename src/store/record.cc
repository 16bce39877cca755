// SPDX-License-Identifier: GPL-2.0-only
#include "store/record.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <span>

#include "base/crc32c.h"
#include "base/limits.h"
#include "io/fd.h"

namespace netblk::store {
namespace {

constexpr std::string_view kStoreTitle = "netblk store record ";
constexpr std::string_view kRunTitle = "netblk run record ";
constexpr std::string_view kVersion = "1";
constexpr std::string_view kSum = "crc32c ";

std::string line(std::string_view key, std::string_view value) { return fmt::format("{} {}\n", key, value); }
std::string line(std::string_view key, uint64_t value) { return fmt::format("{} {}\n", key, value); }

std::string with_sum(std::string text) {
  text += fmt::format("{}{:08x}\n", kSum, crc32c(std::as_bytes(std::span(text))));
  return text;
}

std::string hex(const std::vector<std::byte>& bytes) {
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const std::byte byte : bytes) fmt::format_to(std::back_inserter(text), "{:02x}", std::to_integer<unsigned>(byte));
  return text;
}

// Takes a record apart. Each step says whether the text was as encode() writes it, and stays false from then on.
class Reader {
 public:
  explicit Reader(std::string_view text) : left_(text) {}

  bool good() const { return good_; }
  void fail_unless(bool condition) { good_ = good_ && condition; }

  std::string_view value_of(std::string_view key) {
    const size_t end = left_.find('\n');
    const std::string_view whole = left_.substr(0, end);
    fail_unless(end != std::string_view::npos && whole.starts_with(key) && whole.size() > key.size() &&
                whole[key.size()] == ' ');
    if (!good_) return {};
    left_.remove_prefix(end + 1);
    return whole.substr(key.size() + 1);
  }
  template <class Integer>
  void number(std::string_view key, Integer& into) {
    const std::string_view digits = value_of(key);
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), into);
    fail_unless(error == std::errc() && end == digits.data() + digits.size());
  }
  void flag(std::string_view key, bool& into) {
    const std::string_view word = value_of(key);
    fail_unless(word == "0" || word == "1");
    into = word == "1";
  }
  void id(std::string_view key, Id& into) {
    const auto parsed = parse_id(value_of(key));
    fail_unless(parsed.ok());
    if (good_) into = parsed.value();
    fail_unless(!into.is_zero());
  }
  void bytes(std::string_view key, std::vector<std::byte>& into) {
    const std::string_view digits = value_of(key);
    fail_unless(digits.size() % 2 == 0);
    for (size_t i = 0; good_ && i < digits.size(); i += 2) {
      uint8_t byte = 0;
      const auto [end, error] = std::from_chars(digits.data() + i, digits.data() + i + 2, byte, 16);
      fail_unless(error == std::errc() && end == digits.data() + i + 2);
      into.push_back(static_cast<std::byte>(byte));
    }
  }
  bool at_end() const { return left_.empty(); }
  void end() { fail_unless(at_end()); }

 private:
  std::string_view left_;
  bool good_ = true;
};

// The lines between the title and the sum.
Result<std::string_view> body_of(std::string_view text, std::string_view title) {
  if (!text.starts_with(title)) return make_error(EBADMSG, "it does not begin as a record");
  const std::string_view version = text.substr(title.size(), text.find('\n') - title.size());
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(version.data(), version.data() + version.size(), number);
  if (error != std::errc() || end != version.data() + version.size() || number == 0)
    return make_error(EBADMSG, "its version is no number");
  if (version != kVersion)
    return make_error(EPROTONOSUPPORT, "it is of version {}, and this netblk knows version {}", number, kVersion);
  const size_t sum_at = text.size() - std::min(text.size(), kSum.size() + 9);
  const std::string_view before = text.substr(0, sum_at);
  if (text.substr(sum_at) != fmt::format("{}{:08x}\n", kSum, crc32c(std::as_bytes(std::span(before)))))
    return make_error(EBADMSG, "its checksum is wrong");
  return before.substr(title.size() + version.size() + 1);
}

Status sync_folder(const std::string& path) {
  const io::UniqueFd folder(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // A folder that may be searched but not read cannot be synced; some file systems sync none.
  if (folder.valid() && ::fsync(folder.get()) != 0 && errno != EINVAL)
    return make_error(errno, "cannot sync {}: {}", path, errno_text(errno));
  return Ok{};
}

std::string folder_of(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  return folder.empty() ? "." : folder;
}

}  // namespace

std::string encode(const StoreRecord& record) {
  std::string text = fmt::format("{}{}\n", kStoreTitle, kVersion);
  text += line("uuid", id_text(record.uuid));
  text += line("counter", record.counter);
  text += line("clean", record.clean ? 1 : 0);
  text += line("inode", record.inode);
  text += line("device", record.device);
  text += line("ctime_ns", std::to_string(record.ctime_ns));
  text += line("size_bytes", record.size_bytes);
  text += line("medium", record.medium);
  text += line("owners", hex(record.owners));
  return with_sum(std::move(text));
}

std::string encode(const RunRecord& record) {
  std::string text = fmt::format("{}{}\n", kRunTitle, kVersion);
  text += line("uuid", id_text(record.uuid));
  text += line("counter", record.counter);
  text += line("boot_id", record.boot_id);
  text += line("inode", record.inode);
  text += line("device", record.device);
  text += line("disk_sequence", record.disk_sequence);
  text += line("healthy", record.healthy ? 1 : 0);
  text += line("store", record.store);
  text += line("folder_device", record.folder_device);
  return with_sum(std::move(text));
}

Result<StoreRecord> decode_store_record(std::string_view text) {
  auto body = body_of(text, kStoreTitle);
  if (!body) return std::move(body).error();
  Reader reader(body.value());
  StoreRecord record;
  reader.id("uuid", record.uuid);
  reader.number("counter", record.counter);
  reader.flag("clean", record.clean);
  reader.number("inode", record.inode);
  reader.number("device", record.device);
  reader.number("ctime_ns", record.ctime_ns);
  reader.number("size_bytes", record.size_bytes);
  record.medium = reader.value_of("medium");
  reader.bytes("owners", record.owners);
  reader.end();
  if (!reader.good()) return make_error(EBADMSG, "its lines are not a record's");
  return record;
}

Result<RunRecord> decode_run_record(std::string_view text) {
  auto body = body_of(text, kRunTitle);
  if (!body) return std::move(body).error();
  Reader reader(body.value());
  RunRecord record;
  reader.id("uuid", record.uuid);
  reader.number("counter", record.counter);
  record.boot_id = reader.value_of("boot_id");
  reader.number("inode", record.inode);
  reader.number("device", record.device);
  reader.number("disk_sequence", record.disk_sequence);
  reader.flag("healthy", record.healthy);
  // An earlier netblk wrote neither.
  if (!reader.at_end()) {
    record.store = reader.value_of("store");
    reader.number("folder_device", record.folder_device);
  }
  reader.end();
  if (!reader.good()) return make_error(EBADMSG, "its lines are not a record's");
  return record;
}

Result<std::optional<std::string>> read_record_file(const std::string& path) {
  // O_NONBLOCK: a FIFO in this place is no reason to wait.
  const io::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid() && errno == ENOENT) return std::optional<std::string>();
  if (!fd.valid()) return make_error(errno, "cannot open {}: {}", path, errno_text(errno));
  std::string text(limits::kMaxRecordBytes + 1, '\0');
  size_t length = 0;
  for (;;) {
    const ssize_t got = ::read(fd.get(), text.data() + length, text.size() - length);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return make_error(errno, "cannot read {}: {}", path, errno_text(errno));
    if (got == 0) break;
    length += static_cast<size_t>(got);
    if (length == text.size()) return make_error(EFBIG, "{} is longer than a record can be", path);
  }
  text.resize(length);
  return std::optional<std::string>(std::move(text));
}

Status replace_record_file(const std::string& path, std::string_view text, bool durable, int like) {
  if (text.size() > limits::kMaxRecordBytes)
    return make_error(EFBIG, "cannot write {}: {} bytes, the limit is {}", path, text.size(), limits::kMaxRecordBytes);
  const std::string next = path + ".new";
  const auto failed = [&](const char* what, const std::string& where) {
    const int error = errno;
    ::unlink(next.c_str());
    return make_error(error, "cannot {} {}: {}", what, where, errno_text(error));
  };
  // A new file each time: what an earlier failed sync said of another inode does not count here, and nobody's link is
  // followed.
  ::unlink(next.c_str());
  io::UniqueFd fd(::open(next.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!fd.valid()) return make_error(errno, "cannot create {}: {}", next, errno_text(errno));
  struct stat image;
  if (like >= 0 && ::fstat(like, &image) == 0 && S_ISREG(image.st_mode)) {
    // Whoever may open the store next may open its record.
    if (::fchown(fd.get(), image.st_uid, image.st_gid) == 0) (void)::fchmod(fd.get(), image.st_mode & 0666);
  }
  for (std::string_view left = text; !left.empty();) {
    const ssize_t put = ::write(fd.get(), left.data(), left.size());
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return failed("write", next);
    left.remove_prefix(static_cast<size_t>(put));
  }
  if (durable && ::fsync(fd.get()) != 0) return failed("sync", next);
  fd.reset();
  if (::rename(next.c_str(), path.c_str()) != 0) return failed("replace", path);
  return durable ? sync_folder(folder_of(path)) : Status(Ok{});
}

Status make_record_folder(const std::string& path) {
  std::error_code error;
  std::filesystem::path made;
  for (const auto& part : std::filesystem::absolute(path, error)) {
    made /= part;
    if (::mkdir(made.c_str(), 0755) == 0) {
      if (auto synced = sync_folder(folder_of(made.string())); !synced) return synced;
    } else if (errno != EEXIST && errno != EROFS && errno != EACCES) {
      return make_error(errno, "cannot make the folder {}: {}", made.string(), errno_text(errno));
    }
  }
  if (!std::filesystem::is_directory(path, error))
    return make_error(error ? error.value() : ENOTDIR, "cannot make the folder {}: {}", path,
                      errno_text(error ? error.value() : ENOTDIR));
  return Ok{};
}

}  // namespace netblk::store
