// SPDX-License-Identifier: GPL-2.0-only
#include "store/volume/tree.h"

#include <algorithm>
#include <array>
#include <cerrno>

#include "base/check.h"

namespace netblk::store::volume {
namespace {

// Extents that a look may see for each that it may find.
constexpr size_t kSeenForEach = 4;

Key key_at(const Page& page, uint32_t at) {
  return page.header.level == 0 ? key_of(page.entry(at)) : key_of(page.child(at));
}

// The first of [from, the end) whose key is not less; the number of entries if there is none.
uint32_t lower_bound(const Page& page, const Key& key, uint32_t from = 0) {
  uint32_t until = page.header.entries;
  while (from < until) {
    const uint32_t middle = from + (until - from) / 2;
    if (key_at(page, middle) < key) {
      from = middle + 1;
    } else {
      until = middle;
    }
  }
  return from;
}

// A place among the entries of a tree. Each step that returns false met a page that is not in memory; then the walk is over.
class Walk {
 public:
  Walk(Pages& pages, const IndexRoot& root) : pages_(pages), root_(ref_of(root)) {}

  // To the first entry that is not less than the key.
  bool seek(const Key& key) {
    depth_ = 0;
    end_ = false;
    PageRef ref = root_;
    for (;;) {
      PagePtr page = pages_.find(ref);
      if (page == nullptr) return false;
      uint32_t at = lower_bound(*page, key);
      if (ref.level != 0 && (at == page->header.entries || !(key_at(*page, at) == key)) && at != 0) --at;
      path_[depth_++] = {page, at};
      if (ref.level == 0) break;
      ref = ref_of(page->child(at), static_cast<uint16_t>(ref.level - 1));
    }
    return at_entry() || next_leaf();
  }

  // As seek(), to an entry that is not before this one.
  bool skip_to(const Key& key) {
    Step& leaf = path_[depth_ - 1];
    const uint32_t last = leaf.page->header.entries - 1;
    if (key_at(*leaf.page, last) < key) return seek(key);
    leaf.at = lower_bound(*leaf.page, key, leaf.at);
    return true;
  }

  bool end() const { return end_; }
  Entry entry() const { return path_[depth_ - 1].page->entry(path_[depth_ - 1].at); }

  // The entry before this one, if there is one.
  bool peek_previous(std::optional<Entry>& previous) {
    previous.reset();
    size_t depth = depth_;
    while (depth != 0 && path_[depth - 1].at == 0) --depth;
    if (depth == 0) return true;
    PagePtr page = path_[depth - 1].page;
    uint32_t at = path_[depth - 1].at - 1;
    while (page->header.level != 0) {
      page = pages_.find(ref_of(page->child(at), static_cast<uint16_t>(page->header.level - 1)));
      if (page == nullptr) return false;
      at = page->header.entries - 1u;
    }
    previous = page->entry(at);
    return true;
  }

 private:
  struct Step {
    PagePtr page;
    uint32_t at = 0;
  };

  bool at_entry() const { return path_[depth_ - 1].at < path_[depth_ - 1].page->header.entries; }

  // From behind the last entry of a leaf to the first of the next one. Behind the last leaf it stays where it is.
  bool next_leaf() {
    size_t depth = depth_ - 1;
    while (depth != 0 && path_[depth - 1].at + 1 == path_[depth - 1].page->header.entries) --depth;
    if (depth == 0) {
      end_ = true;
      return true;
    }
    ++path_[depth - 1].at;
    for (; path_[depth - 1].page->header.level != 0; ++depth) {
      const Page& page = *path_[depth - 1].page;
      PagePtr child = pages_.find(ref_of(page.child(path_[depth - 1].at), static_cast<uint16_t>(page.header.level - 1)));
      if (child == nullptr) return false;
      path_[depth] = {std::move(child), 0};
    }
    return true;
  }

  Pages& pages_;
  const PageRef root_;
  std::array<Step, kMaxTreeLevel + 1> path_;
  size_t depth_ = 0;
  bool end_ = false;
};

// To the version that the layer reads of the extent that begins at `block`, where the walk stands; `there`: it has one. False:
// a page is missing.
bool choose(Walk& walk, const Layer& layer, uint64_t block, bool& there) {
  there = false;
  for (auto interval = layer.intervals.rbegin(); interval != layer.intervals.rend(); ++interval) {
    if (!walk.skip_to({layer.branch, block, interval->until})) return false;
    if (walk.end()) return true;
    const Entry entry = walk.entry();
    if (entry.branch != layer.branch || entry.block != block) return true;
    if (entry.lsn > interval->above) {
      there = true;
      return true;
    }
  }
  return true;
}

}  // namespace

PageRef ref_of(const IndexRoot& root) {
  return {.offset = root.offset, .crc = root.crc, .level = static_cast<uint16_t>(root.level), .first = std::nullopt};
}

PageRef ref_of(const Child& child, uint16_t level) {
  return {.offset = child.offset, .crc = child.crc, .level = level, .first = key_of(child)};
}

// --- A page ---------------------------------------------------------------------------------------------------------

namespace {

bool entry_passes(const Entry& entry) {
  if (entry.blocks == 0 || entry.lsn == 0 || end_of(entry) < entry.block) return false;
  if (Place::is_data(entry.place))
    return Place::index(entry.place) + uint64_t{entry.blocks} <= Place::record_blocks(entry.place) &&
           Place::stored_units(entry.place) * kUnitBytes <= most_compressed_bytes(Place::record_blocks(entry.place));
  return (entry.place & (Place::kHole | Place::kZero)) != (Place::kHole | Place::kZero);
}

bool child_passes(const Child& child) {
  return child.blocks != 0 && child.block + child.blocks > child.block && child.offset % kPageBytes == 0 &&
         child.offset >= kSegmentsAt;
}

// Whether `next` may stand behind `entry`.
bool in_order(const Entry& entry, const Entry& next) {
  if (!(key_of(entry) < key_of(next))) return false;
  if (position_of(entry) == position_of(next)) return entry.blocks == next.blocks;
  return entry.branch != next.branch || end_of(entry) <= next.block;
}

bool contents_pass(const Page& page) {
  for (uint32_t at = 0; at < page.header.entries; ++at) {
    if (page.header.level == 0) {
      if (!entry_passes(page.entry(at))) return false;
      if (at != 0 && !in_order(page.entry(at - 1), page.entry(at))) return false;
    } else {
      if (!child_passes(page.child(at))) return false;
      if (at != 0 && !(key_of(page.child(at - 1)) < key_of(page.child(at)))) return false;
    }
  }
  return true;
}

}  // namespace

Result<PagePtr> parse_page(const PageRef& ref, const Sums& sums, std::span<const std::byte> bytes, const MetadataCipher* cipher) {
  NETBLK_CHECK(bytes.size() == kPageBytes, "a page is 4,096 bytes");
  const auto bad = [&](const char* what) {
    return make_error(EIO, "index page at {} is damaged ({}): what is below it cannot be read", ref.offset, what);
  };
  const auto page = std::make_shared<Page>();
  std::copy(bytes.begin(), bytes.end(), page->bytes.begin());
  const auto header = check_page(ref.offset, sums, page->bytes, cipher);
  if (!header) return bad("its sum is wrong");
  page->header = *header;
  if (header->crc != ref.crc) return bad("it is another than its parent names");
  if (header->level != ref.level || header->level > kMaxTreeLevel) return bad("its level is not what its parent says");
  if (header->entries == 0) return bad("it is empty");
  if (!contents_pass(*page)) return bad("its entries are out of order or range");
  if (ref.first && !(key_at(*page, 0) == *ref.first)) return bad("it does not begin where its parent says");
  return PagePtr(page);
}

PagePtr Pages::find(const PageRef& ref) {
  for (const auto& [offset, page] : pinned_) {
    if (offset == ref.offset && page->header.crc == ref.crc) return page;
  }
  PagePtr page = cache_.find(ref.offset, ref.crc);
  if (page == nullptr) missing_ = ref;
  return page;
}

coro::Task<Result<PagePtr>> Tree::fetch(io::Loop& loop, PageRef ref, bool keep) {
  if (PagePtr page = cache_.find(ref.offset, ref.crc)) co_return page;
  std::array<std::byte, kPageBytes> bytes;
  const Status status = co_await store_.read(loop, ref.offset, bytes);
  if (!status.ok()) {
    co_return make_error(status.error().code, "index page at {}: {}", ref.offset, status.error().message);
  }
  Result<PagePtr> page = parse_page(ref, sums_, bytes, cipher_);
  if (page.ok() && keep) cache_.put(ref.offset, page.value());
  co_return page;
}

// --- Looking --------------------------------------------------------------------------------------------------------

std::optional<Found> Tree::find(const IndexRoot& root, const Layer& layer, uint64_t block, uint64_t until, size_t limit,
                                Pages& pages) const {
  Found found;
  found.until = until;
  if (root.offset == 0) return found;
  Walk walk(pages, root);
  if (!walk.seek({layer.branch, block, kForever})) return std::nullopt;
  // An extent that began before may reach into the range. Its versions may begin in a page before this one.
  std::optional<Entry> previous;
  if (!walk.peek_previous(previous)) return std::nullopt;
  if (previous && previous->branch == layer.branch && end_of(*previous) > block) {
    if (!walk.seek({layer.branch, previous->block, kForever})) return std::nullopt;
  }
  // What other points read, and this one does not, is passed by; but not for ever in one look, which a missing page begins anew.
  size_t seen = 0;
  while (!walk.end()) {
    const Entry first = walk.entry();
    if (first.branch != layer.branch || first.block >= until) break;
    if (seen++ == limit * kSeenForEach) {
      found.until = first.block;
      break;
    }
    bool there = false;
    if (!choose(walk, layer, first.block, there)) return std::nullopt;
    if (there) {
      if (found.entries.size() == limit) {
        found.until = std::max(block, first.block);
        break;
      }
      const Entry entry = walk.entry();
      found.entries.push_back(part_of(entry, std::max(block, entry.block), std::min(until, end_of(entry))));
    }
    if (walk.end()) break;
    if (!walk.skip_to({layer.branch, first.block + 1, kForever})) return std::nullopt;
  }
  return found;
}

namespace {

// How many of the page's entries begin at the block, or before it.
template <class Part>
uint32_t entries_upto(const Page& page, const Position& position, Part part) {
  uint32_t from = 0, until = page.header.entries;
  while (from < until) {
    const uint32_t middle = from + (until - from) / 2;
    if (position < position_of(part(page, middle))) {
      until = middle;
    } else {
      from = middle + 1;
    }
  }
  return from;
}

}  // namespace

Tree::Glance Tree::glance(const IndexRoot& root, const Layer& layer, uint64_t block, Entry& found) {
  if (root.offset == 0) return Glance::kNothing;
  const Position wanted{layer.branch, block};
  PageCache::Hold hold(cache_);
  const Page* page = hold.find(root.offset, root.crc);
  for (uint32_t level = root.level; page != nullptr && level != 0; --level) {
    const uint32_t upto = entries_upto(*page, wanted, [](const Page& of, uint32_t at) { return of.child(at); });
    if (upto == 0) return Glance::kNothing;
    const Child child = page->child(upto - 1);
    page = hold.find(child.offset, child.crc);
  }
  if (page == nullptr) return Glance::kUnknown;
  const uint32_t upto = entries_upto(*page, wanted, [](const Page& of, uint32_t at) { return of.entry(at); });
  if (upto == 0) return root.level == 0 ? Glance::kNothing : Glance::kUnknown;
  // The extent's oldest version. Newer ones stand in front of it, perhaps in the page before.
  const Entry entry = page->entry(upto - 1);
  if (entry.branch != layer.branch || end_of(entry) <= block) return Glance::kNothing;
  if (upto == 1 ? root.level != 0 : position_of(page->entry(upto - 2)) == position_of(entry)) return Glance::kUnknown;
  const bool counts = std::any_of(layer.intervals.begin(), layer.intervals.end(), [&](const Interval& interval) {
    return interval.above < entry.lsn && entry.lsn <= interval.until;
  });
  if (!counts) return Glance::kNothing;
  found = part_of(entry, block, block + 1);
  return Glance::kFound;
}

coro::Task<Status> Tree::scan(io::Loop& loop, IndexRoot root, Visitor& visitor) {
  if (root.offset == 0) co_return Ok{};
  Status status = co_await scan_page(loop, ref_of(root), visitor);
  co_return status;
}

coro::Task<Status> Tree::scan_page(io::Loop& loop, PageRef ref, Visitor& visitor) {
  const Result<PagePtr> fetched = co_await fetch(loop, ref, false);
  if (!fetched.ok()) {
    visitor.damaged(ref, fetched.error());
    co_return Ok{};
  }
  const Page& page = *fetched.value();
  visitor.page(ref.offset, ref.level);
  if (ref.level == 0) {
    std::vector<Entry> entries;
    for (uint32_t at = 0; at < page.header.entries; ++at) entries.push_back(page.entry(at));
    Status status = co_await visitor.entries(entries);
    co_return status;
  }
  for (uint32_t at = 0; at < page.header.entries; ++at) {
    Status status = co_await scan_page(loop, ref_of(page.child(at), static_cast<uint16_t>(ref.level - 1)), visitor);  // NOLINT
    if (!status.ok()) co_return status;
  }
  co_return Ok{};
}

}  // namespace netblk::store::volume
