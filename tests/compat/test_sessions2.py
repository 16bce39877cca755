#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""What a netblk/2 session promises, from outside (protocol/netblk.md, 7 and 8): ledger, fence, abandon, ownership,
adoption, generation. That a request was applied twice shows in overlapping writes: the first one's data comes back."""

import random
import signal
import sys
import threading
import time

import netblk2 as n2
import serverproc
import suite
from netblk2 import EAGAIN, EBUSY, EINVAL, EPERM, ESTALE, FLUSH, H_SHARED, H_TAKEOVER, H_WRITE, NOP, OK, READ, Session, WRITE
from rig2 import CLIENT, CRC, info, session, start
from suite import check, check_eq, test

A, B, C = (letter * 512 for letter in (b"A", b"B", b"C"))


def restart(t, server, sig=signal.SIGKILL, **options):
    """The server's process ends, and another one serves the same store on the same port."""
    server.signal(sig)
    server.wait()
    made = serverproc.Server(t, server.args[len(suite.server_command()[0]):len(server.args) - len(suite.server_command()[1])],
                             server.ports)
    made.path = server.path
    return made


def closes(conn, what):
    try:
        rest = conn.drain_to_end()
    except TimeoutError:
        raise AssertionError(f"{what}: the connection stays open") from None
    check_eq(rest, b"", f"{what}: bytes before the end")
    conn.close()


def refused(me, want, what, **changes):
    conn, w = me.knock(**changes)
    check_eq(w.status, want, f"{what}: the welcome ({w.text()!r})")
    check(w.text(), f"{what}: a refusal says why")
    check_eq((w.session_id, w.slots, w.features, w.size_bytes), (n2.ID0, 0, [], 0), f"{what}: fields of a refusal")
    check_eq(conn.drain_to_end(), b"", f"{what}: bytes behind a refusal")
    conn.close()
    return w.text()


def seen(me, conn, offset=0):
    return me.read(conn, offset, 512, slot=15)[:1]


# ---- 7.1: slots and ledger

@test
def test_replay_is_answered_and_not_applied_again(t):
    s = start(t)
    for features in ((), CRC):
        me, c = session(t, s, features=features)
        first = me.next(1)
        check_eq(c.call(WRITE, 1, first, length=512, data=A).status, OK, "WRITE")
        me.write(c, 0, B, slot=2)
        for _ in range(3):
            check_eq(c.call(WRITE, 1, first, length=512, data=A).status, OK, "the same again")
            check_eq(seen(me, c), b"B", "on the disk after it")
        check_eq(c.call(WRITE, 1, first + 1, length=512, data=C).status, OK, "the next one")
        check_eq(seen(me, c), b"C", "on the disk after it")


@test
def test_stored_status_is_told_again(t):
    """Also of a request that failed, and also to a NOP that settles the slot."""
    s = start(t, size="1M")
    me, c = session(t, s)
    for type_, offset, data, want in ((WRITE, 1 << 20, A, EINVAL), (READ, 1 << 20, b"", EINVAL), (FLUSH, 0, b"", OK)):
        slot, length = 3, 0 if type_ == FLUSH else 512
        sequence = me.next(slot)
        check_eq(c.call(type_, slot, sequence, offset=offset, length=length, data=data).status, want, "the first time")
        check_eq(c.call(NOP, slot, sequence).status, want, "a NOP in its place")
        check_eq(c.call(type_, slot, sequence, offset=offset, length=length, data=data).status, want, "the same again")


@test
def test_repeated_read_runs_again(t):
    s = start(t)
    me, c = session(t, s)
    me.write(c, 0, A)
    sequence = me.next(1)
    check_eq(c.call(READ, 1, sequence, length=512).data, A, "READ")
    me.write(c, 0, B)
    check_eq(c.call(READ, 1, sequence, length=512).data, B, "the same READ again")


@test
def test_ledger_is_the_sessions(t):
    """A slot that was used on one connection goes on, and is repeated, on another."""
    s = start(t)
    me, c = session(t, s)
    others = [me.open(index) for index in range(1, min(4, me.welcome.max_connections))]
    sequence = me.next(7)
    check_eq(c.call(WRITE, 7, sequence, length=512, data=A).status, OK, "WRITE")
    me.write(c, 0, B, slot=8)
    for other in others:
        check_eq(other.call(WRITE, 7, sequence, length=512, data=A).status, OK, "a replay on another connection")
        check_eq(seen(me, other), b"B", "it was not applied")
        check_eq(other.call(NOP, 7, me.next(7)).status, OK, "the next")
        sequence = me.sequences[7]


@test
def test_sequences_wrap(t):
    s = start(t)
    me, c = session(t, s)
    for sequence in (0xFFFFFFFE, 0xFFFFFFFF, 0, 1):
        check_eq(c.call(WRITE, 4, sequence, length=512, data=A).status, OK, f"sequence {sequence:#x}")
    check_eq(c.call(WRITE, 4, 1, length=512, data=B).status, OK, "a replay")
    check_eq(seen(me, c), b"A", "on the disk after it")


@test
def test_wrong_sequences_close(t):
    """Anything but the next one and the last one; other connections and the session are unharmed."""
    s = start(t)
    me, witness = session(t, s)
    for step in (2, -1, 3, 1 << 31, (1 << 31) + 1, -2):
        c = me.open(1)
        me.call(c, NOP, 5)
        c.request(NOP, 5, me.sequences[5] + step)
        closes(c, f"a sequence {step:+}")
        check_eq(me.read(witness, 0, 512), bytes(512), "another connection of the session")
        c = me.open(1)
        check_eq(me.call(c, NOP, 5).status, OK, "the right one, after a resume")
        c.close()


@test
def test_slot_is_busy_until_it_is_answered(t):
    """7.1: a repetition or successor of what still runs closes."""
    s = start(t, delay_ms=700)
    me, witness = session(t, s)
    for step in (0, 1):
        c = me.open(1)
        sequence = me.next(6)
        wire = n2.pack_request(WRITE, 0, 6, sequence, 1, 0, 512, A)
        c.send(wire + n2.pack_request(WRITE, 0, 6, sequence + step, 2, 0, 512, A))
        # The first is answered or not: its connection was closed meanwhile.
        rest = c.drain_to_end()
        check(rest in (b"", n2.pack_reply(WRITE, 0, 6, sequence, 1)), f"answers: {rest.hex()}")
        c.close()
        c = me.open(1)
        check_eq(c.call(NOP, 6, sequence).status, OK, "the first of them, settled")
        c.close()
    check_eq(me.call(witness, NOP).status, OK, "another connection")


# ---- 7.2, 7.3: resume and fence

@test
def test_resume_fences_what_is_in_flight(t):
    """When the welcome comes, a WRITE that was in flight has ended or will never run; its replay settles which."""
    for delay in (1000, 1, 0):
        s = start(t, delay_ms=delay, name=f"disk{delay}")
        me, old = session(t, s, features=CRC)
        sequence = me.next(1)
        old.request(WRITE, 1, sequence, length=512, data=A)
        time.sleep(0.2)
        c = me.open()
        check(not me.welcome.flags & (n2.W_NEW | n2.W_ADOPTED), "the session was kept")
        ran = s.path.read_bytes()[:1] == b"A"
        closes_quietly(old)
        check_eq(me.write(c, 0, B, slot=2), OK, "a WRITE on the new connection")
        check_eq(s.path.read_bytes()[:1], b"B", "nothing of the old one lands late")
        check_eq(c.call(WRITE, 1, sequence, length=512, data=A).status, OK, "the replay")
        check_eq(seen(me, c), b"B" if ran else b"A", "the replay of what ran" if ran else "the replay of what never ran")
        s.kill()


def closes_quietly(conn):
    """A fenced connection ends; a reply that was on its way may still come."""
    conn.drain_to_end()
    conn.close()


@test
def test_fence_discards_what_is_not_whole(t):
    """A WRITE whose second half comes after the fence is never applied."""
    s = start(t)
    me, old = session(t, s)
    sequence = me.next(1)
    wire = n2.pack_request(WRITE, 0, 1, sequence, 1, 0, 4096, b"A" * 4096)
    old.send(wire[:2000])
    time.sleep(0.2)
    c = me.open()
    try:
        old.send(wire[2000:])
    except n2.Closed:
        pass
    closes_quietly(old)
    check_eq(me.read(c, 0, 4096), bytes(4096), "a WRITE that the fence cut off")
    check_eq(c.call(NOP, 1, sequence).status, OK, "its slot is settled")
    check_eq(c.call(WRITE, 1, sequence + 1, length=512, data=B).status, OK, "and goes on")


@test
def test_nothing_lands_after_the_fence(t):
    """A long row of WRITEs is cut by a resume at random moments: behind the welcome nothing changes any more."""
    s = start(t, delay_ms=3)
    me, c = session(t, s, slots=256)
    rng = random.Random(suite.SEED)
    for round_ in range(suite.count(60, 12)):
        mark = bytes([round_ % 255 + 1]) * 512
        slots = me.welcome.slots
        sent = {slot: me.next(slot) for slot in range(slots)}
        wire = b"".join(n2.pack_request(WRITE, 0, slot, sequence, slot, slot * 512, 512, mark)
                        for slot, sequence in sent.items())
        c.send(wire[:rng.randrange(len(wire))])
        time.sleep(rng.random() * 0.02)
        old, c = c, me.open()
        before = s.path.read_bytes()[:slots * 512]
        closes_quietly(old)
        time.sleep(0.05)
        check_eq(s.path.read_bytes()[:slots * 512], before, "the disk, some time behind the welcome")
        for slot, sequence in sent.items():  # abandoned: a NOP settles each
            check_eq(c.call(NOP, slot, sequence).status, OK, f"slot {slot}")
        check_eq(s.path.read_bytes()[:slots * 512], before, "the disk after the settling")
        c.asked.clear()


@test
def test_beginning_is_repeated(t):
    """7.2: a hello with BEGIN whose welcome was lost finds what it began; an older one that comes late harms nothing."""
    s = start(t)
    me = Session(s.port, CLIENT)
    for _ in range(3):
        with n2.Conn(s.port) as lost:
            lost.send_hello(me.hello())
            if me.epochs[0] == 2:
                time.sleep(0.2)
    c = me.open_patiently()
    check_eq(me.write(c, 0, A), OK, "the session has begun")
    late = me.hello(0, flags=H_WRITE | n2.H_BEGIN, epoch=1)
    with n2.Conn(s.port) as conn:
        check_eq(conn.greet(late).status, EAGAIN, "a hello that was late")
    check_eq(seen(me, c), b"A", "the connection that is there")
    again, w = me.knock(0, flags=H_WRITE | n2.H_BEGIN)
    check_eq((w.status, w.flags & n2.W_ADOPTED), (OK, 0), "BEGIN for a session that is known")
    check_eq(seen(me, again), b"A", "it is a resume")
    again.close()


@test
def test_only_begin_begins(t):
    s = start(t)
    stranger = Session(s.port)
    stranger.begin = 0
    refused(stranger, ESTALE, "a writing session that nobody knows, without BEGIN")
    reader = Session(s.port, flags=0)
    reader.begin = 0
    c, w = reader.knock()
    check(w.status == OK and w.flags & n2.W_ADOPTED and not w.flags & n2.W_NEW, f"a reading one: {w}")
    check_eq(c.call(READ, 0, 9, length=512).data, bytes(512), "READ")
    c.close()
    me, c = session(t, s)
    check_eq(c.goodbye(n2.END_SESSION), OK, "END_SESSION")
    refused(me, ESTALE, "BEGIN with the id of a session that is over", flags=H_WRITE | n2.H_BEGIN)


@test
def test_epochs(t):
    s = start(t)
    me, c = session(t, s)
    me.epochs[0] = 10
    c = me.open()  # epoch 11
    for epoch in (11, 10, 1, 0):
        refused(me, EAGAIN if epoch else n2.EPROTO, f"epoch {epoch} behind 11", epoch=epoch)
        check_eq(me.call(c, NOP).status, OK, "the connection that is there")
    c2 = me.open(0, epoch=(1 << 64) - 1)
    closes_quietly(c)
    check_eq(me.call(c2, NOP).status, OK, "the highest epoch")
    other = me.open(1, epoch=1)
    check_eq(me.call(other, NOP).status, OK, "epochs are each index's own")


@test
def test_other_connections_go_on_during_a_resume(t):
    s = start(t)
    me, c = session(t, s)
    second = me.open(1)
    for _ in range(20):
        c = me.open(0)
        check_eq(me.write(second, 0, A, slot=3), OK, "the other connection")
        check_eq(me.write(c, 512, B, slot=4), OK, "the resumed one")


@test
def test_connections_of_a_session(t):
    s = start(t)
    me, c = session(t, s)
    most = me.welcome.max_connections
    check(2 <= most <= 16, f"{most} connections")
    conns = [c] + [me.open(index) for index in range(1, most)]
    for i, conn in enumerate(conns):
        check_eq(me.write(conn, i * 512, bytes([i + 1]) * 512, slot=i % 16), OK, f"connection {i}")
    for i, conn in enumerate(conns):
        check_eq(me.read(conn, (most - 1 - i) * 512, 512), bytes([most - i]) * 512, f"connection {i} reads")
    refused(me, n2.EPROTO, "an index beyond the limit", index=16)
    if most < 16:
        refused(me, n2.EPROTO, "an index beyond the session's connections", index=most)
    check_eq(me.call(conns[-1], NOP, 1).status, OK, "the last connection")


@test
def test_foreign_client_is_refused(t):
    s = start(t)
    me, c = session(t, s)
    refused(me, EPERM, "another client's session", client_id=n2.new_id(), index=1)
    check_eq(me.call(c, NOP).status, OK, "the owner goes on")


@test(timeout=120)
def test_random_breaks_against_a_model(t):
    """Connections break at random moments with requests in flight; they are resumed and what was unanswered is
    replayed; every block is always one that its last acknowledged or a later unanswered WRITE has written, and each
    WRITE is applied once: the counter in a block never goes back."""
    s = start(t, size="1M", delay_ms=1)
    rng = random.Random(suite.SEED)
    me, c = session(t, s, slots=16, features=CRC)
    conns = {0: c, 1: me.open(1)}
    slots = {0: range(0, 8), 1: range(8, 16)}  # each connection works on slots, and blocks, of its own
    count, waiting = {slot: 0 for slot in range(16)}, {}
    for _ in range(suite.count(400, 80)):
        index = rng.randrange(2)
        c = conns[index]
        for slot in slots[index]:
            if slot not in waiting:
                count[slot] += 1
                waiting[slot] = (me.next(slot), count[slot].to_bytes(4, "big") * 128)
            sequence, data = waiting[slot]
            c.request(WRITE, slot, sequence, offset=slot * 512, length=512, data=data)
        broken = rng.random() < 0.4
        for _ in range(rng.randrange(8) if broken else 8):
            got = c.reply()
            check_eq(got.status, OK, "WRITE")
            del waiting[got.slot]
        if broken:
            if rng.random() < 0.5:
                c.reset()
            conns[index] = me.open(index)
            check(not me.welcome.flags & n2.W_NEW, "the session lives")
            c.close()
            disk = s.path.read_bytes()
            for slot in slots[index]:
                value = int.from_bytes(disk[slot * 512:slot * 512 + 4], "big")
                check(value == count[slot] or value == count[slot] - 1 and slot in waiting,
                      f"slot {slot}: {value} is on the disk, {count[slot]} was sent")
    for conn in conns.values():
        conn.close()


# ---- 7.5: identity and ownership

@test
def test_exclusive_writer(t):
    s = start(t)
    me, c = session(t, s)
    rival = Session(s.port)
    text = refused(rival, EBUSY, "a second writer")
    check(CLIENT.hex() in text, f"the refusal names the owner: {text!r}")
    refused(Session(s.port, flags=H_WRITE | H_SHARED), EBUSY, "a shared writer beside an exclusive one")
    reader, r = session(t, s, n2.new_id(), flags=0)
    me.write(c, 0, A)
    check_eq(reader.read(r, 0, 512), A, "a reader needs no ownership")
    c.close()
    refused(rival, EBUSY, "a second writer, while the first is away")
    c = me.open()
    check_eq(me.write(c, 0, B), OK, "the first one is back")


@test
def test_shared_writers(t):
    s = start(t)
    flags = H_WRITE | H_SHARED
    one, c1 = session(t, s, n2.new_id(), flags=flags)
    two, c2 = session(t, s, n2.new_id(), flags=flags)
    one.write(c1, 0, A)
    two.write(c2, 512, B)
    check_eq(two.read(c2, 0, 512) + one.read(c1, 512, 512), A + B, "each sees the other's")
    refused(Session(s.port), EBUSY, "an exclusive writer beside shared ones")
    three, c3 = session(t, s, n2.new_id(), flags=flags | H_TAKEOVER)
    for who, conn in ((one, c1), (two, c2), (three, c3)):
        check_eq(who.write(conn, 0, C), OK, "shared writers stay beside a shared TAKEOVER")


@test
def test_takeover(t):
    s = start(t)
    me, c = session(t, s)
    second = me.open(1)
    me.write(c, 0, A)
    rival, r = session(t, s, n2.new_id(), flags=H_WRITE | H_TAKEOVER)
    check(rival.welcome.flags & n2.W_NEW, "a new session")
    closes_quietly(c)
    closes_quietly(second)
    for index in (0, 1, 2):
        refused(me, ESTALE, "the one that was taken over", index=index)
    check_eq(rival.write(r, 0, B), OK, "the new owner")
    text = refused(Session(s.port, me.client_id), EBUSY, "the old owner with a new session")
    check(rival.client_id.hex() in text, f"the new owner is named: {text!r}")
    # Shared writers are taken over too.
    rival.open(0).goodbye(n2.END_SESSION)
    shared = [session(t, s, n2.new_id(), flags=H_WRITE | H_SHARED)[0] for _ in range(2)]
    session(t, s, n2.new_id(), flags=H_WRITE | H_TAKEOVER)
    for who in shared:
        refused(who, ESTALE, "a shared writer that was taken over")


@test
def test_nothing_lands_after_a_takeover(t):
    """When the new owner is welcome, what the old one had in flight has ended or will never run."""
    for delay in (1000, 1):
        s = start(t, delay_ms=delay, name=f"disk{delay}")
        me, c = session(t, s)
        wire = b"".join(n2.pack_request(WRITE, 0, slot, 1, slot, slot * 512, 512, A) for slot in range(16))
        c.send(wire[:-100])
        time.sleep(0.1)
        rival, r = session(t, s, n2.new_id(), flags=H_WRITE | H_TAKEOVER)
        before = s.path.read_bytes()[:8192]
        time.sleep(delay / 1000 + 0.2)
        check_eq(s.path.read_bytes()[:8192], before, "the disk, some time behind the new owner's welcome")
        check_eq(rival.write(r, 0, B), OK, "the new owner")
        check_eq(seen(rival, r), b"B", "on the disk")
        closes_quietly(c)
        s.kill()


@test
def test_a_new_session_fences_the_clients_older_one(t):
    s = start(t)
    old, c = session(t, s)
    new, c2 = session(t, s)
    check(old.session_id != new.session_id, "a session of its own")
    closes_quietly(c)
    refused(old, ESTALE, "the older session")
    check_eq(new.write(c2, 0, A), OK, "the newer one")


@test
def test_ownership_outlives_the_server(t):
    for sig in (signal.SIGKILL, signal.SIGTERM):
        s = start(t, name=f"disk{sig}")
        me, c = session(t, s)
        rival, r = session(t, s, n2.new_id(), flags=H_WRITE | H_TAKEOVER)
        rival.write(r, 0, A)
        s = restart(t, s, sig)
        refused(me, ESTALE, "the one that was taken over, after a restart")
        text = refused(Session(s.port), EBUSY, "another one, after a restart")
        check(rival.client_id.hex() in text, f"the owner is named: {text!r}")
        r = rival.open()
        check(rival.welcome.flags & n2.W_ADOPTED, "the owner is adopted")
        check_eq(seen(rival, r), b"A", "its data")
        s.kill()


@test
def test_a_session_that_ended_stays_over(t):
    """Also after a restart: a client with an old cache must not come back after another one wrote."""
    s = start(t)
    me, c = session(t, s)
    rival, r = session(t, s, n2.new_id(), flags=H_WRITE | H_TAKEOVER)
    rival.write(r, 0, B)
    check_eq(r.goodbye(n2.END_SESSION), OK, "END_SESSION")
    for who in (me, rival):
        refused(who, ESTALE, "a session that is over")
    s = restart(t, s)
    for who in (me, rival):
        refused(who, ESTALE, "a session that is over, after a restart")
    fresh, c = session(t, s, n2.new_id())
    check_eq(seen(fresh, c), b"B", "a new session is free to come")


# ---- 7.6 and 8: adoption and generation

@test
def test_adoption_after_a_crash(t):
    s = start(t)
    me, c = session(t, s, features=CRC)
    uuid, generation, session_id = me.uuid, me.generation, me.session_id
    me.write(c, 0, A)
    lost = me.next(1)
    s.stand_still()
    c.request(WRITE, 1, lost, offset=512, length=512, data=B)  # never applied by this process
    s = restart(t, s)
    c.close()
    c = me.open()
    check(me.welcome.flags & n2.W_ADOPTED and not me.welcome.flags & n2.W_NEW, f"flags {me.welcome.flags:#x}")
    check_eq((me.session_id, me.uuid, me.generation), (session_id, uuid, generation), "session, uuid and generation")
    check_eq(c.call(WRITE, 1, lost, offset=512, length=512, data=B).status, OK, "the replay")
    check_eq(me.read(c, 0, 1024), A + B, "acknowledged and replayed")
    second = me.open(1)
    check(not me.welcome.flags & (n2.W_NEW | n2.W_ADOPTED), "the second connection is added")
    check_eq(me.call(second, NOP, 2).status, OK, "it works")


@test
def test_adopted_ledger_is_empty(t):
    s = start(t)
    me, c = session(t, s)
    for _ in range(5):
        me.call(c, NOP, 1)
    s = restart(t, s)
    c = me.open()
    check_eq(c.call(WRITE, 1, 77777, length=512, data=A).status, OK, "any sequence is new")
    check_eq(c.call(WRITE, 1, 77777, length=512, data=B).status, OK, "and from then on it counts")
    check_eq(seen(me, c), b"A", "a replay")


@test(timeout=180)
def test_generation_is_kept_by_a_process_crash(t):
    """Over a sound page cache nothing is lost: neither by kill -9 nor by an orderly end."""
    s = start(t)
    me, c = session(t, s)
    known = (me.uuid, me.generation)
    for i in range(suite.count(10, 4)):
        me.write(c, 0, bytes([i + 1]) * 512)
        s = restart(t, s, signal.SIGKILL if i % 2 == 0 else signal.SIGTERM)
        w = info(s)
        check_eq((w.store_uuid, w.generation), known, f"generation after restart {i + 1}")
        c = me.open()
        check_eq(me.read(c, 0, 512), bytes([i + 1]) * 512, "what was acknowledged")


@test
def test_another_generation_is_told(t):
    """Whatever counter the client knows, its session goes on, and it compares. Another store is another matter."""
    s = start(t)
    me, c = session(t, s)
    known, session_id = (me.uuid, me.generation), me.session_id
    for changes in ({"generation": 1 << 40}, {"generation": 0}, {"store_uuid": n2.ID0, "generation": 0}):
        s = restart(t, s)
        conn, w = me.knock(**changes)
        check_eq(w.status, OK, f"{changes}: {w.text()}")
        check(w.flags & n2.W_ADOPTED and not w.flags & n2.W_NEW, f"{changes}: flags {w.flags:#x}")
        check_eq((w.session_id, w.store_uuid, w.generation), (session_id, *known), "what it is told")
        conn.close()
    for restarted in (False, True):
        refused(me, ESTALE, "another store", store_uuid=n2.new_id())
        s = s if restarted else restart(t, s)
    c = me.open()
    check_eq(me.write(c, 0, A), OK, "the session is none the worse")


@test
def test_memory_is_another_store_each_time(t):
    s = serverproc.start_export(t, "ram=mem:4M")
    s.path = None
    me, c = session(t, s)
    me.write(c, 0, A)
    check(seen(me, c) == b"A", "memory")
    s = restart(t, s)
    refused(me, ESTALE, "a session of the memory that is gone")
    other, c = session(t, s, n2.new_id())
    check(other.uuid != me.uuid, "another uuid")
    check_eq(seen(other, c), bytes(1), "its contents")


@test
def test_a_failed_flush_is_never_taken_back(t):
    s = start(t, fault="flush", size="1M")
    me, c = session(t, s)
    me.write(c, 0, A)
    for _ in range(3):
        check_eq(me.call(c, FLUSH).status, n2.EIO, "FLUSH of a store that cannot sync")
    second = me.open(1)
    check_eq(me.call(second, FLUSH, 1).status, n2.EIO, "FLUSH on another connection")


@test
def test_flush_covers_other_connections(t):
    """A FLUSH on one connection is answered after what was acknowledged on others is durable: here, that it is answered."""
    s = start(t)
    me, c = session(t, s)
    second = me.open(1)
    for i in range(20):
        me.write(c, i * 512, A, slot=1)
        check_eq(me.call(second, FLUSH, 2).status, OK, "FLUSH on the other connection")


@test
def test_sessions_that_nobody_needs_cost_no_other(t):
    """Many clients come and go; the owner is not disturbed."""
    s = start(t)
    me, c = session(t, s)
    for _ in range(suite.count(500, 100)):
        reader = Session(s.port, flags=0)
        reader.open().close()
    check_eq(me.write(c, 0, A), OK, "the owner")


if __name__ == "__main__":
    sys.exit(suite.main("sessions2"))
