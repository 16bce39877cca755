// SPDX-License-Identifier: GPL-2.0-only
// The index of a volume beside LMDB and RocksDB (where they were there at build time), on a volume's own load: random blocks
// get a new place in batches, each batch is made durable at once (the volume's log has the single ones), and single blocks are
// looked up. docs/volume-index.md has the figures and says what they mean.
#include <fcntl.h>
#include <getopt.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cinttypes>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/endian.h"
#include "common.h"
#include "io/clock.h"
#include "io/epoll/epoll_backend.h"
#include "store/volume/index.h"

#ifdef BENCH_LMDB
#include <lmdb.h>
#endif
#ifdef BENCH_ROCKSDB
#include <rocksdb/c.h>
#endif

namespace {

using namespace bench;
namespace volume = netblk::store::volume;

struct Options {
  std::string engine = "ours";
  std::string dir = ".";
  uint64_t entries = 1u << 20;
  uint64_t batch = 1u << 18;
  uint64_t rounds = 4;
  uint64_t lookups = 1u << 20;
  uint64_t cache_mib = 64;
};

void check(bool ok, const char* what) {
  if (!ok) die("%s: %s", what, strerror(errno));
}

struct Change {
  uint64_t block = 0;
  uint64_t lsn = 0;
  uint64_t place = 0;
};

class Engine {
 public:
  virtual ~Engine() = default;
  virtual void apply(const std::vector<Change>& changes, bool ascending) = 0;  // durable when it returns
  virtual uint64_t lsn_of(uint64_t block) = 0;                 // 0: nothing is there
  virtual uint64_t file_bytes() = 0;
};

// --- Ours -----------------------------------------------------------------------------------------------------------

// Pages in a file. What a merge gave back is used again after two more, as in a volume.
class FilePages final : public volume::PageStore, public volume::MergeSink {
 public:
  explicit FilePages(const std::string& path) : fd_(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600)) {
    check(fd_ >= 0, path.c_str());
  }
  ~FilePages() override { close(fd_); }

  netblk::coro::Task<netblk::Status> read(netblk::io::Loop&, uint64_t offset, std::span<std::byte> page) override {
    check(pread(fd_, page.data(), page.size(), static_cast<off_t>(offset)) == static_cast<ssize_t>(page.size()), "pread");
    co_return netblk::Ok{};
  }
  netblk::coro::Task<netblk::Status> write(netblk::io::Loop&, uint64_t offset, std::span<const std::byte> from) override {
    check(pwrite(fd_, from.data(), from.size(), static_cast<off_t>(offset)) == static_cast<ssize_t>(from.size()), "pwrite");
    co_return netblk::Ok{};
  }
  netblk::coro::Task<netblk::Result<uint64_t>> allocate(netblk::io::Loop&) override {
    if (next_free_ < free_.size()) co_return free_[next_free_++];
    const uint64_t offset = end_;
    end_ += volume::kPageBytes;
    co_return offset;
  }
  netblk::coro::Task<bool> has_spare(netblk::io::Loop&) override { co_return true; }
  void entry_gone(const volume::Entry&) override {}
  void stopped_at(volume::Position) override {}
  void page_gone(uint64_t offset) override { gone_.push_back(offset); }

  // What a checkpoint does beside the merge: two syncs and a superblock.
  void checkpoint() {
    check(fdatasync(fd_) == 0, "fdatasync");
    const std::vector<std::byte> superblock(4096);
    check(pwrite(fd_, superblock.data(), superblock.size(), 0) == 4096, "pwrite");
    check(fdatasync(fd_) == 0, "fdatasync");
    free_.erase(free_.begin(), free_.begin() + static_cast<ptrdiff_t>(next_free_));
    next_free_ = 0;
    free_.insert(free_.end(), waits_.begin(), waits_.end());
    std::sort(free_.begin(), free_.end());
    waits_ = std::exchange(gone_, {});
  }
  uint64_t file_bytes() const {
    struct stat status;
    check(fstat(fd_, &status) == 0, "fstat");
    return static_cast<uint64_t>(status.st_blocks) * 512;
  }

 private:
  int fd_;
  uint64_t end_ = volume::kSegmentsAt;
  std::vector<uint64_t> free_, waits_, gone_;
  size_t next_free_ = 0;
};

class Ours final : public Engine {
 public:
  explicit Ours(const Options& o)
      : pages_(o.dir + "/ours"),
        index_(pages_, netblk::Id{}, {}, 0,
               volume::Points({{.number = volume::kHeadBranch, .name = {}, .size_bytes = 0, .parent = {}, .rewinds = {}}}, {}),
               o.cache_mib << 20),
        loop_(backend_->make_loop(clock_).value()) {}

  void apply(const std::vector<Change>& changes, [[maybe_unused]] bool ascending) override {
    std::vector<volume::Entry> gone;
    for (const Change& change : changes) {
      const volume::Entry entry{.branch = volume::kHeadBranch, .blocks = 1, .block = change.block, .lsn = change.lsn, .place = change.place};
      index_.add({&entry, 1}, gone);
      gone.clear();
    }
    index_.freeze();
    std::optional<netblk::Result<volume::IndexRoot>> root;
    loop_->run(into(index_.merge(*loop_, pages_, {.checkpoint = ++checkpoints_}), root));
    if (!root->ok()) die("%s", root->error().message.c_str());
    pages_.checkpoint();
    index_.commit(root->value());
  }
  uint64_t lsn_of(uint64_t block) override {
    if (!index_.try_lookup(head_, block, 1, 1, found_)) {
      std::optional<netblk::Result<std::vector<volume::Entry>>> result;
      loop_->run(into(index_.lookup(*loop_, head_, block, 1, 1), result));
      if (!result->ok()) die("%s", result->error().message.c_str());
      found_ = result->value();
    }
    return found_.front().lsn;
  }
  uint64_t file_bytes() override { return pages_.file_bytes(); }

 private:
  template <class T>
  static netblk::coro::Task<void> into(netblk::coro::Task<T> task, std::optional<T>& result) {
    T value = co_await std::move(task);
    result.emplace(std::move(value));
  }

  FilePages pages_;
  volume::Index index_;
  netblk::io::SteadyClock clock_;
  std::unique_ptr<netblk::io::Backend> backend_ = netblk::io::make_epoll_backend(1).value();
  std::unique_ptr<netblk::io::Loop> loop_;
  const volume::View head_ = index_.points().head(volume::kHeadBranch);
  std::vector<volume::Entry> found_;
  uint64_t checkpoints_ = 0;
};

// --- The peers, at their best: a key for each block, so no snapshots ------------------------------------------------

struct Key {
  explicit Key(uint64_t block) {
    netblk::store_be<uint32_t>(bytes, 1);
    netblk::store_be<uint64_t>(bytes + 4, block);
  }
  std::byte bytes[12];
};
struct Value {
  uint64_t lsn, place;
};

#ifdef BENCH_LMDB
class Lmdb final : public Engine {
 public:
  explicit Lmdb(const Options& o) : path_(o.dir + "/lmdb") {
    std::filesystem::remove(path_);
    must(mdb_env_create(&env_));
    must(mdb_env_set_mapsize(env_, size_t{64} << 30));
    must(mdb_env_open(env_, path_.c_str(), MDB_NOSUBDIR | MDB_NOMETASYNC, 0600));
  }
  ~Lmdb() override { mdb_env_close(env_); }

  void apply(const std::vector<Change>& changes, [[maybe_unused]] bool ascending) override {
    MDB_txn* txn = nullptr;
    must(mdb_txn_begin(env_, nullptr, 0, &txn));
    MDB_dbi dbi = 0;
    must(mdb_dbi_open(txn, nullptr, 0, &dbi));
    for (const Change& change : changes) {
      Key key(change.block);
      Value value{change.lsn, change.place};
      MDB_val k{sizeof key, &key};
      MDB_val v{sizeof value, &value};
      must(mdb_put(txn, dbi, &k, &v, ascending ? MDB_APPEND : 0));
    }
    must(mdb_txn_commit(txn));
  }
  uint64_t lsn_of(uint64_t block) override {
    MDB_txn* txn = nullptr;
    must(mdb_txn_begin(env_, nullptr, MDB_RDONLY, &txn));
    MDB_dbi dbi = 0;
    must(mdb_dbi_open(txn, nullptr, 0, &dbi));
    Key key(block);
    MDB_val k{sizeof key, &key};
    MDB_val v;
    const int found = mdb_get(txn, dbi, &k, &v);
    Value value{};
    if (found == 0) memcpy(&value, v.mv_data, sizeof value);
    mdb_txn_abort(txn);
    return value.lsn;
  }
  uint64_t file_bytes() override {
    struct stat status;
    check(stat(path_.c_str(), &status) == 0, "stat");
    return static_cast<uint64_t>(status.st_blocks) * 512;
  }

 private:
  static void must(int code) {
    if (code != 0) die("lmdb: %s", mdb_strerror(code));
  }
  std::string path_;
  MDB_env* env_ = nullptr;
};
#endif

#ifdef BENCH_ROCKSDB
uint64_t bytes_under(const std::string& dir) {
  uint64_t sum = 0;
  for (const auto& file : std::filesystem::directory_iterator(dir)) {
    struct stat status;
    if (stat(file.path().c_str(), &status) == 0) sum += static_cast<uint64_t>(status.st_blocks) * 512;
  }
  return sum;
}

class Rocks final : public Engine {
 public:
  explicit Rocks(const Options& o) : path_(o.dir + "/rocksdb") {
    std::filesystem::remove_all(path_);
    options_ = rocksdb_options_create();
    rocksdb_options_set_create_if_missing(options_, 1);
    rocksdb_options_set_compression(options_, rocksdb_no_compression);
    rocksdb_options_set_write_buffer_size(options_, 256u << 20);  // only a batch's end makes a file
    rocksdb_options_increase_parallelism(options_, 2);
    auto* const table = rocksdb_block_based_options_create();
    rocksdb_block_based_options_set_block_cache(table, rocksdb_cache_create_lru(o.cache_mib << 20));
    rocksdb_block_based_options_set_filter_policy(table, rocksdb_filterpolicy_create_bloom_full(10));
    rocksdb_options_set_block_based_table_factory(options_, table);
    writes_ = rocksdb_writeoptions_create();
    rocksdb_writeoptions_disable_WAL(writes_, 1);  // the volume's log is one
    flushes_ = rocksdb_flushoptions_create();
    rocksdb_flushoptions_set_wait(flushes_, 1);
    reads_ = rocksdb_readoptions_create();
    char* error = nullptr;
    db_ = rocksdb_open(options_, path_.c_str(), &error);
    must(error);
  }
  ~Rocks() override { rocksdb_close(db_); }

  void apply(const std::vector<Change>& changes, [[maybe_unused]] bool ascending) override {
    char* error = nullptr;
    auto* const batch = rocksdb_writebatch_create();
    for (const Change& change : changes) {
      const Key key(change.block);
      const Value value{change.lsn, change.place};
      rocksdb_writebatch_put(batch, reinterpret_cast<const char*>(&key), sizeof key, reinterpret_cast<const char*>(&value), sizeof value);
    }
    rocksdb_write(db_, writes_, batch, &error);
    must(error);
    rocksdb_writebatch_destroy(batch);
    rocksdb_flush(db_, flushes_, &error);
    must(error);
  }
  uint64_t lsn_of(uint64_t block) override {
    const Key key(block);
    char* error = nullptr;
    size_t bytes = 0;
    char* const found = rocksdb_get(db_, reads_, reinterpret_cast<const char*>(&key), sizeof key, &bytes, &error);
    must(error);
    Value value{};
    if (found != nullptr) memcpy(&value, found, sizeof value);
    free(found);
    return value.lsn;
  }
  uint64_t file_bytes() override { return bytes_under(path_); }

 private:
  static void must(const char* error) {
    if (error != nullptr) die("rocksdb: %s", error);
  }
  std::string path_;
  rocksdb_options_t* options_;
  rocksdb_writeoptions_t* writes_;
  rocksdb_flushoptions_t* flushes_;
  rocksdb_readoptions_t* reads_;
  rocksdb_t* db_;
};
#endif

std::unique_ptr<Engine> make(const Options& o) {
  if (o.engine == "ours") return std::make_unique<Ours>(o);
#ifdef BENCH_LMDB
  if (o.engine == "lmdb") return std::make_unique<Lmdb>(o);
#endif
#ifdef BENCH_ROCKSDB
  if (o.engine == "rocksdb") return std::make_unique<Rocks>(o);
#endif
  die("'%s' is not in this build", o.engine.c_str());
}

// --- The load -------------------------------------------------------------------------------------------------------

// The number behind `name:` in a file of /proc.
uint64_t proc_value(const char* path, const char* name) {
  FILE* const file = fopen(path, "re");
  check(file != nullptr, path);
  char line[256];
  uint64_t value = 0;
  while (fgets(line, sizeof line, file) != nullptr) {
    if (strncmp(line, name, strlen(name)) == 0) value = strtoull(line + strlen(name), nullptr, 10);
  }
  fclose(file);
  return value;
}

double cpu_seconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

struct Measured {
  uint64_t from = now_ns();
  double cpu = cpu_seconds();
  uint64_t written = proc_value("/proc/self/io", "write_bytes:");

  void print(const char* what, uint64_t count) const {
    const double seconds = static_cast<double>(now_ns() - from) / 1e9;
    printf("%-12s %9.0f/s  %6.2f us of CPU  %7.1f bytes written each\n", what, static_cast<double>(count) / seconds,
           (cpu_seconds() - cpu) * 1e6 / static_cast<double>(count),
           static_cast<double>(proc_value("/proc/self/io", "write_bytes:") - written) / static_cast<double>(count));
    fflush(stdout);
  }
};

void run(const Options& o) {
  const std::unique_ptr<Engine> engine = make(o);
  std::vector<uint64_t> newest(o.entries);
  uint64_t lsn = 0;
  const auto change = [&](uint64_t block) {
    newest[block] = ++lsn;
    return Change{block, lsn, volume::Place::make(volume::kSegmentsAt + lsn * 4224, 0, 1)};
  };
  std::vector<Change> changes;
  {
    const Measured measured;
    for (uint64_t at = 0; at < o.entries;) {
      changes.clear();
      for (; changes.size() < o.batch && at < o.entries; ++at) changes.push_back(change(at));
      engine->apply(changes, true);
    }
    measured.print("fill", o.entries);
  }
  Random random(1);
  {
    const Measured measured;
    for (uint64_t round = 0; round < o.rounds; ++round) {
      changes.clear();
      while (changes.size() < o.batch) changes.push_back(change(random.below(o.entries)));
      engine->apply(changes, false);
    }
    measured.print("overwrite", o.rounds * o.batch);
  }
  for (const char* what : {"look up", "again"}) {
    const Measured measured;
    for (uint64_t i = 0; i < o.lookups; ++i) {
      const uint64_t block = random.below(o.entries);
      if (engine->lsn_of(block) != newest[block]) die("a lookup found a wrong version of block %" PRIu64, block);
    }
    measured.print(what, o.lookups);
  }
  const uint64_t own = newest.size() * sizeof newest[0] >> 20;
  printf("%-12s %6.1f bytes on disk each; anonymous memory %" PRIu64 " MiB (beside %" PRIu64 " of the check), of files %" PRIu64 " MiB\n",
         "size", static_cast<double>(engine->file_bytes()) / static_cast<double>(o.entries),
         (proc_value("/proc/self/status", "RssAnon:") >> 10) - own, own, proc_value("/proc/self/status", "RssFile:") >> 10);
}

constexpr const char* kUsage =
    "usage: bench_volume_index ours|lmdb|rocksdb [--dir DIR] [--entries N] [--batch N] [--rounds N] [--lookups N] [--cache-mib N]\n";

}  // namespace

int main(int argc, char** argv) {
  Options o;
  static const option kOptions[] = {{"dir", required_argument, nullptr, 'd'},     {"entries", required_argument, nullptr, 'n'},
                                    {"batch", required_argument, nullptr, 'b'},   {"rounds", required_argument, nullptr, 'r'},
                                    {"lookups", required_argument, nullptr, 'l'}, {"cache-mib", required_argument, nullptr, 'c'},
                                    {"help", no_argument, nullptr, 'h'},          {nullptr, 0, nullptr, 0}};
  for (int c; (c = getopt_long(argc, argv, "", kOptions, nullptr)) != -1;) {
    switch (c) {
      case 'd': o.dir = optarg; break;
      case 'n': o.entries = parse_size(optarg); break;
      case 'b': o.batch = parse_size(optarg); break;
      case 'r': o.rounds = parse_size(optarg); break;
      case 'l': o.lookups = parse_size(optarg); break;
      case 'c': o.cache_mib = parse_size(optarg); break;
      case 'h': fputs(kUsage, stdout); return 0;
      default: fputs(kUsage, stderr); return 2;
    }
  }
  if (optind + 1 != argc || o.entries == 0 || o.batch == 0) {
    fputs(kUsage, stderr);
    return 2;
  }
  o.engine = argv[optind];
  run(o);
}
