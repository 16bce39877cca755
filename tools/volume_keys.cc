// SPDX-License-Identifier: GPL-2.0-only
#include "volume_keys.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <optional>
#include <utility>

#include "interrupt.h"
#include "io/fd.h"
#include "store/volume/format.h"

namespace netblk::tools {
namespace {

namespace volume = store::volume;
using volume::Secret;
using volume::UserKey;

// A core dump, also one that a program takes through a pipe, and ptrace by another process of the same user, are for processes
// that are "dumpable". The limit is for a kernel that is told to dump the others too (fs.suid_dumpable).
Status forbid_core_dumps() {
  const rlimit none{0, 0};
  if (::prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0 || ::setrlimit(RLIMIT_CORE, &none) != 0)
    return make_error(errno, "cannot forbid core dumps, which would have what is encrypted: {}", errno_text(errno));
  return Ok{};
}

SharedKey shared(UserKey::Kind kind, Secret secret) { return std::make_shared<const UserKey>(UserKey{kind, std::move(secret)}); }

// (The file may be a pipe: it is read to its end.)
Result<Secret> read_secret(const std::string& path) {
  const io::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return make_error(errno, "cannot open the key in {}: {}", path, errno_text(errno));
  Secret secret(volume::kMaxKeyBytes + 1);
  size_t have = 0;
  for (;;) {
    const auto left = secret.bytes().subspan(have);
    const ssize_t got = ::read(fd.get(), left.data(), left.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return make_error(errno, "cannot read the key in {}: {}", path, errno_text(errno));
    have += static_cast<size_t>(got);
    if (got == 0) break;
    if (have > volume::kMaxKeyBytes) return make_error(EFBIG, "{} has more than {} bytes: is it a key?", path, volume::kMaxKeyBytes);
  }
  secret.shorten(have);
  return secret;
}

// What an editor or `echo` puts behind it is no part of a passphrase.
void without_newline(Secret& secret) {
  const auto bytes = secret.bytes();
  if (!bytes.empty() && bytes.back() == std::byte{'\n'}) secret.shorten(bytes.size() - 1);
}

// Restores the terminal as it was.
class Unseen {
 public:
  explicit Unseen(int fd) : fd_(fd) {
    if (::tcgetattr(fd, &before_) != 0) return;
    termios unseen = before_;
    unseen.c_lflag &= ~static_cast<tcflag_t>(ECHO);
    unseen.c_lflag |= ECHONL;
    changed_ = ::tcsetattr(fd, TCSAFLUSH, &unseen) == 0;
  }
  Unseen(const Unseen&) = delete;
  Unseen& operator=(const Unseen&) = delete;
  ~Unseen() {
    if (changed_) ::tcsetattr(fd_, TCSAFLUSH, &before_);
  }
  bool ok() const { return changed_; }

 private:
  const int fd_;
  termios before_{};
  bool changed_ = false;
};

// Signals that would leave the terminal as it is set here are kept back until it is as it was. One at a time.
class HeldSignals {
 public:
  HeldSignals() {
    if (::pipe2(pipe_.data(), O_CLOEXEC | O_NONBLOCK) != 0) return;
    write_end_ = pipe_[1];
    struct sigaction note{};
    note.sa_handler = [](int number) {
      const auto byte = static_cast<unsigned char>(number);
      (void)!::write(write_end_, &byte, 1);
    };
    for (size_t i = 0; i < kHeld.size(); ++i) {
      ::sigaction(kHeld[i], nullptr, &before_[i]);
      if (before_[i].sa_handler != SIG_IGN) ::sigaction(kHeld[i], &note, nullptr);
    }
  }
  HeldSignals(const HeldSignals&) = delete;
  HeldSignals& operator=(const HeldSignals&) = delete;
  // What came takes effect now.
  ~HeldSignals() {
    if (pipe_[0] < 0) return;
    for (size_t i = 0; i < kHeld.size(); ++i) ::sigaction(kHeld[i], &before_[i], nullptr);
    unsigned char number = 0;
    while (::read(pipe_[0], &number, 1) == 1) ::raise(number);
    ::close(pipe_[0]);
    ::close(pipe_[1]);
  }
  int fd() const { return pipe_[0]; }

 private:
  static constexpr std::array kHeld = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP};
  static inline volatile int write_end_ = -1;
  std::array<int, 2> pipe_ = {-1, -1};
  std::array<struct sigaction, kHeld.size()> before_{};
};

// None: a signal came, and has taken effect.
Result<std::optional<Secret>> typed_once(int terminal, const std::string& words) {
  const HeldSignals signals;
  const Unseen unseen(terminal);
  if (!unseen.ok()) return make_error(errno, "cannot ask for a passphrase unseen: {}", errno_text(errno));
  const std::string shown = words + ": ";
  if (::write(terminal, shown.data(), shown.size()) < 0) return make_error(errno, "cannot ask for a passphrase: {}", errno_text(errno));
  Secret secret(1024);
  ssize_t got = -1;
  while (got < 0) {
    std::array<pollfd, 2> watched = {pollfd{terminal, POLLIN, 0}, pollfd{signals.fd(), POLLIN, 0}};
    if (::poll(watched.data(), watched.size(), -1) < 0 && errno == EINTR) continue;
    if (watched[1].revents != 0) return std::optional<Secret>();
    got = ::read(terminal, secret.bytes().data(), secret.bytes().size());
    if (got < 0 && errno != EINTR && errno != EAGAIN) break;
  }
  if (got <= 0) return make_error(got < 0 ? errno : ECANCELED, "no passphrase was typed");
  secret.shorten(static_cast<size_t>(got));
  without_newline(secret);
  return std::optional<Secret>(std::move(secret));
}

Result<Secret> typed(int terminal, const std::string& words) {
  for (;;) {
    auto secret = typed_once(terminal, words);
    if (!secret) return std::move(secret).error();
    if (secret.value()) return std::move(*secret.value());
    // It was stopped and goes on (^Z); or whoever catches signals knows.
    if (interrupted()) return make_error(ECANCELED, "it was stopped, and no passphrase was typed");
  }
}

}  // namespace

Result<SharedKey> read_key(const KeyFiles& files) {
  if (files.none()) return SharedKey();
  if (!files.key_file.empty() && !files.passphrase_file.empty())
    return make_error(EINVAL, "a key file and a passphrase file: one of them opens a volume");
  if (Status forbidden = forbid_core_dumps(); !forbidden) return std::move(forbidden).error();
  const bool is_file = !files.key_file.empty();
  Result<Secret> secret = read_secret(is_file ? files.key_file : files.passphrase_file);
  if (!secret) return std::move(secret).error();
  if (!is_file) without_newline(secret.value());
  return shared(is_file ? UserKey::Kind::kFile : UserKey::Kind::kPassphrase, std::move(secret).value());
}

Result<SharedKey> ask_passphrase(const std::string& words, bool again) {
  const io::UniqueFd terminal(::open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY));
  if (!terminal.valid()) return make_error(ENOTTY, "there is no terminal to ask for a passphrase: use --key-file or --passphrase-file");
  if (Status forbidden = forbid_core_dumps(); !forbidden) return std::move(forbidden).error();
  Result<Secret> secret = typed(terminal.get(), words);
  if (!secret) return std::move(secret).error();
  if (again) {
    const Result<Secret> second = typed(terminal.get(), words + ", again");
    if (!second) return second.error();
    const std::span<const std::byte> one = secret.value().bytes(), two = second.value().bytes();
    if (!std::equal(one.begin(), one.end(), two.begin(), two.end())) return make_error(EINVAL, "the two passphrases are not the same");
  }
  return shared(UserKey::Kind::kPassphrase, std::move(secret).value());
}

namespace {

Result<volume::Superblock> newer_superblock(const std::string& folder) {
  const std::string path = folder + "/data";
  const io::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd.valid()) return make_error(errno, "cannot open {}: {}", path, errno_text(errno));
  Result<volume::Superblock> newer = make_error(EBADMSG, "{} is no volume", folder);
  for (const uint64_t at : volume::kSuperblockAt) {
    volume::SuperblockBytes bytes{};
    if (::pread(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(at)) < 0) continue;
    auto superblock = volume::decode_superblock(bytes);
    if (superblock.ok() && (!newer.ok() || superblock.value().sequence > newer.value().sequence)) newer = std::move(superblock);
  }
  return newer;
}

}  // namespace

bool is_encrypted_volume(const std::string& folder) {
  const auto superblock = newer_superblock(folder);
  return superblock.ok() && superblock.value().encrypted();
}

Result<std::vector<volume::KeySlotInfo>> key_slots_in(const std::string& folder) {
  const auto superblock = newer_superblock(folder);
  if (!superblock) return superblock.error();
  if (!superblock.value().encrypted()) return make_error(EOPNOTSUPP, "{} is not encrypted, and has no keys", folder);
  return volume::used_slots(superblock.value().key_slots);
}

}  // namespace netblk::tools
