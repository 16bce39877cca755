#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""Breaks one rule of the volume's engine at a time, and runs its simulator until a seed fails.

    tests/sim/volume/mutants.py [--build DIR] [--seeds N] [--full] [NAME...]

As tests/sim/mutants.py, which has the machinery. The first tier tries some of them, --full (or NETBLK_FULL=1) all.
"""
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import mutants

MUTANTS = {
    name: (f"src/store/volume/{source}", f"src/store/volume/{source}", *rest) for name, (source, *rest) in {
        # A flush is answered without a sync.
        "flush-without-sync": ("log.cc", "const int32_t result = co_await datasync(loop, *core.file);", "const int32_t result = 0;"),
        # A superblock leads to what is not durable.
        "superblock-before-its-manifest": ("checkpoint.cc", "int error = co_await sync(loop);", "int error = 0;"),
        # Records of another opening, or of a log that went another way, are taken for the next.
        "any-record-is-the-next": ("recovery.cc", "header->chain != at_.chain || header->incarnation != at_.incarnation ||", ""),
        # A record counts though its blocks are torn.
        "torn-blocks-count": ("recovery.cc", "if (!payload_passes(*header, core_.sums, payload)) {", "if (at_.next_lsn == 0) {"),
        # A request counts in part.
        "half-a-request-counts": ("recovery.cc", "return (sequence_.back().header.flags & kFlagContinued) != 0 || apply();",
                                  "return apply();"),
        # A read believes the disk.
        "reads-are-not-compared": ("reader.cc", "!= header->sums[index + i]) return block;", "== 0 && index > 99) return block;"),
        # A snapshot is answered before it is durable.
        "snapshot-without-sync": ("log.cc", "const int error = co_await sync(loop);", "const int error = 0;"),
        # A merge forgets what only this reads.
        "clones-keep-nothing": ("points.cc", "if (branch.parent.branch != 0) all.emplace_back(branch.parent.branch, branch.parent.lsn);", "",
                                "whole"),
        "snapshots-keep-nothing": ("points.cc", "for (const SnapshotInfo& snapshot : snapshots_) all.emplace_back(snapshot.point.branch, "
                                   "snapshot.point.lsn);", "", "whole"),
        "the-history-keeps-nothing": ("points.cc", "retention.history_from_ = history_from_;", "", "whole"),
        "rewinds-keep-nothing": ("points.cc", "era.base = timeline(branch, branch.rewinds[i - 1].target);", "", "whole"),
        # A clone sees what its parent's branch becomes.
        "clones-follow-their-parent": ("points.cc", ".intervals = timeline(*branch, point.lsn)",
                                       ".intervals = timeline(*branch, view.layers.empty() ? point.lsn : kForever)", "whole"),
        "what-others-need-goes": ("points.cc", "if (branch.parent.branch == number) {", "if (branch.parent.branch == number && number == 0) {",
                                  "whole"),
        "moments-have-the-size-of-now": ("points.cc", "if (resized.record > point.lsn) return resized.before_bytes;", "", "whole"),
        # What a disk had behind its end comes back when it grows.
        "shrinking-keeps-what-is-behind": ("volume_points.cc", "if (size_bytes < had) error = co_await trim(head, size_bytes, had);", "",
                                           "whole"),
        # After a crash the counter has a value that somebody was told before.
        "rewinds-are-not-counted": ("open_volume.cc", "replayed_.rewinds + (may_have_lost()", "(may_have_lost()", "whole"),
        # The collector. The index leads to copies that nobody has written.
        "copies-are-not-written": ("collector.cc", "const int error = co_await write_bytes(loop_, *core_.file, out_, at_);",
                                   "const int error = 0;"),
        # A block that is moved hides what was written after it.
        "copies-are-the-newest": ("table.cc", "versions_.insert(at, version);", "versions_.insert(versions_.begin(), version);"),
        # Somebody still reads the last block of a segment.
        "a-segment-with-one-block-left-leaves": ("segments.cc", "if (slot.info.live_bytes > 0 || i == filled.log",
                                                 "if (slot.info.live_bytes > kBlockBytes || i == filled.log"),
        # A receiver. Records that are missing, or out of order, are not.
        "records-need-no-order": ("stream.cc", "if (load_le<uint64_t>(bytes.data() + kNumber) != number_)", "if (number_ == 0)", "whole"),
        # It goes on behind what it has not got.
        "more-is-kept-than-has-come": ("points.cc", "receiving_->offset = std::max(receiving_->offset, change.receiving.offset);",
                                       "receiving_->offset = receiving_->what.size_bytes;", "whole"),
        # Half of it is seen.
        "what-comes-is-shown-at-once": ("volume_points.cc", "if (point == Point{.branch = kHeadBranch, .lsn = kForever} && points.receiving()) {",
                                        "if (point.branch == 0 && points.receiving()) {", "whole"),
        "what-was-given-up-stays": ("points.cc", "head->rewinds.push_back({.record = at.lsn, .target = receiving_->base_lsn});", "", "whole"),
        # Its end is answered before it is durable.
        "receives-without-sync": ("log.cc", "const int error = co_await sync(loop);\n  if (error != 0) co_return make_error(error, \"it could not",
                                  "int error = 0;\n  if (what.kind != ChangeKind::kReceive) error = co_await sync(loop);\n"
                                  "  if (error != 0) co_return make_error(error, \"it could not", "whole"),
        # Changes are gone, and nobody is told.
        "the-generation-stays": ("open_volume.cc", "replayed_.rewinds + (may_have_lost() ? 1u : 0u)", "replayed_.rewinds"),
    }.items()
}

# What takes long to build or to be noticed, or is much like another one.
REST = {"snapshots-keep-nothing", "the-history-keeps-nothing", "rewinds-keep-nothing", "clones-follow-their-parent",
        "what-others-need-goes", "moments-have-the-size-of-now", "records-need-no-order"}

if __name__ == "__main__":
    sys.exit(mutants.run("netblk_volume_sim", MUTANTS, "volume-sim-mutants", 1000, __doc__, REST))
