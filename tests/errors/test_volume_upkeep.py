#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-only
"""`netblk volume check`, `scrub` and `upgrade`."""

import base64
import fcntl
import json
import lzma
import os
import pathlib
import random
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "compat"))
import command
import nbd
import serverproc
import suite
from command import MIB, refused, run
from suite import check, check_eq, test
from volume_rig import BLOCK, disk, make, serve

SLOTS = (0, 524288)

# A volume as the programs of format version 1 wrote it, 1 MiB in segments of 64 KiB, its server killed: blocks 2i were written
# with i + 1 (i < 24) and named @first, then with i + 101 (i < 12); blocks 40 and 41 trimmed, 44 zeroed, and 46 is of 0xee.
VERSION_1 = r"""
{Wp48S^xk9=GL@E0stWa8~^|S5YJf5^T2-xJY4`M5k}2(x=7iVO2BZ6@V#HOQB<l(62R)z9IH%`KjU-gd6;_LaVo#0>|wKg&2-xnM5NcWx3J<(yvz^n2H4rg
667G9jLr_zjy%zF)}izvj3W`8_HaHbllhC|r)LZ|{%Ng(uEQrPlw^pB-6Fg4S0@O{qSoX7V){bRutt+6-DP(NNTUDiJa1fU3_Vn(nw5EtF$i$~nxy41mXFf}
Df~tsS}s<=kA?Gtfxu<NB~$qIkv1^}rLgXA!EjAS4AGGhs;yuhy3VmD7+hI~>1I+`zUfqkz#6oM5~kI2uH4xrOECto7DV1MF&dw@jWKR;o~I*U>?q5H(Uq8r
ekzgjCw2E3zy_F2nElwV)sPRwB~$qIkv1^}rLgXA!EjAS4AGGhs;yuhy3VWQ9;7^KgU0TK)%hAkSrCYKKVlB9NT-e*u%+{i3%x-Tq=Tyv$zy(K2^3BFM?=~+
xdH!vWiZylooXjkW;TxKqB0<*19NAZ-AIwLCsvrog6lvVwg5$zY`#@_-~b53N}TnQfrkWPjM#cM$(&s7u2G=I0GKsO(z7d=xOR;6WDkmpRaZ@n5VV*Z@h6s>
TLW9RD>Ho+wC}*S;x}G$%+o8oV=Wq{fH3O6JoSyx?vON)O5`np{$$x|CsJ2HLRI`=?nUWk8N{d8rrT&1R4?Dd|0hLO5I8WSmYc4uuOO|tw+rHP8hwgVy(4Xd
bZnF5^yFR~X3T(CLj_eH$mrZYPTb-q@8CxAss0L@aj;%5K0|R3J>3~gtDnln`t1ZZ`~m0(WXig{a6kJ`Gql39FL9>8Mbwy^ahD7+F4h6h!MFjmdr9#}1J0>H
GO<t1NohJ8maD$NP<U&H<2rTAEHb9RiuQc+K#{)SR=qGkt1Iy=KBB{2xguhys)>R)ib%G5L}TDs16(E!$72A#=0k|j{{=sZ-K8A@I#KM3ahxpo=+7hd{6<}-
L*lMQL&+x~bItmP8<t~IwL>p8akWKVJ@f2SgOH6K%`y11y9eA^S+d$S(uhNApjBFFi-)y72U|h&v3Bw(DV)l!A_u3M3t~)iIqB#(<|15K_)o>Vrs2}`Aws=l
{J$lHeKA`~lB3gD7-VSsY5OMd)91!32J)ODM_;N(ui&gs@&LfAxgfCA_YOX7ke!O~CDrr>23N+{3r?)`s5yLQk8f7Tz<T9D#|5l2fUJzJTOnn<Wku|zdpw9j
?`h78AKa$vHEcsIz^`7gP6v{E+|ef&W-N*$P)rx?Iy>%g=RRqid=@dvrg-N{_t}1v0NKqF_wfPoVB^|sVkO%6J?MYST}}1%)ZKy|da8pzC+n(#`6BfNE;VP8
n~@LXg5}^RE=ODymMyaS!1M(f0We)2(0DYK$da$83=;|SBU!tnOWJKGIvub8Y2y3X91S?!`8mK26zruaa4Zee6PDWN5|N%I`*Ig#^%5s{D+)&{ca#wM;uLAA
;i;&+RpNd^vvNT6do-9xEWl#fnAQD?B@tn{Jl7yNN#Bws_dh>+58=a;FH5GU6WZ|dxW(pQGsXcsYI%zz#LtAHs{qz-nDZszZr3(!fwPt0UuqH%*9{!lD_DsP
oK3Sa>bQ?cRk^h|4U@c&t!`Y>kgh%~Z31Qw_1=S$a7mEW<S!^hKnPO%7)LPqdU~PjeB>yg>f56F<zSShQs#OWJ-dBZE~=J6A3~xb_+0>g14)!Mq^u*i){p&a
zyoEn&rUP__3aD`l@H;~^tL|qHXAL4p_Vt|GV<Ij^K3~GhXk76ck&YRl1?}3dVqOk?dQnvvq_OgLm0l;-|u!+RUdI>th#({zeJWL=yyEGI+wY{cS%(ksjxE3
qH>=|m4)@|2HhjSLsz^hn!6zTJYQHCUh{71C8eU`H~@xrE`EubjZoB_=89DqIx@G}FZ1%HXC<YSGqrv!7lU@4%qQ?R-&C8W{Ajn0*;nUn3&wj*p22%PCw2AS
GDzBl#}nQo#5OO|U9atm4+|_~e#|;-LL=w1uN3Hp4duh%_CM{wN+^Ul{QVl`t*;Fl1$!Vxgj&itwUi<k*d*)P?=YLG1Ku<^`fn3}NLd4q7q*M?%lqxfr9R!f
G}J#x$0&;3QR9T5d}|QKLP2XN4838|Y5VLOoSk4s%!oC^1T8!-jh$6d#37WRGATMzFn%pHl=V*RRUa_`PKiryKX>8uD$CB6f<TleRG1BVndOvwpNwP|>ephV
0wgdm15}?3bddmaX<XA$8+i4>=afjSwr?CSl?-5tbP2cfYw?7|N{&&cx8bJ)U3A*;4AFqksxOcI;!d<fWkMT@aDPs@0ZMd>dGdHl(#verlaFTnIPpt-wB&nJ
G?e%f&(*>R(j&UEMr%$GRjix<^ue)oWG;k6amq1}^1+Em{{Q`5{F^myO-ud72qlimfJAs}7*Xf|HgEb~T2W6p00GzzfPqf{xL`;4vBYQl0ssI200dcD
"""


def fill(t, path, seed):
    """Four snapshots of a volume that is written all over; what it has in the end."""
    rng = random.Random(seed)
    s = serve(t, f"d=vol:{path}")
    with disk(s) as c:
        content = bytearray(c.size)
        for i in range(4):
            for _ in range(40):
                at, n = rng.randrange(c.size // BLOCK - 16) * BLOCK, rng.randrange(1, 16) * BLOCK
                data = rng.randbytes(n)
                c.write(at, data)
                content[at:at + n] = data
            c.flush()
            run(t, "volume", "snapshot", f"{path}@s{i}")
    s.stop()
    return bytes(content)


def told(t, *words, status=0):
    return json.loads(run(t, "volume", *words, "--json", status=status)[0])


def flip(path, at):
    with open(path / "data", "r+b") as f:
        f.seek(at)
        byte = f.read(1)[0]
        f.seek(at)
        f.write(bytes([byte ^ 0x10]))


# ---- check and scrub

@test
def test_what_is_whole(t):
    path = make(t, "8M")
    empty = told(t, "check", path)
    check_eq((empty["blocks"], empty["damage"]), (0, []), "an empty volume")
    fill(t, path, suite.SEED)
    for words in (("check", path), ("scrub", path, "--rate", "0"), ("scrub", path)):
        report = told(t, *words)
        check_eq((report["damaged"], report["damage"]), (0, []), f"{words}")
        check(report["blocks"] > 500, f"{report}")
    check_eq(told(t, "check", path)["lost_bytes"], 0, "what is counted as in use is")
    s = serve(t, f"d=vol:{path}")
    for words in (("check", path), ("scrub", path, "--rate=0")):
        check_eq(told(t, *words)["damage"], [], f"{words} beside a server")
        s.wait_log(f"{words[0]}: ")
    s.stop()


@test
def test_a_scrub_beside_requests(t):
    path = make(t, "8M")
    content = fill(t, path, suite.SEED)
    s = serve(t, f"d=vol:{path}")
    # So slow that it is still there when it is stopped.
    p = command.start(t, "volume", "scrub", path, "--rate", "1")
    with disk(s) as c:
        check_eq(c.read(0, len(content)), content, "reads meanwhile")
        c.write(0, b"n" * BLOCK)
        c.flush()
    run(t, "volume", "snapshot", f"{path}@meanwhile")
    suite.wait_until(lambda: p.poll() is not None or serverproc.takes_sigterm(p.pid), 30, "that it takes signals")
    p.send_signal(signal.SIGINT)
    out, err = p.communicate(timeout=suite.bound(60))
    check((p.returncode, out) == (1, b"") and b"stopped" in err or p.returncode == 0, f"{p.returncode} {out} {err}")
    # One that the server's end stops.
    p = command.start(t, "volume", "scrub", path, "--rate", "1")
    suite.wait_until(lambda: p.poll() is not None or serverproc.takes_sigterm(p.pid), 30, "that it has begun")
    s.stop()
    p.communicate(timeout=suite.bound(60))
    check_eq(told(t, "scrub", path, "--rate", "0")["damage"], [], "afterwards")


@test
def test_damage_is_named(t):
    path = make(t, "1M", "v", "--segment-size", "64K")
    s = serve(t, f"d=vol:{path}")
    with disk(s) as c:
        for i in range(100):
            c.write(i * BLOCK, bytes([i + 1]) * BLOCK)
    run(t, "volume", "snapshot", f"{path}@s")
    s.stop()
    whole = (path / "data").read_bytes()

    def damaged(at, *words, status=1):
        flip(path, at)
        out, err = run(t, "volume", "check", path, status=status)
        (path / "data").write_bytes(whole)
        for word in words:
            check(word in out.decode(), f"{word!r} in {out.decode()[-600:]!r}")
        return out.decode(), err

    # A block: named once, though the disk and its snapshot both have it.
    out, err = damaged(whole.index(bytes([51]) * BLOCK) + 5, "block 50 (byte 204800)", "1 places are damaged")
    check("is damaged" in err, err)
    # A superblock, either of them, and the manifests that they lead to.
    for slot in SLOTS:
        damaged(slot + 50, "superblock")
        manifest = int.from_bytes(whole[slot + 96:slot + 104], "little")
        damaged(manifest + 10, "manifest")
    flip(path, whole.index(bytes([51]) * BLOCK) + 5)
    for words in (("scrub", path, "--rate", "0"), ("check", path)):
        report = told(t, *words, status=1)
        check_eq(report["damaged"], 1, f"{words}")
        check("block 50 " in report["damage"][0], f"{report}")
    s = serve(t, f"d=vol:{path}")
    report = told(t, "scrub", path, "--rate", "0", status=1)
    check_eq(report["damaged"], 1, "by a server")
    check(told(t, "info", path)["bad_blocks"] > 0, "counted")
    s.wait_log("1 places are damaged")
    with disk(s) as c:
        check_eq(c.error_of(nbd.CMD_READ, 50 * BLOCK, BLOCK), 5, "and never read")
    s.stop()


@test
def test_malformed(t):
    path = make(t, "8M")
    for words in (("scrub", path, "--rate", "fast"), ("scrub", path, "--rate=-1"), ("scrub", path, "--rate", "1000001"),
                  ("scrub", f"{path}@s"), ("scrub",), ("upgrade",), ("upgrade", f"{path}@s"), ("check", path, "--rate", "5")):
        refused(t, "volume", *words, status=2)
    refused(t, "volume", "scrub", t.tmp / "none", words="no volume")
    refused(t, "volume", "upgrade", t.tmp / "none", words="no volume")


# ---- upgrade

@test
def test_a_volume_of_version_1(t):
    path = t.tmp / "old"
    path.mkdir()
    data = lzma.decompress(base64.b85decode("".join(VERSION_1.split())))
    (path / "data").write_bytes(data)
    for words in (("info", path), ("check", path), ("snapshot", f"{path}@s")):
        refused(t, "volume", *words, words=("version 1", "netblk volume upgrade"))
    code, _, err = serverproc.run_cli(["--export", f"d=vol:{path}", "--listen", f"netblk://127.0.0.1:{serverproc.free_port()}"])
    check(code == 1 and "netblk volume upgrade" in err, err)
    check_eq((path / "data").read_bytes(), data, "who refuses it leaves it alone")
    with open(path / "data", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        refused(t, "volume", "upgrade", path, words=("in use", str(os.getpid())))
    out, _ = run(t, "volume", "upgrade", path)
    check(b"format version 2" in out, out)
    out, _ = run(t, "volume", "upgrade", path)
    check(b"already" in out, out)
    s = serve(t, f"d=vol:{path}", f"f=vol:{path}@first")
    for name, later in (("d", True), ("f", False)):
        with disk(s, name) as c:
            for i in range(24):
                want = i + 101 if later and i < 12 else i + 1
                if later and i in (20, 22, 23):
                    want = 0xee if i == 23 else 0
                check_eq(c.read(i * 2 * BLOCK, BLOCK), bytes([want]) * BLOCK, f"block {2 * i} of {name}")
                check_eq(c.read((i * 2 + 1) * BLOCK, BLOCK), bytes(BLOCK), f"block {2 * i + 1} of {name}")
    with disk(s, "d") as c:
        c.write(0, b"z" * BLOCK)
    s.stop()
    check_eq(told(t, "check", path)["damage"], [], "afterwards")


@test
def test_what_cannot_be_upgraded(t):
    path = make(t, "8M")
    out, _ = run(t, "volume", "upgrade", path)
    check(b"already" in out, out)
    s = serve(t, f"d=vol:{path}")
    refused(t, "volume", "upgrade", path, words=("in use", str(s.pid)))
    s.stop()
    (path / "data").write_bytes(bytes(2 * MIB))
    refused(t, "volume", "upgrade", path, words=("cannot be upgraded", "superblock"))


if __name__ == "__main__":
    sys.exit(suite.main("volume upkeep"))
