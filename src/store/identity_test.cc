// SPDX-License-Identifier: GPL-2.0-only
// Each rule of DESIGN 4.2, "Generation", with what it defeats.
#include "store/identity.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "io/fd.h"

namespace netblk::store {
namespace {

namespace fs = std::filesystem;

// The file behind a store, as the identity sees it: it outlives the process, and here the test decides what it is.
struct FakeFileState {
  Medium::Seen seen{.inode = 12, .device = 2049, .disk_sequence = 5, .size_bytes = 1 << 20, .ctime_ns = 1000,
                    .birth_ns = 500, .name = "", .is_block_device = false};
  int sync_error = 0;
  int syncs = 0;
  int drops = 0;
  void write() { seen.ctime_ns += 10; }
};

class FakeMedium final : public Medium {
 public:
  explicit FakeMedium(FakeFileState& state) : state_(state) {}
  Result<Seen> look() override { return state_.seen; }
  int sync() override {
    ++state_.syncs;
    return state_.sync_error;
  }
  void drop_cache() override { ++state_.drops; }
  int descriptor() const override { return -1; }

 private:
  FakeFileState& state_;
};

class IdentityTest : public testing::Test {
 protected:
  IdentityTest() {
    std::string name = (fs::temp_directory_path() / "netblk-test-XXXXXX").string();
    folder_ = ::mkdtemp(name.data());
    options_.store = folder_ + "/image";
    options_.record_path = folder_ + "/image.netblk";
    options_.run_folders = {run_folder()};
    options_.boot_id = "boot-1";
  }
  ~IdentityTest() override { fs::remove_all(folder_); }
  std::string run_folder() const { return folder_ + "/run"; }

  std::unique_ptr<Identity> decided(bool brand_new = false) {
    auto made = Identity::open(options_, std::make_unique<FakeMedium>(file_), brand_new);
    EXPECT_TRUE(made.ok()) << made.error().message;
    return made ? std::move(made).value() : nullptr;
  }
  std::unique_ptr<Identity> opened(bool brand_new = false) {
    auto identity = decided(brand_new);
    const auto started = identity->start();
    EXPECT_TRUE(started.ok()) << started.error().message;
    return identity;
  }
  // A store that took writes, and was then closed.
  block::Generation closed_clean() {
    const auto identity = opened();
    write(*identity);
    identity->close();
    return identity->generation();
  }
  // A store that took writes, and whose server was killed.
  block::Generation killed() {
    const auto identity = opened();
    write(*identity);
    return identity->generation();
  }
  void write(Identity& identity) {
    EXPECT_TRUE(identity.begin_writes().ok());
    file_.write();
  }
  StoreRecord record() const {
    auto text = read_record_file(options_.record_path);
    EXPECT_TRUE(text.ok() && text.value().has_value());
    auto read = decode_store_record(text.value().value());
    EXPECT_TRUE(read.ok()) << read.error().message;
    return read.value();
  }
  size_t run_records() const {
    return fs::exists(run_folder()) ? static_cast<size_t>(std::distance(fs::directory_iterator(run_folder()), {})) : 0;
  }
  void expect_kept(const block::Generation& before, const char* what) {
    EXPECT_EQ(opened()->generation(), before) << what;
  }
  void expect_moved(const block::Generation& before, const char* what) {
    const auto now = opened()->generation();
    EXPECT_EQ(now.uuid, before.uuid) << what;
    EXPECT_EQ(now.counter, before.counter + 1) << what;
  }
  void expect_other(const block::Generation& before, const char* what) {
    EXPECT_NE(opened()->generation().uuid, before.uuid) << what;
  }

  std::string folder_;
  FakeFileState file_;
  IdentityOptions options_;
};

// --- What keeps the generation ---

TEST_F(IdentityTest, ACleanStopKeepsIt) {
  const auto before = closed_clean();
  expect_kept(before, "closed clean");
}

// The page cache outlives the process: nothing that was answered is lost.
TEST_F(IdentityTest, AKillOnTheSameBootKeepsIt) {
  const auto before = killed();
  EXPECT_FALSE(record().clean);
  expect_kept(before, "killed");
  expect_kept(before, "killed again, before it was written to");
}

// The record that a killed server has left goes when its store was deleted, and stays while the store is there or may be on
// a file system that is not mounted.
TEST_F(IdentityTest, TheRunRecordOfADeletedStoreGoesAtTheNextStart) {
  const auto other_opened = [&](const std::string& name) {
    options_.store = folder_ + "/" + name;
    options_.record_path = options_.store + ".netblk";
    return opened();
  };
  std::ofstream(folder_ + "/kept") << "there";
  std::ofstream(folder_ + "/deleted") << "there";
  fs::create_directory(folder_ + "/gone");
  std::ofstream(folder_ + "/gone/image") << "there";
  for (const char* name : {"kept", "deleted", "gone/image"}) other_opened(name);
  EXPECT_EQ(run_records(), 3u);
  fs::remove(folder_ + "/deleted");
  fs::remove_all(folder_ + "/gone");
  std::ofstream(run_folder() + "/store-of-another-kind") << "none of ours";
  std::ofstream(folder_ + "/new") << "there";
  const auto newer = other_opened("new");
  // that of the new store, the kept one, the one whose folder is away, and the foreign file
  EXPECT_EQ(run_records(), 4u);
  options_.store = folder_ + "/kept";
  options_.record_path = options_.store + ".netblk";
  expect_kept(decided()->generation(), "still there");
}

TEST_F(IdentityTest, AKillBeforeTheFirstWriteKeepsItEvenAfterAReboot) {
  const auto before = opened()->generation();
  options_.boot_id = "boot-2";
  fs::remove_all(run_folder());
  expect_kept(before, "nothing was written");
}

TEST_F(IdentityTest, ACleanStopKeepsItOverAReboot) {
  const auto before = closed_clean();
  options_.boot_id = "boot-2";
  file_.seen.device = 2065;  // disks are numbered in the order in which they are found
  file_.seen.disk_sequence = 1;
  expect_kept(before, "the machine was restarted in order");
}

TEST_F(IdentityTest, GrowingByTheOpeningKeepsIt) {
  const auto before = closed_clean();
  const auto identity = decided();
  file_.write();
  file_.seen.size_bytes *= 2;
  ASSERT_TRUE(identity->start().ok());
  EXPECT_EQ(identity->generation(), before);
  identity->close();
  expect_kept(before, "it was grown by its server");
}

TEST_F(IdentityTest, AResizeByItsServerKeepsIt) {
  const auto before = closed_clean();
  {
    const auto identity = opened();
    file_.write();
    file_.seen.size_bytes *= 2;
    identity->resized();
  }
  expect_kept(before, "killed after a resize, without a write");
}

// --- What moves it ---

// Defeats: a server that is not ours, or a person, writes into the file; the client takes its contents for its own.
TEST_F(IdentityTest, AChangeBehindItsBackMovesIt) {
  for (int what = 0; what < 3; ++what) {
    const auto before = closed_clean();
    if (what == 0) file_.seen.ctime_ns += 1;
    if (what == 1) file_.seen.size_bytes += 512;
    if (what == 2) file_.seen.inode += 1;
    expect_moved(before, "changed while it was closed");
    opened()->close();
  }
}

// Even where the volatile record of a killed server lies beside it: a clean record is exact.
TEST_F(IdentityTest, AChangeBehindAKilledServerThatHadNotWrittenMovesIt) {
  const auto before = opened()->generation();
  ASSERT_EQ(run_records(), 1u);
  file_.write();
  expect_moved(before, "changed after a kill");
}

// Defeats: the power fails, answered writes were in the page cache only.
TEST_F(IdentityTest, ACrashOfTheMachineMovesIt) {
  auto before = killed();
  options_.boot_id = "boot-2";
  expect_moved(before, "another boot, a volatile record that survived");
  before = killed();
  fs::remove_all(run_folder());
  expect_moved(before, "an empty /run");
}

// Defeats: the disk is pulled while the server is down, and comes back: same machine, no page cache.
TEST_F(IdentityTest, ADiskThatWasAwayMovesIt) {
  const auto before = killed();
  file_.seen.disk_sequence += 1;
  expect_moved(before, "another disk sequence");
}

TEST_F(IdentityTest, AnotherFileAfterAKillMovesIt) {
  auto before = killed();
  file_.seen.inode += 1;
  expect_moved(before, "another inode");
  before = killed();
  file_.seen.device += 1;
  expect_moved(before, "another device");
}

// Defeats: writeback failed after the kill; the kernel says so once, to the first who asks.
TEST_F(IdentityTest, ASyncThatFailsAtTheOpeningMovesIt) {
  const auto before = killed();
  file_.sync_error = EIO;
  expect_moved(before, "the first sync fails");
  EXPECT_FALSE(record().clean) << "it could not be synced";
}

// Defeats: a sync fails, the server is killed, the next one's sync succeeds about pages that were dropped.
TEST_F(IdentityTest, AFailedSyncMovesItBeforeAnybodyIsTold) {
  block::Generation before;
  {
    const auto identity = opened();
    write(*identity);
    before = identity->generation();
    identity->sync_failed();
    EXPECT_EQ(identity->generation().counter, before.counter + 1);
    EXPECT_EQ(record().counter, before.counter + 1);
    EXPECT_FALSE(record().clean);
    identity->sync_failed();
    EXPECT_EQ(identity->generation().counter, before.counter + 1) << "once is enough";
    identity->close();
    EXPECT_FALSE(record().clean) << "a store that lost data is not closed clean";
  }
  const auto after = opened()->generation();
  EXPECT_EQ(after.uuid, before.uuid);
  EXPECT_GT(after.counter, before.counter + 1);
  EXPECT_GT(file_.drops, 0) << "reads must ask the disk what it has";
}

// The same on a disk that takes no record any more: the volatile one has it.
TEST_F(IdentityTest, AFailedSyncIsRememberedWithoutADisk) {
  const auto identity = opened();
  write(*identity);
  const auto before = identity->generation();
  const std::string text = read_record_file(options_.record_path).value().value();
  identity->sync_failed();
  std::ofstream(options_.record_path, std::ios::trunc) << text;  // as if the disk had not taken it
  const auto after = opened()->generation();
  EXPECT_EQ(after.uuid, before.uuid);
  EXPECT_GT(after.counter, before.counter + 1) << "clients of the failing server saw that one";
}

TEST_F(IdentityTest, AFailedLastSyncMovesIt) {
  const auto identity = opened();
  write(*identity);
  const auto before = identity->generation();
  file_.sync_error = EIO;
  identity->close();
  EXPECT_FALSE(record().clean);
  file_.sync_error = 0;
  EXPECT_GT(opened()->generation().counter, before.counter);
}

// --- The order of things ---

// Defeats: a write is answered, the power fails, and the record still says that the old contents are all there is.
TEST_F(IdentityTest, CleanIsClearedBeforeTheFirstWrite) {
  const auto identity = opened();
  EXPECT_TRUE(record().clean);
  EXPECT_FALSE(identity->writes_begun());
  ASSERT_TRUE(identity->begin_writes().ok());
  EXPECT_FALSE(record().clean);
  EXPECT_TRUE(identity->writes_begun());
}

TEST_F(IdentityTest, NoWriteBeginsThatCannotBeRecorded) {
  const auto identity = opened();
  fs::create_directories(options_.record_path + ".new/x");
  EXPECT_FALSE(identity->begin_writes().ok());
  EXPECT_FALSE(identity->writes_begun());
  EXPECT_TRUE(record().clean);
  fs::remove_all(options_.record_path + ".new");
  EXPECT_TRUE(identity->begin_writes().ok()) << "the folder can be written again";
  EXPECT_FALSE(record().clean);
}

TEST_F(IdentityTest, TheMovedCounterIsDurableBeforeTheFirstClient) {
  const auto before = killed();
  fs::remove_all(run_folder());
  EXPECT_EQ(decided()->generation().counter, before.counter + 1);
  EXPECT_EQ(record().counter, before.counter) << "open() writes nothing";
  const auto identity = decided();
  ASSERT_TRUE(identity->start().ok());
  EXPECT_EQ(record().counter, before.counter + 1);
  EXPECT_EQ(identity->generation().counter, before.counter + 1);
}

TEST_F(IdentityTest, CloseSyncsBeforeItSaysClean) {
  const auto identity = opened();
  write(*identity);
  const int syncs = file_.syncs;
  identity->close();
  EXPECT_GT(file_.syncs, syncs);
  EXPECT_TRUE(record().clean);
  EXPECT_EQ(record().ctime_ns, file_.seen.ctime_ns);
  EXPECT_EQ(run_records(), 0u) << "what happens to a closed store is seen by the durable record alone";
}

// A close that could not be written down is a crash.
TEST_F(IdentityTest, ACloseThatCannotBeRecordedIsNoCleanOne) {
  const auto identity = opened();
  write(*identity);
  const auto before = identity->generation();
  fs::create_directories(options_.record_path + ".new/x");
  identity->close();
  fs::remove_all(options_.record_path + ".new");
  EXPECT_FALSE(record().clean);
  expect_kept(before, "the machine is still up");
}

// --- What the record itself suffers ---

// Defeats: a record that nobody can read lets a client go on with whatever is there.
TEST_F(IdentityTest, ADamagedRecordGivesANewUuid) {
  for (const char* text : {"", "garbage", "netblk store record 1\n"}) {
    const auto before = closed_clean();
    std::ofstream(options_.record_path, std::ios::trunc) << text;
    expect_other(before, text);
    opened()->close();
  }
  const auto before = closed_clean();
  std::ofstream(options_.record_path, std::ios::app) << std::string(2 << 20, 'x');
  expect_other(before, "longer than any record");
}

TEST_F(IdentityTest, AMissingRecordGivesANewUuid) {
  const auto before = closed_clean();
  fs::remove(options_.record_path);
  expect_other(before, "deleted");
}

// Defeats: the image is deleted and made anew, empty; the record of the old one lies there still.
TEST_F(IdentityTest, ANewFileIsAnotherStore) {
  const auto before = closed_clean();
  file_.seen.inode += 1;
  EXPECT_NE(opened(true)->generation().uuid, before.uuid);
}

TEST_F(IdentityTest, ARecordOfANewerVersionIsLeftAlone) {
  closed_clean();
  const std::string text = "netblk store record 2\nuuid of another kind\n";
  std::ofstream(options_.record_path, std::ios::trunc) << text;
  const auto refused = Identity::open(options_, std::make_unique<FakeMedium>(file_), false);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, EPROTONOSUPPORT);
  EXPECT_NE(refused.error().message.find(options_.record_path), std::string::npos);
  EXPECT_EQ(read_record_file(options_.record_path).value().value(), text);
}

// --- Where no record can be kept ---

TEST_F(IdentityTest, WithoutARecordItLivesAsLongAsTheProcess) {
  options_.record_path = folder_ + "/none/such/image.netblk";
  const auto first = opened();
  EXPECT_TRUE(first->writes_begun()) << "there is nothing to write down";
  EXPECT_TRUE(first->keep_owners({std::byte{1}}).ok());
  EXPECT_EQ(first->owners().size(), 1u);
  first->sync_failed();
  first->close();
  expect_other(first->generation(), "another process");
}

TEST_F(IdentityTest, AFolderThatWasAskedForMustWork) {
  options_.record_path = folder_ + "/none/such/image.netblk";
  options_.must_keep = true;
  const auto identity = decided();
  EXPECT_FALSE(identity->start().ok());
}

TEST_F(IdentityTest, WithoutAVolatileRecordAKillIsACrash) {
  std::ofstream(folder_ + "/file") << "x";
  options_.run_folders = {folder_ + "/file/below"};
  auto before = killed();
  expect_moved(before, "nobody knows whether the machine was up");
  opened()->close();
  before = closed_clean();
  expect_kept(before, "a clean stop needs none");
}

TEST_F(IdentityTest, TheNextFolderIsTakenForTheVolatileRecord) {
  std::ofstream(folder_ + "/file") << "x";
  options_.run_folders = {folder_ + "/file/below", folder_ + "/second"};
  const auto before = killed();
  expect_kept(before, "killed");
  EXPECT_TRUE(fs::exists(folder_ + "/second"));
}

// --- Readers ---

TEST_F(IdentityTest, ReadersWriteNothing) {
  options_.read_only = true;
  const auto before = opened()->generation();
  EXPECT_FALSE(fs::exists(options_.record_path));
  EXPECT_FALSE(fs::exists(run_folder()));
  expect_kept(before, "the same file, another process");
  file_.write();
  const auto changed = opened()->generation();
  EXPECT_EQ(changed.uuid, before.uuid);
  EXPECT_NE(changed.counter, before.counter) << "its contents are others";
  file_.seen.inode += 1;
  expect_other(before, "another file");
}

TEST_F(IdentityTest, ReadersKnowTheStoreByItsRecord) {
  const auto before = closed_clean();
  const std::string text = read_record_file(options_.record_path).value().value();
  options_.read_only = true;
  expect_kept(before, "served read-only");
  file_.write();
  expect_moved(before, "changed meanwhile");
  EXPECT_EQ(read_record_file(options_.record_path).value().value(), text);
}

// --- Owners ---

// Defeats: a client that was fenced away comes back after a restart of the server.
TEST_F(IdentityTest, OwnersAreDurable) {
  const std::vector<std::byte> owners{std::byte{1}, std::byte{0}, std::byte{255}};
  {
    const auto identity = opened();
    EXPECT_TRUE(identity->owners().empty());
    ASSERT_TRUE(identity->keep_owners(owners).ok());
    EXPECT_TRUE(record().clean) << "no write was taken";
  }
  EXPECT_EQ(opened()->owners(), owners) << "killed";
  const auto before = killed();
  EXPECT_EQ(record().owners, owners);
  fs::remove_all(run_folder());
  const auto identity = opened();
  EXPECT_EQ(identity->generation().counter, before.counter + 1);
  EXPECT_EQ(identity->owners(), owners) << "the machine crashed";
  ASSERT_TRUE(identity->keep_owners({}).ok());
  EXPECT_TRUE(record().owners.empty());
}

TEST_F(IdentityTest, OwnersThatCannotBeKeptAreRefused) {
  const auto identity = opened();
  ASSERT_TRUE(identity->keep_owners({std::byte{1}}).ok());
  fs::create_directories(options_.record_path + ".new/x");
  EXPECT_FALSE(identity->keep_owners({std::byte{2}}).ok());
  EXPECT_EQ(identity->owners(), std::vector<std::byte>{std::byte{1}});
}

// --- Block devices ---

TEST_F(IdentityTest, ADiskWithANameIsThatDisk) {
  file_.seen = {.inode = 0, .device = 2048, .disk_sequence = 3, .size_bytes = 1 << 20, .ctime_ns = 0, .birth_ns = 0,
                .name = "device/serial=ABC", .is_block_device = true};
  const auto before = closed_clean();
  options_.boot_id = "boot-2";
  file_.seen.device = 2064;
  expect_kept(before, "found in another order");
  opened()->close();
  // Defeats: another disk has the device's number, and a client goes on writing to it.
  file_.seen.name = "device/serial=XYZ";
  expect_other(before, "another disk");
}

TEST_F(IdentityTest, ADiskWithoutANameIsKnownUntilTheMachineStartsAnew) {
  file_.seen = {.inode = 0, .device = 2048, .disk_sequence = 3, .size_bytes = 1 << 20, .ctime_ns = 0, .birth_ns = 0,
                .name = "", .is_block_device = true};
  const auto before = closed_clean();
  expect_kept(before, "the same boot");
  opened()->close();
  options_.boot_id = "boot-2";
  expect_moved(before, "who knows which disk it is");
}

}  // namespace
}  // namespace netblk::store
