"""Goal: a ticket is a concurrent.futures.Future that resolves exactly once and knows its story.

Cancelling, dropping and explaining are about when, so the clock stands still and the disk has a
gate; `rig.occupy()` keeps the device busy, so that what is submitted is held.
"""

from __future__ import annotations

import concurrent.futures
import errno
import gc
import os
import sys
import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest
from gated import MS, READ_WINDOW_US, US, WRITE_WINDOW_MS

import iolift

CONTENT = bytes(range(256)) * 40
EIO = os.strerror(errno.EIO)
SENTINEL = 0xA5


# ----------------------------------------------------------------------------------- as a Future


def test_it_has_what_a_future_has(rig: Any) -> None:
    r = rig()
    ticket = r.open(CONTENT).submit_pread(4, 0)
    names = {n for n in dir(concurrent.futures.Future) if not n.startswith("_")}
    missing = {n for n in names if not hasattr(ticket, n)}
    assert missing <= {"set_result", "set_exception", "set_running_or_notify_cancel"}
    assert isinstance(ticket, iolift.Ticket)
    with pytest.raises(TypeError):
        iolift.Ticket()
    ticket.result()


def test_results(backend: Any, make_file: Any) -> None:
    path, content = make_file(1000)
    with backend.open(path, "r+") as f:
        assert f.submit_pread(10, 5).result() == content[5:15]
        assert f.submit_pread(10, 995).result() == content[995:]
        assert f.submit_pread(10, 2000).result() == b""
        assert f.submit_pread(0, 5).result() == b""
        memory = bytearray(10)
        assert f.submit_pread(10, 995, into=memory).result() == 5
        assert memory == content[995:] + bytes(5)
        assert f.submit_pwrite(b"12345", 5).result() == 5
        assert f.submit_pwrite(b"", 5).result() == 0
        assert f.submit_sync().result() is None
        ticket = f.submit_pread(10, 0)
        assert ticket.exception() is None
        assert ticket.result() == ticket.result() == content[:5] + b"12345"
        assert (ticket.done(), ticket.cancelled(), ticket.running()) == (True, False, False)
        assert ticket.cancel() is False


def test_states(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    ticket = f.submit_pread(4, 0)
    assert (ticket.state, ticket.running(), ticket.done()) == ("held", False, False)
    r.disk.close()
    r.pass_time(READ_WINDOW_US * US)
    assert (ticket.state, ticket.running(), ticket.done()) == ("flying", True, False)
    r.disk.open()
    assert ticket.result() == CONTENT[:4]
    assert (ticket.state, ticket.running(), ticket.done()) == ("done", False, True)
    assert "4 bytes at 0" in repr(ticket)


def test_timeout(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.close()
    ticket = f.submit_pread(4, 0)
    for wait in (ticket.result, ticket.exception):
        for timeout in (0, 0.0, 0.01, -1):
            with pytest.raises(TimeoutError):
                wait(timeout=timeout)
            with pytest.raises(TimeoutError):
                wait(timeout)
    assert not ticket.done()
    r.disk.open()
    assert ticket.result(1000) == CONTENT[:4]
    assert ticket.exception(0) is None


def test_errors(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.bad(100, 200)
    r.disk.bad(300, 400, errno.ENOSPC)
    read, write = f.submit_pread(4, 100), f.submit_pwrite(b"data", 300)
    for ticket, number in ((read, errno.EIO), (write, errno.ENOSPC)):
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                ticket.result()
            assert caught.value.errno == number
            assert str(caught.value.filename) == str(r.path())
            assert ticket.exception().errno == number
        assert ticket.state == "done"
        assert not ticket.cancelled()
        assert ticket.cancel() is False
    f.flush()


def test_a_failed_ticket_fails_alone(rig: Any) -> None:
    """Merged into one I/O, and each still has its own outcome."""
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    r.disk.bad(150, 151)
    reads = [f.submit_pread(50, 50 * k) for k in range(10)]
    writes = [f.submit_pwrite(bytes(50), 50 * k) for k in range(10)]
    assert {t.state for t in reads + writes} == {"held"}
    r.pass_time(WRITE_WINDOW_MS * MS)
    for tickets in reads, writes:
        for k, ticket in enumerate(tickets):
            error = ticket.exception()
            assert (error is None) == (k != 3), f"{k}: {error!r}"
    assert reads[4].result() == CONTENT[200:250]
    assert r.path().read_bytes()[:500] == bytes(150) + CONTENT[150:200] + bytes(300)


def test_bad_arguments_are_refused_at_the_call(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    held = f.submit_pread(4, 0)
    for call, error in (
        (lambda: f.submit_pread(-1, 0), ValueError),
        (lambda: f.submit_pread(1, -1), ValueError),
        (lambda: f.submit_pread(1, 2**63 - 1), ValueError),
        (lambda: f.submit_pread(1.5, 0), TypeError),
        (lambda: f.submit_pread(4, 0, into=b"read"), (TypeError, ValueError, BufferError)),
        (lambda: f.submit_pread(4, 0, into=bytearray(3)), ValueError),
        (lambda: f.submit_pwrite("text", 0), TypeError),
        (lambda: f.submit_pwrite(b"x", -1), ValueError),
        (lambda: f.submit_pwrite(b"x", 2**63 - 1), ValueError),
        (lambda: f.submit_pwrite(memoryview(b"abcd")[::2], 0), (ValueError, BufferError)),
    ):
        with pytest.raises(error):
            call()
    assert r.c.stats().held_requests == 2, "the occupier's and the one that is right"
    assert held.result() == CONTENT[:4]
    reader = r.c.open(r.path(), "r")
    with pytest.raises(OSError, match="not open for writing"):
        reader.submit_pwrite(b"x", 0)
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.submit_pread(1, 0)


# ------------------------------------------------------------------------------------- callbacks


def test_callbacks_come_once_each_whenever_added(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.close()
    heard: list[Any] = []
    ticket = f.submit_pread(4, 0)
    done = threading.Event()
    ticket.add_done_callback(lambda t: heard.append(("first", t)))
    ticket.add_done_callback(lambda t: (heard.append(("second", t)), done.set()))
    assert heard == []
    r.disk.open()
    assert ticket.result() == CONTENT[:4]
    done.wait()
    assert [name for name, _ in heard] == ["first", "second"]
    ticket.add_done_callback(lambda t: heard.append(("late", t)))
    assert [name for name, _ in heard] == ["first", "second", "late"]
    assert all(t is ticket for _, t in heard)
    with pytest.raises(TypeError):
        ticket.add_done_callback(None)


def test_callbacks_of_a_cancelled_ticket(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    heard: list[Any] = []
    ticket = f.submit_pread(4, 0)
    ticket.add_done_callback(heard.append)
    assert ticket.cancel()
    assert heard == [ticket]
    assert ticket.cancel(), "as a Future: cancelled is cancelled"
    ticket.add_done_callback(heard.append)
    assert heard == [ticket, ticket]


def test_a_callback_that_raises_hurts_nobody(rig: Any, monkeypatch: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    said: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda u: said.append(u.exc_value))
    bad, good = f.submit_pread(4, 0), f.submit_pread(4, 4)
    done = threading.Event()
    bad.add_done_callback(lambda t: 1 // 0)
    bad.add_done_callback(lambda t: done.set())
    r.pass_time(READ_WINDOW_US * US)
    assert (bad.result(), good.result()) == (CONTENT[:4], CONTENT[4:8])
    done.wait()
    assert [type(e) for e in said] == [ZeroDivisionError]


def test_a_callback_may_ask_for_more(rig: Any) -> None:
    """Reads and writes, from whichever thread the callback is called in."""
    r = rig()
    f = r.open(CONTENT)
    chain: list[Any] = []
    done = threading.Event()

    def more(ticket: Any) -> None:
        chain.append(ticket.result())
        if len(chain) == 50:
            done.set()
            return
        f.submit_pwrite(b"%4d" % len(chain), 0)
        f.submit_pread(4, 0).add_done_callback(more)

    f.submit_pread(4, 0).add_done_callback(more)
    done.wait()
    assert chain == [CONTENT[:4]] + [b"%4d" % k for k in range(1, 50)]


# ------------------------------------------------------------------------------------ cancelling


def test_a_cancelled_read_is_as_if_never_made(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    memory = bytearray([SENTINEL]) * 10
    ticket, into = f.submit_pread(10, 0), f.submit_pread(10, 100, into=memory)
    other = f.submit_pread(10, 200)
    for cancelled in (ticket, into):
        assert cancelled.cancel() is True
        assert (cancelled.cancelled(), cancelled.done(), cancelled.state) == (
            True, True, "cancelled")  # fmt: skip
        with pytest.raises(CancelledError):
            cancelled.result()
        with pytest.raises(CancelledError):
            cancelled.exception()
    r.pass_time(READ_WINDOW_US * US)
    assert other.result() == CONTENT[200:210]
    assert r.disk.ops() == [("read", 200, 10)]
    assert memory == bytes([SENTINEL]) * 10
    stats = r.c.stats()
    assert stats.cancelled == 2
    assert (stats.held_requests, stats.held_bytes) == (1, 1), "the occupier's"
    r.c._check()


def test_a_cancelled_write_is_as_if_never_made(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    below = f.submit_pwrite(b"below", 0)
    ticket = f.submit_pwrite(b"above", 2)
    end = f.submit_pwrite(b"end", len(CONTENT) + 100)
    assert f.seek(0, 2) == len(CONTENT) + 103
    # Who has been told of that size has seen this write: it is too late.
    assert end.cancel() is False
    assert ticket.cancel() is True
    assert f.pread(10, 0) == b"below" + CONTENT[5:10]
    assert below.cancel() is False, "a read has seen it"
    f.flush()
    assert r.path().read_bytes() == b"below" + CONTENT[5:] + bytes(100) + b"end"


def test_a_cancelled_write_past_the_end_was_never_there(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    ticket = f.submit_pwrite(b"end", len(CONTENT) + 100)
    assert ticket.cancel()
    assert f.seek(0, 2) == len(CONTENT)
    assert f.pread(10, len(CONTENT) - 2) == CONTENT[-2:]
    f.flush()
    assert r.path().read_bytes() == CONTENT


@pytest.mark.parametrize("seen", ["its bytes", "its end", "by read_ranges", "by readinto"])
def test_a_write_that_was_seen_cant_be_withdrawn(rig: Any, seen: str) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    size = len(CONTENT)
    ticket = f.submit_pwrite(b"written", size + 3)
    if seen == "its bytes":
        f.submit_pread(1, size + 5)
    elif seen == "its end":
        f.submit_pread(2, size)
    elif seen == "by read_ranges":
        f.read_ranges([0, size + 5], 1)
    else:
        f.seek(size + 4)
        f.readinto(bytearray(1))
    assert ticket.cancel() is False
    assert not ticket.cancelled()
    f.flush()
    assert ticket.result() == 7
    assert r.path().read_bytes() == CONTENT + bytes(3) + b"written"


def test_a_write_whose_neighbours_were_seen_can_be_withdrawn(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    ticket = f.submit_pwrite(b"written", 100)
    around = [f.submit_pread(10, 90), f.submit_pread(10, 107), f.submit_pread(0, 103)]
    assert ticket.cancel() is True
    assert [t.result() for t in around] == [CONTENT[90:100], CONTENT[107:117], b""]
    f.flush()
    assert r.path().read_bytes() == CONTENT


def test_cancelling_the_younger_brings_back_the_older(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    tickets = [f.submit_pwrite(bytes([k]) * 10, 100) for k in range(1, 6)]
    assert tickets[4].cancel()
    assert tickets[2].cancel()
    assert f.pread(10, 100) == bytes([4]) * 10
    assert tickets[3].cancel() is False
    assert tickets[1].cancel(), "nobody has seen it below the younger one"
    f.flush()
    assert r.path().read_bytes()[100:110] == bytes([4]) * 10
    assert tickets[0].result() == 10


def test_after_dispatch_it_is_too_late(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.close()
    read, write = f.submit_pread(4, 0), f.submit_pwrite(b"data", 100)
    with pytest.raises(TimeoutError):
        write.result(timeout=0)
    r.disk.arrived(2)
    for ticket in (read, write):
        assert ticket.cancel() is False
        assert ticket.state == "flying"
    r.disk.open()
    assert (read.result(), write.result()) == (CONTENT[:4], 4)
    assert r.c.stats().cancelled == 0


def test_cancelling_one_of_several_that_share_an_io(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    memory = bytearray([SENTINEL]) * 10
    tickets = [f.submit_pread(10, 0) for _ in range(3)]
    tickets += [f.submit_pread(10, 0, into=memory), f.submit_pread(30, 0), f.submit_pread(10, 5)]
    assert tickets[0].cancel()
    assert tickets[3].cancel()
    assert tickets[5].cancel()
    r.pass_time(READ_WINDOW_US * US)
    assert tickets[1].result() == tickets[2].result() == CONTENT[:10]
    assert tickets[4].result() == CONTENT[:30]
    assert r.disk.ops() == [("read", 0, 30)]
    assert memory == bytes([SENTINEL]) * 10


def test_a_joined_read_that_cant_be_cancelled_is_answered(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.close()
    first = f.submit_pread(100, 0)
    r.disk.arrived(1)
    joined = f.submit_pread(10, 20)
    withdrawn = joined.cancel()
    r.disk.open()
    assert first.result() == CONTENT[:100]
    if withdrawn:
        assert joined.cancelled()
    else:
        assert joined.result() == CONTENT[20:30]


# ----------------------------------------------------------------------------- dropped tickets


@pytest.mark.parametrize("call", ["flush", "sync", "close", "c.flush", "c.close", "submit_sync"])
def test_the_error_of_a_dropped_write_comes_once(rig: Any, call: str) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.bad(0, 100)
    f.submit_pwrite(b"lost", 0)
    f.submit_pwrite(b"fine", 200)
    calls = {"flush": f.flush, "sync": f.sync, "close": f.close, "c.flush": r.c.flush,
             "c.close": r.c.close, "submit_sync": lambda: f.submit_sync().result()}  # fmt: skip
    whole = calls[call]
    with pytest.raises(OSError, match=EIO):
        whole()
    if "close" not in call:
        whole()
    f.close()
    assert r.path().read_bytes()[200:204] == b"fine"


def test_the_error_of_a_ticket_that_is_still_held_is_not_told_at_flush(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.bad(0, 100)
    ticket = f.submit_pwrite(b"lost", 0)
    f.flush()
    assert ticket.exception().errno == errno.EIO


def test_an_error_on_a_ticket_is_not_told_twice(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.bad(0, 100)
    ticket = f.submit_pwrite(b"lost", 0)
    assert ticket.exception().errno == errno.EIO
    f.flush()
    f.sync()
    f.close()


def test_write_behind_tells_at_flush(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    r.disk.bad(0, 100, errno.ENOSPC)
    assert f.write(b"lost") == 4
    assert f.pread(4, 0) == b"lost", "held: seen, and not yet known to fail"
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        f.flush()
    f.seek(500)
    f.write(b"fine")
    f.flush()
    assert r.path().read_bytes() == CONTENT[:500] + b"fine" + CONTENT[504:]


def test_a_dropped_read_is_no_error(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.disk.bad(0, 100)
    f.submit_pread(4, 0)
    gc.collect()
    f.flush()
    f.close()


def test_every_ticket_resolves_exactly_once(backend: Any, make_file: Any) -> None:
    path, _ = make_file(20_000)
    heard: dict[int, int] = {}
    tickets = []
    with backend.open(path, "r+", max_held_requests=50) as f:
        for k in range(2000):
            ticket = (
                f.submit_pwrite(b"%5d" % k, k * 7 % 19_000)
                if k % 3
                else f.submit_pread(10, k * 11 % 19_000)
            )
            heard[k] = 0

            def note(_: Any, k: int = k) -> None:
                heard[k] += 1

            ticket.add_done_callback(note)
            if k % 7 == 0:
                ticket.cancel()
            tickets.append(ticket)
        cancelled = sum(t.cancelled() for t in tickets)
    assert all(t.done() for t in tickets)
    assert set(heard.values()) == {1}
    assert sum(t.cancelled() for t in tickets) == cancelled


def test_tickets_outlive_file_and_coalescer(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    ticket, lost = f.submit_pread(4, 0), f.submit_pwrite(b"data", 100)
    f.close()
    r.c.close()
    assert ticket.result() == CONTENT[:4]
    assert lost.result() == 4
    assert ticket.explain().state == "done"


# ---------------------------------------------------------------------------- explain and stats


def test_explain_of_a_merged_read(rig: Any) -> None:
    r = rig(gap=100, max_waste=10.0)
    f = r.open(CONTENT)
    r.occupy()
    first = f.submit_pread(100, 1000)
    r.clock.advance(300 * US)
    rest = [f.submit_pread(100, 1100), f.submit_pread(50, 1250), f.submit_pread(10, 9000)]
    said = first.explain()
    assert (said.state, said.batch, said.hold_ended_by) == ("held", None, None)
    r.pass_time(700 * US)
    tickets = [first, *rest]
    for ticket in tickets:
        ticket.result()
    said = first.explain()
    assert (said.kind, said.offset, said.length) == ("read", 1000, 100)
    assert (said.state, said.source, said.hold_ended_by) == ("done", "device", "time")
    assert (said.requests, said.extents) == (4, 2)
    assert (said.extent_offset, said.extent_length, said.companions) == (1000, 300, 2)
    assert said.held_us == pytest.approx(1000)
    assert rest[0].explain().held_us == pytest.approx(700)
    assert rest[2].explain().companions == 0
    assert len({t.explain().batch for t in tickets}) == 1
    assert sum(t.explain().waste_share for t in tickets) == pytest.approx(50)
    text = str(said)
    for part in ("read", "100", "1000", "time"):
        assert part in text
    assert "\n" not in text
    with pytest.raises(AttributeError):
        said.kind = "write"


def test_explain_of_writes_and_syncs(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    covered, above = f.submit_pwrite(b"1234", 10), f.submit_pwrite(b"12345678", 8)
    sync = f.submit_sync()
    sync.result()
    assert covered.explain().hold_ended_by == above.explain().hold_ended_by == "demand"
    assert (above.explain().extent_offset, above.explain().extent_length) == (8, 8)
    assert above.explain().kind == "write"
    assert sync.explain().kind == "sync"
    assert str(sync.explain())
    cancelled = f.submit_pwrite(b"no", 0)
    cancelled.cancel()
    assert cancelled.explain().state == "cancelled"
    assert cancelled.explain().batch is None


def test_stats_in_a_known_story(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    start = r.c.stats()
    assert (start.requests, start.reads, start.held_requests, start.held_bytes) == (1, 1, 1, 1)
    assert start.batches_in_flight == 1
    f.submit_pwrite(b"12345678", 0)
    f.submit_pwrite(b"abcd", 2)
    f.submit_pread(4, 2)
    reads = [f.submit_pread(100, 1000), f.submit_pread(100, 1000), f.submit_pread(100, 1100)]
    f.submit_pread(7, 5000).cancel()
    held = r.c.stats()
    assert (held.held_requests, held.held_bytes) == (6, 1 + 12 + 300)
    assert (held.requests, held.reads, held.writes) == (8, 6, 2)
    assert (held.overlay_hits, held.cancelled, held.batches) == (1, 1, 0)
    r.pass_time(WRITE_WINDOW_MS * MS)
    f.flush()
    for ticket in reads:
        ticket.result()
    stats = r.c.stats()
    assert (stats.held_requests, stats.held_bytes, stats.batches_in_flight) == (1, 1, 1)
    assert stats.batches == 2
    assert stats.extents == 2
    assert stats.duplicates == 1
    assert stats.bytes_moved == 200
    assert stats.bytes_written == 8
    assert stats.bytes_superseded == 4
    assert (stats.syncs_asked, stats.syncs_issued, stats.joins) == (0, 0, 0)
    f.sync()
    last = r.c.stats()
    assert (last.syncs_asked, last.syncs_issued) == (1, 1)
    assert stats.to_dict()["bytes_moved"] == 200
    assert set(stats.to_dict()) == {n for n in dir(stats) if not n.startswith("_")} - {"to_dict"}
    with pytest.raises(AttributeError):
        stats.requests = 0


def test_histograms(rig: Any) -> None:
    r = rig()
    f = r.open(CONTENT)
    r.occupy()
    for wait_us, place in ((3, 2), (4, 3), (700, 10)):
        before = r.c.stats().hold_histogram_us
        assert len(before) == 32
        ticket = f.submit_pread(4, 0)
        assert ticket.state == "held"
        r.clock.advance(wait_us * US)
        ticket.result()
        after = r.c.stats().hold_histogram_us
        grown = [k for k in range(32) if after[k] != before[k]]
        assert grown == [place], f"{wait_us} us is at least 2**(place - 1) and below 2**place"
    assert sum(r.c.stats().service_histogram_us) == 3
