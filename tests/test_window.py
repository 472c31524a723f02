"""Goal: a hold ends when it must, for the reason it must, and never earlier or later.

The clock stands still and the disk has a gate: what is held, what flies and what is done is the
same in each run. `rig.occupy()` keeps the device busy with a read of another file, so that what is
submitted then has a reason to be held.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import signal
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from gated import MS, READ_WINDOW_US, US, WRITE_WINDOW_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONTENT = random.Random(5).randbytes(400_000)
READ_WINDOW = READ_WINDOW_US * US
WRITE_WINDOW = WRITE_WINDOW_MS * MS


def started(ticket: Any) -> bool:
    """Whether it was dispatched."""
    return ticket.state in ("flying", "done")


def submit(f: Any, kind: str, offset: int, n: int = 10) -> Any:
    if kind == "read":
        return f.submit_pread(n, offset)
    return f.submit_pwrite(CONTENT[:n], offset)


def ended_by(ticket: Any) -> str:
    ticket.result()
    reason = ticket.explain().hold_ended_by
    assert isinstance(reason, str)
    return reason


# -------------------------------------------------------------------------- each end of a hold

KINDS = [("read", READ_WINDOW), ("write", WRITE_WINDOW)]


@pytest.mark.parametrize("kind", ["read", "write"])
def test_alone_on_an_idle_device_it_goes_at_once(rig: Any, kind: str) -> None:
    r = rig()
    f = r.open(CONTENT)
    for turn in range(3):
        ticket = submit(f, kind, 1000 * turn)
        assert started(ticket), "nobody asked for it, no time has passed, and it went"
        assert ended_by(ticket) == "alone"
        r.pass_time(2 * WRITE_WINDOW)


@pytest.mark.parametrize(("kind", "window"), KINDS)
def test_on_a_busy_device_it_is_held_for_its_window(rig: Any, kind: str, window: int) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    first = submit(f, kind, 1000)
    r.pass_time(window // 2)
    second = submit(f, kind, 5000)
    r.pass_time(window - window // 2 - 1)
    assert (first.state, second.state) == ("held", "held")
    assert r.disk.ops() == []
    r.pass_time(1)
    # The earliest deadline counts for all.
    assert started(first)
    assert started(second)
    assert ended_by(first) == ended_by(second) == "time"
    assert first.explain().batch == second.explain().batch
    assert first.explain().requests == 2
    assert first.explain().held_us == pytest.approx(window / US)
    assert second.explain().held_us == pytest.approx((window - window // 2) / US)


def test_reads_and_writes_have_their_own_windows(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    write, read = submit(f, "write", 0), submit(f, "read", 5000)
    r.pass_time(READ_WINDOW)
    assert ended_by(read) == "time"
    r.pass_time(WRITE_WINDOW - READ_WINDOW - 1)
    assert write.state == "held"
    r.pass_time(1)
    assert ended_by(write) == "time"


@pytest.mark.parametrize("kind", ["read", "write"])
def test_many_bytes_end_it(rig: Any, kind: str) -> None:
    r = rig(max_held_bytes=1 << 16)
    f = r.open(CONTENT)
    r.occupy()
    tickets = []
    while not (tickets and started(tickets[0])):
        assert len(tickets) < 16, "as many bytes as may be held, and none goes"
        tickets.append(submit(f, kind, 8000 * len(tickets), 4096))
    assert ended_by(tickets[0]) == "bytes"
    assert len(tickets) > 2, "not the first ones: they are worth waiting for"


@pytest.mark.parametrize("kind", ["read", "write"])
def test_many_requests_end_it(rig: Any, kind: str) -> None:
    r = rig(max_held_requests=20)
    f = r.open(CONTENT)
    r.occupy()
    tickets = []
    while not (tickets and started(tickets[0])):
        assert len(tickets) < 20, "as many as may be held, and none goes"
        tickets.append(submit(f, kind, 100 * len(tickets)))
    assert ended_by(tickets[0]) == "count"
    assert len(tickets) > 2, "not the first ones: they are worth waiting for"


@pytest.mark.parametrize("whose", ["file", "coalescer"])
def test_flush_ends_it(rig: Any, whose: str) -> None:
    r = rig()
    f, g = r.open(CONTENT), r.open(CONTENT, "second")
    r.occupy()
    ours, theirs = submit(f, "write", 0), submit(g, "write", 0)
    assert (ours.state, theirs.state) == ("held", "held")
    (f if whose == "file" else r.c).flush()
    assert ours.done()
    assert ended_by(ours) == "flush"
    assert r.path().read_bytes() == CONTENT
    assert theirs.state == ("held" if whose == "file" else "done")


@pytest.mark.parametrize("kind", ["read", "write"])
def test_who_waits_ends_it(rig: Any, kind: str) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    first, second = submit(f, kind, 0), submit(f, kind, 5000)
    second.result()
    assert started(first)
    assert ended_by(first) == ended_by(second) == "demand"


def test_who_waits_gathers_company_while_the_device_has_no_room(rig: Any) -> None:
    r = rig(depth=1)
    f = r.open(CONTENT)
    r.occupy()
    tickets = [submit(f, "read", 1000 * k) for k in range(5)]
    with pytest.raises(TimeoutError):
        tickets[0].result(timeout=0)
    assert [t.state for t in tickets] == ["held"] * 5
    tickets.append(submit(f, "read", 9000))
    r.disk.open()
    assert tickets[0].result() == CONTENT[:10]
    assert {t.explain().batch for t in tickets} == {tickets[0].explain().batch}
    assert ended_by(tickets[-1]) == "demand"


@pytest.mark.parametrize("kind", ["read", "write"])
def test_the_end_of_the_turn_in_which_somebody_awaits_ends_it(rig: Any, kind: str) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    seen = []

    async def one(offset: int) -> Any:
        ticket = submit(f, kind, offset)
        seen.append(ticket.state)
        await ticket
        return ticket

    async def main() -> None:
        tickets = await asyncio.gather(*[one(1000 * k) for k in range(10)])
        assert seen == ["held"] * 10
        assert {ended_by(t) for t in tickets} == {"turn"}
        assert {t.explain().requests for t in tickets} == {10}

    asyncio.run(main())


def test_what_is_not_awaited_is_not_hurried_by_a_turn(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()

    async def main() -> None:
        ticket = submit(f, "read", 0)
        for _ in range(10):
            await asyncio.sleep(0)
        assert ticket.state == "held"
        r.pass_time(READ_WINDOW)
        assert ended_by(ticket) == "time"

    asyncio.run(main())


def test_close_ends_it(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    write, read = submit(f, "write", 0), submit(f, "read", 100)
    assert (write.state, read.state) == ("held", "held")
    f.close()
    assert ended_by(write) == "flush"
    assert ended_by(read) == "flush"
    assert r.path().read_bytes()[:10] == CONTENT[:10]


def test_a_tick_without_time_does_nothing(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    tickets = [submit(f, "read", 0), submit(f, "write", 500)]
    for _ in range(5):
        r.c.tick()
    assert [t.state for t in tickets] == ["held", "held"]
    r.c._check()


# ----------------------------------------------------------------------- nobody waits for nobody


def test_lance_7861_reads_are_not_serialised_behind_the_batch_before(rig: Any) -> None:
    """Waiting for the previous batch before the next one took callers 2-3 times as long."""
    r = rig()
    f = r.open(CONTENT)
    r.disk.close(within=(0, 100))
    first = submit(f, "read", 0)
    r.disk.arrived(1)
    # These return while the first batch is under way; if they waited for it, they never would.
    assert f.pread(10, 5000) == CONTENT[5000:5010]
    assert submit(f, "read", 6000).result() == CONTENT[6000:6010]
    assert f.read_ranges([7000, 9000], 10).tobytes() == CONTENT[7000:7010] + CONTENT[9000:9010]
    assert f.pwrite(b"new", 20_000) == 3
    f.submit_pwrite(b"new", 30_000)
    f.flush()
    assert first.state == "flying"
    r.disk.open()
    assert first.result() == CONTENT[:10]


def test_a_write_waits_only_for_reads_of_its_own_bytes(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.close(kind="read")
    read = submit(f, "read", 0)
    r.disk.arrived(1)
    over = f.submit_pwrite(b"over", 5)
    with pytest.raises(TimeoutError):
        over.result(timeout=0)
    assert not over.done()
    assert r.disk.ops("write") == []
    r.disk.open()
    assert over.result() == 4
    assert read.result() == CONTENT[:10], "the older bytes"
    r.disk.close(kind="read")
    read = submit(f, "read", 0)
    apart = f.submit_pwrite(b"apart", 10)
    assert apart.result() == 5
    assert read.state == "flying"


def test_a_write_is_not_kept_waiting_by_a_stream_of_reads(rig: Any) -> None:
    """No longer than its window, and a batch: not even when all of them want its own bytes."""
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    write = submit(f, "write", 100)
    steps = 20
    for step in range(steps):
        reads = [submit(f, "read", 90), submit(f, "read", 2000 + step * 50)]
        assert reads[0].result()[:10] == CONTENT[90:100]
        if step < steps - 1:
            r.pass_time(WRITE_WINDOW // steps)
    assert write.state == "held"
    r.pass_time(WRITE_WINDOW)
    assert started(write)
    write.result()


def test_a_flood_of_writes_keeps_no_reader_out(rig: Any) -> None:
    """Writes fill their share of the bounds and of the device; reads have one of their own."""
    r = rig(max_held_requests=8, depth=1)
    f, other = r.open(CONTENT), r.open(CONTENT, "another")
    r.disk.close(kind="write")
    writes = [f.submit_pwrite(b"x", 2 * k) for k in range(7)]
    r.disk.arrived(1, "write")

    async def one_more() -> Any:
        return other.submit_pwrite(b"x", 0)

    more = asyncio.run(one_more())
    assert more.state == "parked"
    # These return although no write can end; if they waited for one, they never would.
    assert f.pread(10, 300) == CONTENT[300:310]
    assert f.submit_pread(10, 310).result() == CONTENT[310:320]
    assert f.pread(3, 1) == CONTENT[1:2] + b"x" + CONTENT[3:4]
    assert not any(w.done() for w in [*writes, more])
    r.disk.open()
    f.flush()
    assert more.result() == 1


# ---------------------------------------------------------------------------------------- order


def offsets_of(r: Any, f: Any, offsets: list[int]) -> list[int]:
    """In which order a batch of reads at these offsets reaches the disk."""
    r.disk.log.clear()
    tickets = [submit(f, "read", offset) for offset in offsets]
    r.pass_time(READ_WINDOW)
    for ticket in tickets:
        ticket.result()
    return [offset for _, offset, _ in r.disk.ops("read")]


def test_the_elevator_goes_on_from_where_it_was(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    assert offsets_of(r, f, [5000, 1000, 9000]) == [1000, 5000, 9000]
    # It is at 9010: up first, and then one turn, not back down.
    assert offsets_of(r, f, [2000, 9500, 4000, 9005]) == [9500, 2000, 4000, 9005]
    assert offsets_of(r, f, [9600, 9100, 100]) == [9100, 9600, 100]


def test_fifo_keeps_the_order_of_arrival(rig: Any) -> None:
    r = rig(order="fifo")
    f = r.open(CONTENT)
    r.occupy()
    assert offsets_of(r, f, [5000, 1000, 9000, 9010, 20]) == [5000, 1000, 9000, 20]


def test_a_burst_becomes_few_large_ios(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    offsets = list(range(0, 100 * 64, 64))
    random.Random(2).shuffle(offsets)
    tickets = [submit(f, "read", offset, 64) for offset in offsets * 2]
    assert all(t.state == "held" for t in tickets)
    r.pass_time(READ_WINDOW)
    for ticket, offset in zip(tickets, offsets * 2, strict=True):
        assert ticket.result() == CONTENT[offset : offset + 64]
    assert r.disk.ops() == [("read", 0, 6400)]
    assert r.c.stats().duplicates == 100


@pytest.mark.parametrize("max_waste", [0.0, 0.25, 3.0, float("inf")])
@pytest.mark.parametrize("gap", [4096, 1 << 20])
def test_holes_cost_no_more_than_max_waste(rig: Any, max_waste: float, gap: int) -> None:
    """rocksdb#6979: thirty reads of 100 bytes became one of 100 MiB."""
    chance = np.random.default_rng(int(gap))
    for spread in (200, 2000, 10_000):
        r = rig(gap=gap, max_waste=max_waste)
        f = r.open(CONTENT, f"spread {spread}")
        r.occupy()
        before = r.c.stats().bytes_moved
        offsets = np.cumsum(chance.integers(100, spread, 30)).tolist()
        tickets = [submit(f, "read", offset, 100) for offset in offsets]
        r.pass_time(READ_WINDOW)
        for ticket, offset in zip(tickets, offsets, strict=True):
            assert ticket.result() == CONTENT[offset : offset + 100]
        moved = sum(n for _, _, n in r.disk.ops("read"))
        assert moved <= 3000 * (1 + max_waste)
        assert r.c.stats().bytes_moved - before == moved
        gaps = [b - a - 100 for a, b in itertools.pairwise(offsets)]
        assert moved >= 3000
        if max_waste == float("inf"):
            assert moved == 3000 + sum(g for g in gaps if g <= gap)
        elif sum(g for g in gaps if g <= gap) <= 3000 * max_waste:
            assert moved == 3000 + sum(g for g in gaps if g <= gap), "there was room for all"


# --------------------------------------------------------------------------------------- shaping


@pytest.mark.parametrize("kind", ["read", "write"])
@pytest.mark.parametrize("limit", [{"max_iops": 20}, {"max_bytes_per_s": 20 * 5000}])
def test_shaping_leaves_room_for_others(rig: Any, limit: dict[str, int], kind: str) -> None:
    """Sixty requests at twenty a second take three seconds, less what may go through at once."""
    r = rig(**limit)
    f = r.open(CONTENT)
    begin, count = r.clock.now, 60
    for k in range(count):
        ticket = submit(f, kind, 6000 * k, 5000)
        while not ticket.done():
            try:
                ticket.result(timeout=0)
            except TimeoutError:
                if ticket.state == "held":
                    r.pass_time(MS)
                else:
                    ticket.result()
    took = (r.clock.now - begin) / 1e9
    burst = 20 * 0.1 + 1
    assert (count - burst - 1) / 20 <= took <= count / 20 + 0.07
    assert len(r.disk.ops(kind)) == count


def test_what_shaping_put_off_goes_when_it_may(rig: Any) -> None:
    """Who waits has ended the hold, and does not ask again."""
    r = rig(max_iops=20, write_window_ms=1e9)
    f = r.open(CONTENT)
    for k in itertools.count():
        put_off = submit(f, "write", 5000 * k)
        with contextlib.suppress(TimeoutError):
            put_off.result(timeout=0)
        if put_off.state == "held":
            break
        put_off.result()
    r.pass_time(1000 * MS)
    assert put_off.state != "held", "its window is longer"
    assert put_off.result() == 10


class StopError(Exception):
    """Raised by a signal's handler."""


@pytest.fixture
def interruptible() -> Iterator[Callable[[], None]]:
    """Call it in another thread: this one, wherever it waits, gets a StopError."""

    def stop(*_: Any) -> None:
        raise StopError

    usual, main = signal.signal(signal.SIGUSR1, stop), threading.get_ident()
    yield lambda: signal.pthread_kill(main, signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, usual)


CALLS = {
    "pread": lambda f: f.pread(10, 0),
    "pwrite": lambda f: f.pwrite(b"never", 0),
    "submit_pread": lambda f: f.submit_pread(10, 0),
    "submit_pwrite": lambda f: f.submit_pwrite(b"never", 0),
    "write": lambda f: f.write(b"never"),
    "sync": lambda f: f.sync(),
    "flush": lambda f: (f.submit_sync(), f.flush()),
}


@pytest.mark.parametrize("call", CALLS)
def test_who_waits_for_room_can_be_interrupted(rig: Any, interruptible: Any, call: str) -> None:
    r = rig(max_held_requests=1)
    f = r.open(CONTENT)
    r.occupy()
    assert r.c.stats().held_requests == 1

    def call_and_stop() -> None:
        other.start()
        CALLS[call](f)

    other = threading.Thread(target=interruptible)
    with pytest.raises(StopError):
        call_and_stop()
    other.join()
    r.c._check()
    r.disk.open()
    f.flush()
    assert f.pread(10, 0) == CONTENT[:10]


def test_an_interrupted_wait_harms_nobody_who_joined(rig: Any, interruptible: Any) -> None:
    """A read waits for a write past the window; another read joins it; then it is given up."""
    r = rig()
    f = r.open(CONTENT)
    r.disk.close()
    writer = threading.Thread(target=f.write_ranges, args=([0], b"new!"))
    writer.start()
    r.disk.arrived(1)
    joined: list[Any] = []
    before = r.c.stats().reads

    def join_and_stop() -> None:
        while r.c.stats().reads == before:
            pass
        joined.append(f.submit_pread(4, 6))
        interruptible()

    def read() -> None:
        other.start()
        f.pread(10, 0)

    other = threading.Thread(target=join_and_stop)
    with pytest.raises(StopError):
        read()
    other.join()
    assert r.c.stats().joins == 1
    r.disk.open()
    writer.join()
    assert joined[0].result() == CONTENT[6:10]
    assert f.pread(4, 0) == b"new!"
