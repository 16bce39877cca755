#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What a file store remembers of itself: its record, and when the generation stays, moves, or is another's."""

import os
import pathlib
import shutil
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import netblk2
import serverproc
import suite
from netblk1 import ERROR, WRITE, request
from serverproc import free_port, options, run_cli
from suite import Skip, check, check_eq, test

MIB = 1 << 20
RUN_FOLDERS = [pathlib.Path("/run/netblk")]
if os.environ.get("XDG_RUNTIME_DIR"):
    RUN_FOLDERS.append(pathlib.Path(os.environ["XDG_RUNTIME_DIR"]) / "netblk")


def record_path(image):
    return pathlib.Path(f"{image}.netblk")


def read_record(path):
    lines = path.read_text().splitlines()
    check_eq(lines[0], "netblk store record 1", f"the first line of {path}")
    return dict(line.split(" ", 1) for line in lines[1:])


def generation(image):
    record = read_record(record_path(image))
    return record["uuid"], int(record["counter"])


def volatile_records(uuid, *more):
    found = [folder / f"store-{uuid}" for folder in [*RUN_FOLDERS, *more]]
    return [path for path in found if path.exists()]


def opened(server):
    """It listens before it has opened its stores; a client waits for that, a test that reads the record must too."""
    server.wait_log("listening on netblk")
    return server


def start(*args, ready=True, **kw):
    server = serverproc.start(*args, ready=ready, **kw)
    return opened(server) if ready else server


def start_export(*args, **kw):
    return opened(serverproc.start_export(*args, **kw))


def write(server, byte=b"\x11", sector=0):
    with server.client() as c:
        c.write(sector, byte * 512)


def kill_9(server):
    server.proc.kill()
    server.proc.wait()


def moved(image, before, what, by=1):
    now = generation(image)
    check_eq(now[0], before[0], f"{what}: the uuid")
    check_eq(now[1], before[1] + by, f"{what}: the counter")


def told(server):
    """What a client of netblk/2 hears: (uuid, counter)."""
    with netblk2.Conn(server.port) as c:
        welcome = c.greet(netblk2.Hello(flags=netblk2.H_INFO, client_id=netblk2.new_id()))
        check_eq(welcome.status, netblk2.OK, f"status of the welcome: {welcome.text()}")
        return welcome.store_uuid.hex(), welcome.generation


# ---- what keeps it

@test
def test_clean_stop_keeps_the_generation(t):
    s = start(t, 1)
    before = generation(s.path)
    write(s)
    s.stop()
    check_eq(read_record(record_path(s.path))["clean"], "1", "clean after a stop")
    check_eq(volatile_records(before[0]), [], "volatile records of a closed store")
    s = start(t, 1, s.path)
    check_eq(generation(s.path), before, "the generation")
    s.stop()


@test
def test_kill_9_keeps_the_generation(t):
    """The page cache outlives the process: nothing that was answered is lost."""
    s = start(t, 1)
    before = generation(s.path)
    for round_ in range(3):
        write(s, bytes([round_ + 1]))
        kill_9(s)
        check_eq(read_record(record_path(s.path))["clean"], "0", "clean of a store that was killed")
        s = start(t, 1, s.path)
        check_eq(generation(s.path), before, f"the generation after kill {round_}")
    s.stop()
    check_eq(read_record(record_path(s.path))["clean"], "1", "clean after a stop")


@test
def test_kill_9_of_a_server_that_wrote_nothing_keeps_the_generation(t):
    s = start(t, 1)
    before = generation(s.path)
    kill_9(s)
    for path in volatile_records(before[0], s.path.parent):
        path.unlink()  # even over a reboot
    start(t, 1, s.path).stop()
    check_eq(generation(s.path), before, "the generation")


@test
def test_clients_are_told_what_is_written_down(t):
    s = start(t, 1)
    check_eq(told(s), generation(s.path), "the generation of a new store")
    write(s)
    s.stop()
    os.utime(s.path)
    s = start(t, 1, s.path)
    check_eq(told(s), generation(s.path), "the generation after it moved")
    check_eq(told(s)[1], 2, "the counter")
    kill_9(s)
    memory = start_export(t, "a=mem:1M", port=s.port)
    first = told(memory)
    memory.stop()
    check(told(start_export(t, "a=mem:1M", port=s.port))[0] != first[0], "mem: has the uuid of another process")


@test
def test_growing_at_the_start_keeps_the_generation(t):
    s = start(t, 1)
    before = generation(s.path)
    write(s)
    s.stop()
    start(t, 4, s.path).stop()
    check_eq(generation(s.path), before, "the generation of a file that its server grew")
    start(t, 1, s.path).stop()
    check_eq(generation(s.path), before, "and at the next start")


# ---- what moves it

@test
def test_a_change_while_it_was_closed_moves_the_generation(t):
    def overwrite(path):
        with open(path, "r+b") as f:
            f.write(b"another's")

    def cut(path):
        os.truncate(path, 512 << 10)

    def replace(path):
        shutil.copy(path, f"{path}.copy")
        os.rename(f"{path}.copy", path)

    image = t.tmp / "disk.img"
    start(t, 1, image).stop()
    for change in (overwrite, cut, replace):
        before = generation(image)
        change(image)
        s = start(t, 1, image)
        s.wait_log(f"generation {before[1]} becomes {before[1] + 1}")
        moved(image, before, change.__name__)
        write(s)
        s.stop()
        start(t, 1, image).stop()
        moved(image, before, f"{change.__name__}, then a clean stop")


@test
def test_a_crash_of_the_machine_moves_the_generation(t):
    """As a reboot leaves it: the store was not closed, and /run is empty."""
    s = start(t, 1)
    before = generation(s.path)
    write(s)
    kill_9(s)
    for path in volatile_records(before[0], s.path.parent):
        path.unlink()
    s = start(t, 1, s.path)
    moved(s.path, before, "after the crash")
    s.stop()
    start(t, 1, s.path).stop()
    moved(s.path, before, "and it stays there")


@test
def test_another_boot_id_moves_the_generation(t):
    """A volatile record that survives, as in a container whose /run does, is of another boot."""
    s = start(t, 1)
    before = generation(s.path)
    write(s)
    kill_9(s)
    paths = volatile_records(before[0], s.path.parent)
    check(paths, "a killed server left no volatile record")
    for path in paths:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        text = path.read_text()
        check(boot in text, f"the boot id is not in {path}: {text}")
        path.write_text(text.replace(boot, "0" * len(boot)))  # its checksum is wrong now as well: it says nothing
    start(t, 1, s.path).stop()
    moved(s.path, before, "another boot")


@test
def test_a_failed_sync_moves_the_generation_before_the_answer(t):
    """Else: killed and started again, the next sync would say OK about pages that the kernel dropped."""
    trace = serverproc.Strace(t, "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=5")
    s = start(t, 1, wrap=trace.wrap, io="epoll")
    before = generation(s.path)
    with s.client() as c:
        for i in range(500):
            c.send(request(WRITE, i, 512) + b"\x22" * 512)
            if c.status() == ERROR:
                break
        else:
            raise AssertionError("no WRITE was refused: the injected failure did not arrive")
        moved(s.path, before, "when the refusal is here")
    s.signal(15)
    check_eq(s.wait(), 0, "exit status")
    check_eq(read_record(record_path(s.path))["clean"], "0", "clean of a store whose sync failed")
    start(t, 1, s.path).stop()
    uuid, counter = generation(s.path)
    check_eq(uuid, before[0], "the uuid")
    check(counter > before[1] + 1, f"counter {counter} after a restart: clients saw {before[1] + 1} of the failing server")


@test
def test_kill_9_after_a_failed_sync_moves_the_generation(t):
    trace = serverproc.Strace(t, "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=5")
    s = start(t, 1, wrap=trace.wrap, io="epoll")
    before = generation(s.path)
    with s.client() as c:
        for i in range(500):
            c.send(request(WRITE, i, 512) + b"\x22" * 512)
            if c.status() == ERROR:
                break
    kill_9(s)
    start(t, 1, s.path).stop()
    check(generation(s.path)[1] > before[1], f"{generation(s.path)} after {before}")


# ---- the order of things

@test
def test_clean_is_cleared_before_the_first_answer(t):
    s = start(t, 1)
    check_eq(read_record(record_path(s.path))["clean"], "1", "clean before the first write")
    with s.client() as c:
        c.read(0, 512)
        check_eq(read_record(record_path(s.path))["clean"], "1", "clean after a READ")
        c.write(0, b"\x01" * 512)
        check_eq(read_record(record_path(s.path))["clean"], "0", "clean when the first WRITE is answered")


@test
def test_the_record_is_durable_in_order(t):
    """The new record is synced before it takes its place, its folder after; and that before the first data."""
    trace = serverproc.Strace(t, "-e", "trace=fsync,rename,pwrite64,pwritev,pwritev2,fdatasync")
    s = start(t, 1, wrap=trace.wrap, io="epoll")
    with s.client() as c:
        c.write(0, b"\x01" * 512)
    s.stop()
    seen = []
    for line in trace.lines(s.pid):
        for what, words in (("sync record", ("fsync(", "disk.img.netblk.new>")), ("rename", ("rename(", "disk.im")),
                            ("sync folder", ("fsync(", f"{t.tmp}>")), ("data", ("pwrite", "disk.img>")),
                            ("sync data", ("fdatasync(", "disk.img>")), ("sync file", ("fsync(", "disk.img>"))):
            if all(word in line for word in words):
                seen.append(what)
    kept = ["sync record", "rename", "sync folder"]
    text = " ".join(seen)
    first, _, rest = text.partition("data")
    check(first.count(" ".join(kept)) >= 2, f"two records, at the start and before the first data: {seen}")
    check(rest.endswith(" ".join(["sync file", *kept])), f"at the end the file is synced, then the record is written: {seen}")


@test
def test_a_write_that_cannot_be_recorded_is_refused(t):
    s = start(t, 1)
    blocker = pathlib.Path(f"{record_path(s.path)}.new")
    (blocker / "x").mkdir(parents=True)
    with s.client() as c:
        c.send(request(WRITE, 0, 512) + b"\x01" * 512)
        check_eq(c.status(), ERROR, "WRITE while the record cannot be written")
        check_eq(c.read(0, 512), bytes(512), "what was refused is not there")
        shutil.rmtree(blocker)
        c.write(0, b"\x02" * 512)
    check_eq(read_record(record_path(s.path))["clean"], "0", "clean")


# ---- what the record suffers

@test
def test_a_damaged_record_gives_a_new_uuid(t):
    image = t.tmp / "disk.img"
    start(t, 1, image).stop()
    whole = record_path(image).read_bytes()
    for damaged in (b"", b"garbage\n", whole[:-1], whole.replace(b"counter 1", b"counter 9"), whole + b"x" * (2 << 20)):
        before = read_record(record_path(image))["uuid"]
        record_path(image).write_bytes(damaged)
        s = start(t, 1, image)
        check(s.wait_log(str(record_path(image))), "a warning that names the record")
        write(s)
        s.stop()
        check(read_record(record_path(image))["uuid"] != before, f"the uuid is the old one after {damaged[:30]!r}")


@test
def test_a_record_of_a_newer_version_is_refused(t):
    image = t.tmp / "disk.img"
    start(t, 1, image).stop()
    text = "netblk store record 2\nwho knows\n"
    record_path(image).write_text(text)
    code, _, err = run_cli([free_port(), image, 1])
    check_eq(code, 1, f"status; {err!r}")
    check(str(record_path(image)) in err and "version 2" in err and len(err.strip().splitlines()) == 1,
          f"one line that names the record and its version: {err!r}")
    check_eq(record_path(image).read_text(), text, "the record")


@test
def test_a_new_image_is_another_store(t):
    """The image was deleted, its record was not: the new image must not pass for the old one."""
    s = start(t, 1)
    before = generation(s.path)
    write(s)
    s.stop()
    s.path.unlink()
    start(t, 1, s.path).stop()
    check(generation(s.path)[0] != before[0], "an empty new file has the old one's uuid")


@test
def test_leftovers_of_a_crash_are_no_obstacle(t):
    s = start(t, 1)
    before = generation(s.path)
    s.stop()
    pathlib.Path(f"{record_path(s.path)}.new").write_text("half a rec")
    s = start(t, 1, s.path)
    write(s)
    s.stop()
    check_eq(generation(s.path), before, "the generation")


# ---- where it is kept

@test
def test_a_folder_that_cannot_be_written(t):
    """Served all the same, with a warning that says what it costs and what to do."""
    folder = t.tmp / "fixed"
    folder.mkdir()
    real = t.tmp / "real.img"
    real.write_bytes(bytes(MIB))
    if subprocess.run(["mount", "-t", "tmpfs", "none", folder], capture_output=True).returncode != 0:
        raise Skip("cannot mount a tmpfs")
    t.defer(lambda: subprocess.run(["umount", "-l", folder], check=False))
    (folder / "disk.img").touch()
    subprocess.run(["mount", "--bind", real, folder / "disk.img"], check=True)
    t.defer(lambda: subprocess.run(["umount", "-l", folder / "disk.img"], check=False))
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    s = start(t, 1, folder / "disk.img")
    line = s.wait_log("no record of it can be kept")
    check("--state-dir" in line and "restart" in line, f"what it costs and what to do: {line}")
    write(s)
    s.stop()
    # With a folder for it, there is nothing to warn of.
    s = start_export(t, f"d=file:{folder}/disk.img", more=["--state-dir", t.tmp / "state"])
    check("no record" not in s.log(), s.log())
    write(s)
    s.stop()


@test
def test_state_dir(t):
    state = t.tmp / "state" / "deeper"
    for name in ("a b.img", "ä%.img"):
        image = t.tmp / name
        image.write_bytes(bytes(MIB))
    store = [f"a=file:{t.tmp}/a b.img", f"b=file:{t.tmp}/ä%25.img"]
    before = None
    for _ in range(2):
        s = start_export(t, *store, more=["--state-dir", state])
        write(s)
        records = sorted(path for path in state.iterdir())
        check_eq(len(records), 2, f"records in {state}: {records}")
        now = {path.name: (read_record(path)["uuid"], read_record(path)["counter"]) for path in records}
        check(before in (None, now), f"{before} became {now}")
        before = now
        kill_9(s)
    check(not list(t.tmp.glob("*.netblk")), "a record beside the image, in spite of --state-dir")


@test
def test_state_dir_that_cannot_be_used(t):
    (t.tmp / "file").write_text("x")
    for folder in (t.tmp / "file", t.tmp / "file" / "below"):
        code, _, err = run_cli(["--export", f"a=file:{t.tmp}/disk.img?size=1M", "--listen",
                                f"netblk://127.0.0.1:{free_port()}", "--state-dir", folder])
        check_eq(code, 1, f"status; {err!r}")
        check(str(t.tmp / "file") in err and len(err.strip().splitlines()) == 1, f"one line that names it: {err!r}")


@test
def test_state_dir_in_the_configuration(t):
    port = free_port()
    config = t.tmp / "netblk.toml"
    config.write_text(f'listen = "netblk://127.0.0.1:{port}"\nstate-dir = "{t.tmp}/state"\n'
                      f'[export.a]\nstore = "file:{t.tmp}/disk.img?size=1M"\n')
    serverproc.Server(t, ["--config", config], [port]).stop()
    check_eq(len(list((t.tmp / "state").iterdir())), 1, "records in state-dir")
    serverproc.Server(t, ["--config", config, "--state-dir", t.tmp / "other"], [port]).stop()
    check_eq(len(list((t.tmp / "other").iterdir())), 1, "records in --state-dir, which goes first")
    for bad in ('""', "7", '["a"]'):
        config.write_text(f'state-dir = {bad}\n[export.a]\nstore = "mem:1M"\n')
        code, _, err = run_cli(["--config", config])
        check_eq(code, 1, f"status of state-dir = {bad}; {err!r}")
        check(f"{config}:1: state-dir" in err, f"the place is named: {err!r}")


@test
def test_the_same_file_by_another_name(t):
    s = start(t, 1)
    before = generation(s.path)
    s.stop()
    os.symlink(s.path, t.tmp / "link.img")
    start(t, 1, t.tmp / "link.img").stop()
    check(not record_path(t.tmp / "link.img").exists(), "a second record, beside the link")
    check_eq(generation(s.path), before, "the generation")


@test
def test_readers_write_nothing(t):
    image = t.tmp / "disk.img"
    image.write_bytes(bytes(MIB))
    s = start_export(t, options(f"a=file:{image}", ro=None))
    with s.client() as c:
        c.read(0, 512)
    s.stop()
    check_eq([p.name for p in t.tmp.iterdir() if p.name.startswith("disk.img")], ["disk.img"], "files beside the image")
    start(t, 1, image).stop()
    text = record_path(image).read_bytes()
    s = start_export(t, options(f"a=file:{image}", ro=None))
    s.stop()
    check_eq(record_path(image).read_bytes(), text, "the record of a store that was served read-only")


@test
def test_memory_keeps_no_record(t):
    s = start_export(t, "a=mem:1M", "b=null:1M", more=["--state-dir", t.tmp / "state"])
    write(s)
    s.stop()
    check(not (t.tmp / "state").exists(), "a folder for records that nobody keeps")


@test
def test_a_second_server_leaves_the_record_alone(t):
    s = start(t, 1)
    write(s)
    text = record_path(s.path).read_bytes()
    code, _, err = run_cli([free_port(), s.path, 1], seconds=30)
    check_eq(code, 1, f"status; {err!r}")
    check_eq(record_path(s.path).read_bytes(), text, "the record after a second server was refused")
    before = generation(s.path)
    b = start(t, 1, s.path, ready=False)
    s.stop()
    b.wait_ready()
    opened(b)
    check_eq(generation(s.path), before, "the generation of the server that waited")


@test
def test_the_record_belongs_to_the_images_owner(t):
    if os.geteuid() != 0:
        raise Skip("needs root")
    image = t.tmp / "disk.img"
    image.write_bytes(bytes(MIB))
    os.chown(image, 1234, 2345)
    image.chmod(0o640)
    start(t, 1, image).stop()
    status = record_path(image).stat()
    check_eq((status.st_uid, status.st_gid, status.st_mode & 0o777), (1234, 2345, 0o640), "owner and mode of the record")


@test
def test_block_device(t):
    """By its own name, in a folder of the system's."""
    image = t.tmp / "loop.img"
    image.write_bytes(bytes(MIB))
    p = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True)
    if p.returncode != 0:
        raise Skip(f"no loop device: {p.stderr.strip()[:100]}")
    dev = p.stdout.strip()
    t.defer(lambda: subprocess.run(["losetup", "-d", dev], check=False))
    state = t.tmp / "state"
    seen = []
    for end in (kill_9, serverproc.Server.stop, serverproc.Server.stop):
        s = start(t, 1, dev, more=["--state-dir", state])
        write(s)
        records = list(state.iterdir())
        check_eq(len(records), 1, f"{records}")
        record = read_record(records[0])
        check("loop.img" in record["medium"], f"the device's own name: {record}")
        seen.append((record["uuid"], record["counter"]))
        end(s)
    check_eq(len(set(seen)), 1, f"generations: {seen}")
    check(not pathlib.Path(f"{dev}.netblk").exists(), "a record in /dev")


if __name__ == "__main__":
    sys.exit(suite.main("store-identity"))
