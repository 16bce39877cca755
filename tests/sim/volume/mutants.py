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
        # Changes are gone, and nobody is told.
        "the-generation-stays": ("open_volume.cc", "replayed_.rewinds + (may_have_lost() ? 1u : 0u)", "replayed_.rewinds"),
    }.items()
}

# What takes long to build or to be noticed, or is much like another one.
REST = {"snapshots-keep-nothing", "the-history-keeps-nothing", "rewinds-keep-nothing", "clones-follow-their-parent",
        "what-others-need-goes", "moments-have-the-size-of-now"}

if __name__ == "__main__":
    sys.exit(mutants.run("netblk_volume_sim", MUTANTS, "volume-sim-mutants", 1000, __doc__, REST))
