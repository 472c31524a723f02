"""Goal: a read sees every write that was submitted before it and none that came after, wherever
the bytes are at that moment: in the file, held, or on their way.

The table of overlaps opens the file; the disk has a gate, so held and flying are what they are for
as long as a test wants.
"""

from __future__ import annotations

import random
import signal
from typing import Any

import numpy as np
import pytest
from gated import MS, WRITE_WINDOW_MS
from oracle import READ, WRITE, Noted, OpsOracle

OLD = bytes(range(65, 91)) * 400  # ABC...Z, 10400 bytes
SIZE = len(OLD)


def new(n: int, salt: int = 0) -> bytes:
    return random.Random(f"{n} {salt}").randbytes(n)


# What a read of [at, at + n) meets: writes as (offset, length), in the order of submission.
OVERLAPS = [
    ("the same", (100, 50), [(100, 50)]),
    ("within", (110, 10), [(100, 50)]),
    ("around", (90, 80), [(100, 50)]),
    ("the front", (90, 20), [(100, 50)]),
    ("the back", (140, 30), [(100, 50)]),
    ("before, touching", (50, 50), [(100, 50)]),
    ("after, touching", (150, 50), [(100, 50)]),
    ("one byte at the front", (99, 2), [(100, 50)]),
    ("one byte at the back", (149, 2), [(100, 50)]),
    ("two with a hole", (90, 120), [(100, 20), (160, 20)]),
    ("two that touch", (90, 120), [(100, 20), (120, 20)]),
    ("the younger over the older", (90, 120), [(100, 50), (120, 50)]),
    ("the younger before the older", (90, 120), [(120, 50), (100, 50)]),
    ("the younger within the older", (90, 120), [(100, 50), (110, 10)]),
    ("the younger around the older", (90, 120), [(110, 10), (100, 50)]),
    ("the same three times", (95, 60), [(100, 50), (100, 50), (100, 50)]),
    ("a comb", (0, 1000), [(k * 100, 50) for k in range(10)]),
    ("a comb, filled later", (0, 1000), [(k * 100, 50) for k in range(10)] + [(50, 900)]),
    ("across pages", (4090, 20), [(4000, 96), (4096, 100)]),
    ("one over many pages", (4000, 5000), [(10, 10_000)]),
    ("far away", (9000, 100), [(100, 50)]),
    ("nothing", (100, 0), [(100, 50)]),
    ("over the end", (SIZE - 10, 30), [(SIZE - 5, 10)]),
    ("past the end", (SIZE + 10, 30), [(SIZE + 20, 100)]),
    ("past the end, with a hole", (SIZE - 10, 100), [(SIZE + 20, 10)]),
    ("before a write past the end", (SIZE - 10, 20), [(SIZE + 500, 10)]),
    ("after the last write past the end", (SIZE + 600, 20), [(SIZE + 500, 10)]),
]


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("state", ["held", "flying", "flying and held", "done"])
@pytest.mark.parametrize(("at", "writes"), [o[1:] for o in OVERLAPS], ids=[o[0] for o in OVERLAPS])
def test_overlaps(rig: Any, at: Any, writes: Any, state: str, into: bool) -> None:
    r = rig()
    f = r.open(OLD)
    r.occupy()
    oracle = OpsOracle(OLD)

    def read() -> Any:
        offset, n = at
        buffer = bytearray(n) if into else None
        noted = Noted(READ, offset, n, ticket=f.submit_pread(n, offset, into=buffer), buffer=buffer)
        oracle.log.append(noted)
        return noted

    before = read()
    flies_after = {"flying": len(writes), "flying and held": (len(writes) + 1) // 2}.get(state)
    for k, (offset, n) in enumerate(writes, 1):
        data = new(n, k)
        f.submit_pwrite(data, offset)
        oracle.log.append(Noted(WRITE, offset, data))
        if k == flies_after:
            fly(r)
    if state == "done":
        f.flush()
    after = read()
    r.c._check()
    # Younger ones: neither read may see them.
    for k, (offset, n) in enumerate(writes):
        f.submit_pwrite(new(n, k + 100), offset)
        oracle.log.append(Noted(WRITE, offset, new(n, k + 100)))
    r.disk.open()
    for noted in before, after:
        result = noted.ticket.result()
        noted.answer = bytes(noted.buffer[:result]) if into else result
        if into:
            assert not any(noted.buffer[result:])
    f.flush()
    oracle.settle()
    assert r.path().read_bytes() == oracle.data


def fly(r: Any) -> None:
    """What is held is on its way now, and the gate keeps it there. The reads go first."""
    r.disk.close(kind="write")
    count = len(r.disk.ops("write"))
    r.pass_time(WRITE_WINDOW_MS * MS)
    r.disk.arrived(count + 1, "write")


def test_a_read_of_held_bytes_needs_no_io(rig: Any) -> None:
    r = rig()
    f = r.open(OLD)
    r.occupy()
    f.submit_pwrite(b"0123456789", 100)
    ticket = f.submit_pread(4, 103)
    assert ticket.done()
    assert ticket.result() == b"3456"
    assert ticket.explain().source == "overlay"
    assert r.disk.ops() == []
    assert r.c.stats().overlay_hits == 1


def test_a_result_is_a_snapshot(rig: Any) -> None:
    """Neither the writer's buffer nor a younger write changes what was read."""
    r = rig()
    f = r.open(OLD)
    r.occupy()
    mine = bytearray(b"first")
    f.submit_pwrite(mine, 0)
    mine[:] = b"XXXXX"
    held = f.submit_pread(10, 0)
    f.submit_pwrite(memoryview(b"second"), 0)
    array = np.frombuffer(b"third!", np.uint8).copy()
    f.submit_pwrite(array, 100)
    array[:] = 0
    assert f.pread(6, 100) == b"third!"
    assert held.result() == b"first" + OLD[5:10]
    assert f.pread(10, 0) == b"second" + OLD[6:10]
    f.flush()
    assert held.result() == b"first" + OLD[5:10]
    assert r.path().read_bytes()[:10] == b"second" + OLD[6:10]
    assert r.path().read_bytes()[100:106] == b"third!"


def test_the_size_is_what_it_would_be(rig: Any) -> None:
    r = rig()
    f = r.open(OLD[:100])
    r.occupy()
    assert f.seek(0, 2) == 100
    far = f.submit_pwrite(b"far", 200)
    assert far.state == "held"
    assert f.seek(0, 2) == 203
    assert r.path().stat().st_size == 100
    assert f.pread(200, 90) == OLD[90:100] + bytes(100) + b"far"
    assert f.pread(5, 150) == bytes(5)
    assert f.pread(10, 300) == b""
    assert f.read_ranges([95, 150], 10).tobytes() == OLD[95:100] + bytes(15)
    assert far.state in ("held", "done")
    f.flush()
    assert r.path().read_bytes() == OLD[:100] + bytes(100) + b"far"
    assert f.truncate(150) == 150
    assert f.seek(0, 2) == 150
    assert r.path().stat().st_size == 150


def test_truncate_has_its_place_among_held_writes(rig: Any) -> None:
    r = rig()
    f = r.open(OLD[:100])
    r.occupy()
    read = f.submit_pread(100, 50)
    f.submit_pwrite(b"before", 120)
    f.truncate(60)
    f.submit_pwrite(b"after", 70)
    assert f.seek(0, 2) == 75
    assert f.pread(100, 50) == OLD[50:60] + bytes(10) + b"after"
    assert read.result() == OLD[50:100]
    f.flush()
    assert r.path().read_bytes() == OLD[:60] + bytes(10) + b"after"


def test_write_is_seen_by_the_files_own_reads_at_once(rig: Any) -> None:
    r = rig()
    f = r.open(OLD[:100])
    r.occupy()
    f.seek(98)
    assert f.write(b"behind") == 6
    assert r.disk.ops("write") == []
    assert f.tell() == 104 == f.seek(0, 2)
    f.seek(90)
    assert f.read(100) == OLD[90:98] + b"behind"
    memory = bytearray(4)
    f.seek(99)
    assert f.readinto(memory) == 4
    assert memory == b"ehin"
    f.flush()
    assert r.path().read_bytes() == OLD[:98] + b"behind"


def test_of_overlapping_writes_only_the_last_ones_bytes_are_written(rig: Any) -> None:
    r = rig()
    f = r.open(OLD)
    r.occupy()
    for k in range(50):
        f.submit_pwrite(new(100, k), 1000)
        f.submit_pwrite(new(60, k), 1080)
    f.flush()
    written = sum(n for _, _, n in r.disk.ops("write"))
    assert written == 140, "[1000, 1140), once"
    assert r.path().read_bytes()[1000:1140] == new(100, 49)[:80] + new(60, 49)
    stats = r.c.stats()
    assert stats.bytes_written == 140
    assert stats.bytes_superseded == 50 * 160 - 140


@pytest.mark.parametrize("keep", [False, True])
def test_rewriting_one_page_for_ever_stays_bounded(rig: Any, keep: bool) -> None:
    """Whoever drops the tickets needs the memory of a few pages; whoever keeps them, the bound."""
    bound = 1 << 20
    r = rig(max_held_bytes=bound)
    f = r.open(OLD)
    r.occupy()
    page = bytearray(4096)
    kept: list[Any] = []
    most = 0
    for k in range(100_000 if not keep else 5000):
        page[:4] = k.to_bytes(4, "little")
        ticket = f.submit_pwrite(page, 0)
        if keep:
            kept.append(ticket)
        if k % 100 == 0:
            most = max(most, r.c.stats().held_bytes)
            r.c._check()
    assert most <= (bound if keep else 8 * 4096), "two generations"
    f.flush()
    assert all(ticket.result() == 4096 for ticket in kept)
    assert r.path().read_bytes()[:4096] == page
    stats = r.c.stats()
    assert stats.held_bytes == 1, "the one that occupies the device"
    written = sum(n for _, _, n in r.disk.ops("write"))
    assert stats.bytes_written == written
    total = 4096 * (len(kept) or 100_000)
    assert stats.bytes_superseded == total - written
    assert written <= total // 100


def test_held_and_flying_generations_do_not_mix(rig: Any) -> None:
    """A third generation gathers behind one that flies; each read sees the youngest before it."""
    r = rig()
    f = r.open(OLD)
    r.occupy()
    f.submit_pwrite(b"1111", 0)
    fly(r)
    f.submit_pwrite(b"22", 1)
    first = f.submit_pread(4, 0)
    f.submit_pwrite(b"3", 2)
    second = f.submit_pread(4, 0)
    assert (first.result(), second.result()) == (b"1221", b"1231")
    assert len(r.disk.ops("write")) == 1, "the next generation waits: these bytes are on their way"
    r.disk.open()
    f.flush()
    assert r.path().read_bytes()[:4] == b"1231"


def test_two_files_have_nothing_to_do_with_each_other(rig: Any) -> None:
    r = rig()
    f, g = r.open(OLD), r.open(OLD, "second")
    r.occupy()
    f.submit_pwrite(b"f", 0)
    assert g.pread(1, 0) == OLD[:1]
    assert f.pread(1, 0) == b"f"


def test_a_read_joins_one_under_way_unless_a_write_came_between(rig: Any) -> None:
    r = rig()
    f = r.open(OLD)
    r.disk.close()
    first = f.submit_pread(100, 1000)
    r.disk.arrived(1)
    inside = f.submit_pread(10, 1050)
    assert inside.state == "flying"
    f.submit_pwrite(b"between", 1050)
    later = f.submit_pread(20, 1045)
    apart = f.submit_pread(10, 1000)
    r.disk.open()
    assert first.result() == OLD[1000:1100]
    assert inside.result() == OLD[1050:1060]
    assert inside.explain().source == "joined"
    assert apart.result() == OLD[1000:1010]
    assert later.result() == OLD[1045:1050] + b"between" + OLD[1057:1065]
    assert r.c.stats().joins >= 1
    f.flush()
    reads = r.disk.ops("read")
    assert reads[0] == ("read", 1000, 100)
    f.pread(5, 1050)
    assert f.pread(7, 1050) == b"between"


def test_a_joined_read_goes_again_ahead_of_what_came_after_it(rig: Any) -> None:
    """The read that it joined fails while a truncate, which came later, waits for both: for this
    one also when it goes again."""
    r = rig()
    f = r.open(OLD)
    r.disk.close()
    r.disk.bad(1000, 1010)
    first = f.submit_pread(100, 1000)
    r.disk.arrived(1)
    inside = f.submit_pread(10, 1050)
    assert r.c.stats().joins == 1

    alarms = 0

    def let_one_end_at_a_time(*_: Any) -> None:
        nonlocal alarms
        alarms += 1
        with r.disk.lock:
            r.disk.open()
            if alarms == 1:
                r.disk.close("read", (1050, 1060))

    usual = signal.signal(signal.SIGALRM, let_one_end_at_a_time)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02, 0.02)  # the truncate waits by then
        f.truncate(5)
        assert alarms > 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, usual)
    with pytest.raises(OSError, match="Input/output"):
        first.result()
    assert inside.result() == OLD[1050:1060]
    assert f.pread(100, 0) == OLD[:5]


def test_a_read_after_a_finished_write_does_not_join_an_older_read(rig: Any) -> None:
    """The write is over and gone from the overlay; the read before it is still under way."""
    r = rig()
    f = r.open(OLD)
    r.disk.close(kind="read")
    slow = f.submit_pread(1000, 0)
    r.disk.arrived(1)
    assert f.pwrite(b"apart", 5000) == 5
    written = f.submit_pwrite(b"over", 500)
    again = f.submit_pread(10, 498)
    r.disk.open()
    assert written.result() == 4
    assert slow.result() == OLD[:1000]
    assert again.result() == OLD[498:500] + b"over" + OLD[504:508]
    assert f.pread(10, 498) == OLD[498:500] + b"over" + OLD[504:508]
