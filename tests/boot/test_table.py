#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""/etc/netblktab: what a line may say, what `netblk table`, `attach` and `detach` do with it, and the units that the
generator makes of it, letter by letter."""

import json
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "errors"))
import suite
from command import refused, run
from suite import check, check_eq, test

GENERATOR = os.environ.get("NETBLK_GENERATOR") or str(suite.ROOT / "build/output/netblk-generator")


def table(t, text, name="netblktab"):
    path = t.tmp / name
    path.write_text(text)
    return path


def rows(t, text):
    out, _ = run(t, "table", "--table", table(t, text), "--json")
    return json.loads(out)


@test
def test_comments_quotes_and_escapes(t):
    found = rows(t, "# a comment\n\n   \t\n a\tnetblk://192.0.2.7   # behind it\n"
                    "'b' \"netblk://192.0.2.7/x\" \"nofail,noauto\"\n"
                    "c file:/srv/with\\040blank _netdev\n"
                    "d 'file:/srv/with blank'\n"
                    "e vol:/srv/volume@monday?trace=-\n"
                    "f mem:4M defaults,,auto,rw\r\n")
    check_eq([(row["name"], row["source"], row["when"], row["network"]) for row in found], [
        ("a", "netblk://192.0.2.7:10809", "auto", True),
        ("b", "netblk://192.0.2.7:10809/x", "noauto", True),
        ("c", "file:/srv/with blank", "auto", True),
        ("d", "file:/srv/with blank", "auto", False),
        ("e", "vol:/srv/volume@monday?trace=-", "auto", False),
        ("f", "mem:4M", "auto", False)], "rows")


@test
def test_every_option(t):
    found = rows(t, "a netblk://192.0.2.7/x via=netblk,size=10G,timeout=2.5,connections=4,device=netblk-3,shared,nofail,wait=0\n"
                    "b nbd://192.0.2.7/x via=fuse,reconnect=trust,read-only,noauto,timeout=0\n"
                    "c netblk://192.0.2.7/y takeover,initramfs,size=64M,connections=2\n"
                    "d nbd+unix:///x?socket=/run/nbd.sock via=nbd,ro\n")
    check_eq([(row["name"], row["via"], row["when"], row["wait_s"], row["network"], row["line"], row["device"]) for row in found],
             [("a", "netblk", "nofail", 0, True, 1, ""), ("b", "fuse", "noauto", 60, True, 2, ""),
              ("c", "auto", "initramfs", 60, True, 3, ""), ("d", "nbd", "auto", 60, False, 4, "")], "rows")


WRONG = [
    ("a", "has no source"),
    ("a b", "no URI"),
    ("a netblk://h x y", "one word too many"),
    (".a netblk://h", "is no name"),
    ("-a netblk://h", "no dash"),
    ("--all netblk://h", "no dash"),
    ("a/b netblk://h", "is no name"),
    ("a" * 65 + " netblk://h", "is no name"),
    ("a netblk://h wiat=1", "no option 'wiat=1'"),
    ("a netblk://h nofial", "no option 'nofial'"),
    ("a netblk://h timeout", "no option 'timeout'"),
    ("a netblk://h nofail=1", "no option 'nofail=1'"),
    ("a netblk://h timeout=1e3", "0.001 to 3600"),
    ("a netblk://h timeout=-1", "0.001 to 3600"),
    ("a netblk://h timeout=nan", "0.001 to 3600"),
    ("a netblk://h timeout=", "0.001 to 3600"),
    ("a netblk://h wait=86401", "0 to 86400"),
    ("a netblk://h connections=0", "1 to 16"),
    ("a netblk://h connections=17", "1 to 16"),
    ("a netblk://h size=0", "multiple of 512"),
    ("a netblk://h size=513", "multiple of 512"),
    ("a netblk://h via=rbd", "via=auto"),
    ("a netblk://h device=", "device=netblk-1"),
    ("a nbd://h reconnect=maybe", "reconnect=lost"),
    ("a netblk://h reconnect=lost", "leave it out"),
    ("a netblk://h ro,shared", "leave one of them out"),
    ("a nbd://h takeover", "only netblk/2 has owners"),
    ("a mem:4M via=netblk", "netblk:// only"),
    ("a file:disk.img", "write whole paths"),
    ("a file:%2e/disk.img", "write whole paths"),
    ("a vol:volume@monday", "write whole paths"),
    ("a file:/srv/disk.img?overlay=changes", "write whole paths"),
    ("a mem:4M?rate=1M&trace=trace.csv", "write whole paths"),
    ("a \"netblk://h", "quote is not closed"),
    ("a 'netblk://h", "quote is not closed"),
    ("a netblk://h\0", "zero byte"),
    ("a netblk://h initramfs", "no IPv4 address"),
    ("a nbd://192.0.2.7 initramfs", "takes netblk://"),
    ("a netblk://192.0.2.7 initramfs,via=fuse", "takes netblk://"),
    ("a netblk://192.0.2.7 initramfs,device=netblk-1", "leave device= out"),
    ("a netblk://192.0.2.7 initramfs,timeout=601", "600 at most"),
    ("a netblk://192.0.2.7 initramfs,size=512", "whole MiB"),
    ("a netblk://192.0.2.7/a%20b initramfs", "give the export a name"),
]


@test
def test_wrong_lines_are_told_by_number(t):
    """Each with its file and line, and what is right besides it counts."""
    text = "".join(line + "\n" for line, _ in WRONG) + "right netblk://192.0.2.7/x\n"
    path = table(t, text)
    out, err = run(t, "table", "--table", path, "--json", status=1)
    check_eq([row["name"] for row in json.loads(out)], ["right"], "what is right")
    lines = err.splitlines()
    check_eq(len(lines), len(WRONG), "messages")
    for number, ((line, words), said) in enumerate(zip(WRONG, lines), 1):
        check(said.startswith(f"netblk: {path}:{number}: ") and words in said, f"of {line!r} it says {said!r}, not {words!r}")


@test
def test_a_name_is_taken_once(t):
    _, err = run(t, "table", "--table", table(t, "a netblk://h\n#\na netblk://g\n"), status=1)
    check(":3: the name a is taken by line 1" in err, err)


@test
def test_long_and_binary_tables(t):
    run(t, "table", "--table", table(t, ""))
    _, err = run(t, "table", "--table", table(t, "#" * (1 << 20) + "\n"), status=1)
    check("longer than 1 MiB" in err, err)
    path = t.tmp / "bytes"
    path.write_bytes(bytes(range(256)) * 64)
    _, err = run(t, "table", "--table", path, status=1)
    check("zero byte" in err, err)
    refused(t, "table", "--table", t.tmp / "nothing", words="netblktab(5)")


@test
def test_lines_for_the_initramfs(t):
    out, _ = run(t, "table", "--initramfs", "--table",
                 table(t, "a netblk://192.0.2.7/root initramfs,timeout=2.5,connections=2,size=1G,wait=5\nb netblk://192.0.2.8\n"
                          "c netblk://192.0.2.9:10810 initramfs,read-only\n"))
    lines = out.decode().splitlines()
    ids = [line.rpartition(",client-id=")[2] for line in lines]
    check_eq([line.rpartition(",client-id=")[0] for line in lines],
             ["a=netblk://192.0.2.7:10809/root,size=1024M,timeout=2.5,connections=2,wait=5", "c=netblk://192.0.2.9:10810,read-only"], "lines")
    check(all(len(one) == 32 for one in ids) and len(set(ids)) == 2, f"ids {ids}")


@test
def test_commands_that_mean_nothing(t):
    # a name that no disk of this machine has: `detach --all` is no dry run
    path = table(t, "netblk-test-noauto mem:4M noauto\n")
    refused(t, "attach", "b", "--table", path, words=("no disk 'b'", "netblk table"))
    refused(t, "attach", "netblk-test-noauto", "--table", path, "--size", "4M", words="the only option is --table", status=2)
    refused(t, "attach", "--all", "mem:4M", "--table", path, words="leave the SOURCE out", status=2)
    refused(t, "attach", "--all", "--read-only", "--table", path, words="the only option is --table", status=2)
    refused(t, "detach", "--table", path, words="DEVICE is missing", status=2)
    refused(t, "detach", "--all", "a", "--table", path, words="leave the DEVICE out", status=2)
    refused(t, "detach", "--wait", "-1", "a", status=2)
    for name in (".a", "-a", "--all", "a/b"):
        refused(t, "attach", f"--name={name}", "mem:4M", words=(f"--name {name}: ", "no dot and no dash"), status=2)
    out, err = run(t, "attach", "--all", "--table", path)
    check_eq((out, err), (b"", ""), "nothing is attached that is noauto")
    run(t, "detach", "--all", "--table", path)


@test
def test_a_name_that_is_not_known_yet_is_tried_again(t):
    """Its name server may come later, as a server may."""
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        raise suite.Skip("no root, or no FUSE")
    path = table(t, "netblk-test-nobody netblk://no..such..host/x via=fuse,wait=1\n")
    _, err = run(t, "attach", "netblk-test-nobody", "--table", path, status=1)
    check(err.count("cannot resolve host no..such..host") == 2 and "; trying for 1 s\n" in err, err)


def generated(t, text, fstab="", status=0):
    """{path: text, or '-> where'} of what the generator makes, and its words."""
    if not os.access(GENERATOR, os.X_OK):
        raise suite.Skip(f"no generator at {GENERATOR}")
    folder = t.tmp / "units"
    folder.mkdir()
    done = subprocess.run([GENERATOR, folder], env={**os.environ, "NETBLK_TABLE": str(table(t, text)), "NETBLK_FSTAB": str(table(t, fstab, "fstab"))},
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60 * suite.TIME_SCALE, check=False)
    check_eq((done.returncode, done.stdout), (status, ""), f"status and output; {done.stderr}")
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            files[path.relative_to(folder).as_posix()] = f"-> {os.readlink(path)}"
        elif path.is_file():
            files[path.relative_to(folder).as_posix()] = "".join(path.read_text().splitlines(keepends=True)[1:]).replace(str(t.tmp), "TMP")
    return files, done.stderr.replace(str(t.tmp), "TMP")


def disk(name, part=""):
    return "dev-netblk\\x2dby\\x2dname-" + (name + part).replace("-", "\\x2d")


@test
def test_units_of_a_disk_of_the_network(t):
    files, said = generated(t, "my-disk netblk://192.0.2.7/x wait=10\n",
                            "/dev/netblk-by-name/my-disk-part1 /srv/data ext4 _netdev,noatime 0 2\n"
                            "/dev/netblk-by-name/my-disk-part2 none swap _netdev 0 0\n"
                            "/dev/netblk-by-name/my-disk-partial /no ext4 defaults 0 0\n"
                            "/dev/netblk-by-name/my-disk2 /no ext4 defaults 0 0\n")
    check_eq(said, "", "words")
    unit, whole, one, two = "netblk@my-disk.service", disk("my-disk"), disk("my-disk", "-part1"), disk("my-disk", "-part2")
    device = "[Unit]\nJobRunningTimeoutSec=100\n"
    check_eq(files, {
        f"{unit}.d/50-netblktab.conf":
            "[Unit]\nSourcePath=TMP/netblktab\n"
            "Wants=network-online.target\nAfter=network-online.target network.target\n"
            "Wants=remote-fs-pre.target\nBefore=remote-fs-pre.target\nBefore=remote-fs.target\n"
            f"Before=srv-data.mount\nBefore={two}.swap\n"
            f"Wants=blockdev@{whole}.target\nBefore=blockdev@{whole}.target\n"
            f"Wants=blockdev@{one}.target\nBefore=blockdev@{one}.target\n"
            f"Wants=blockdev@{two}.target\nBefore=blockdev@{two}.target\n",
        f"remote-fs.target.requires/{unit}": f"-> ../{unit}",
        **{f"{name}.device.requires/{unit}": f"-> ../{unit}" for name in (whole, one, two)},
        **{f"{name}.device.d/40-netblktab.conf": device for name in (whole, one, two)},
    }, "units")


@test
def test_units_of_nofail_and_noauto(t):
    files, _ = generated(t, "a netblk://192.0.2.7/x nofail\nb netblk://192.0.2.7/y noauto\n")
    check_eq(files["netblk@a.service.d/50-netblktab.conf"],
             "[Unit]\nSourcePath=TMP/netblktab\nWants=network-online.target\nAfter=network-online.target network.target\n"
             f"Wants=blockdev@{disk('a')}.target\nBefore=blockdev@{disk('a')}.target\n", "nofail waits for nobody and nobody for it")
    check("remote-fs.target.wants/netblk@a.service" in files, "nofail is wanted, not required")
    check("Before=remote-fs.target" not in files["netblk@b.service.d/50-netblktab.conf"], "noauto")
    check(not any("target" in path and "netblk@b" in path for path in files), "no target wants what is noauto")
    check(f"{disk('b')}.device.requires/netblk@b.service" in files, "who mounts it has it attached")


@test
def test_units_of_a_local_store(t):
    files, said = generated(t, "a file:/srv/disk.img?size=1G via=fuse\n", "/dev/netblk-by-name/a /a ext4 defaults 0 0\n")
    check_eq(said, "", "a local disk needs no _netdev")
    check_eq(files["netblk@a.service.d/50-netblktab.conf"],
             f"[Unit]\nSourcePath=TMP/netblktab\nRequiresMountsFor=\"/srv/disk.img\"\nBefore=a.mount\n"
             f"Wants=blockdev@{disk('a')}.target\nBefore=blockdev@{disk('a')}.target\n", "no network, but its file system")
    check("local-fs.target.wants/netblk@a.service" in files, "wanted by local-fs.target")


@test
def test_what_a_store_is_on_is_mounted_first_whatever_its_path(t):
    """As the words of a unit file, and its specifiers, have it."""
    stores = {
        "'file:/srv/with blank.img'": '"/srv/with blank.img"',
        "file:/srv/with%20blank%3F%2C.img?size=1G": '"/srv/with blank?,.img"',
        "file:/srv/a,b": '"/srv/a,b"',
        "file:/srv/100%25%.img": '"/srv/100%%%%.img"',
        "'file:/srv/\"quoted\"\\n'": '"/srv/\\"quoted\\"\\\\n"',
        "vol:/srv/volume": '"/srv/volume"',
        "vol:/srv/vo%40lume@monday?readonly=1": '"/srv/vo@lume"',
        "vol:/srv/a@b/volume": '"/srv/a@b/volume"',
        "file:/srv/line%0Abreak": None,
        "mem:4M": None,
    }
    files, said = generated(t, "".join(f"d{i} {store} via=fuse\n" for i, store in enumerate(stores)))
    check_eq(said, "", "words")
    for i, (store, path) in enumerate(stores.items()):
        found = [line for line in files[f"netblk@d{i}.service.d/50-netblktab.conf"].splitlines() if line.startswith("RequiresMountsFor=")]
        check_eq(found, [f"RequiresMountsFor={path}"] if path else [], store)


@test
def test_units_of_a_store_on_a_network_file_system(t):
    """Attached after what its file is on, which remote-fs-pre.target comes before."""
    files, said = generated(t, "a file:/nfs/disk.img _netdev,via=fuse\n", "/dev/netblk-by-name/a /a ext4 _netdev 0 0\n")
    check_eq(said, "", "words")
    check_eq(files["netblk@a.service.d/50-netblktab.conf"],
             "[Unit]\nSourcePath=TMP/netblktab\nWants=network-online.target\nAfter=network-online.target network.target\n"
             f"Before=remote-fs.target\nRequiresMountsFor=\"/nfs/disk.img\"\nBefore=a.mount\n"
             f"Wants=blockdev@{disk('a')}.target\nBefore=blockdev@{disk('a')}.target\n", "the network, and its file system")
    check("remote-fs.target.requires/netblk@a.service" in files, "required by remote-fs.target")


@test
def test_no_units_of_the_initramfs(t):
    files, _ = generated(t, "a netblk://192.0.2.7/x initramfs\n")
    check_eq(files, {}, "what carries the root is not detached")


@test
def test_fstab_without_netdev_is_told(t):
    _, said = generated(t, "a netblk://192.0.2.7/x\n", "# x\n/dev/netblk-by-name/a /a ext4 defaults 0 0\n/dev/netblk-by-name/a /b ext4 noauto 0 0\n")
    check_eq(said, "netblk-generator: TMP/fstab:2: /dev/netblk-by-name/a is on the network: write _netdev among the options, or the boot "
                   "waits for it before there is a network\n", "words")


@test
def test_a_wrong_line_costs_its_own_disk_only(t):
    files, said = generated(t, "a netblk://192.0.2.7/x nofial\nb netblk://192.0.2.7/y\n", status=1)
    check("TMP/netblktab:1: no option 'nofial'" in said, said)
    check("netblk@b.service.d/50-netblktab.conf" in files and not any("netblk@a" in path for path in files), f"{list(files)}")


@test
def test_no_table_no_units(t):
    folder = t.tmp / "empty"
    folder.mkdir()
    done = subprocess.run([GENERATOR, folder], env={**os.environ, "NETBLK_TABLE": str(t.tmp / "none")}, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    check_eq((done.returncode, done.stdout, done.stderr, list(folder.iterdir())), (0, "", "", []), "nothing is said and made")
    done = subprocess.run([GENERATOR], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    check_eq(done.returncode, 2, "without a folder")


if __name__ == "__main__":
    sys.exit(suite.main("boot-table"))
