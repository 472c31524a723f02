"""Goal: two hundred thousand operations of every kind, over all backends, and no answer is wrong.

1. The soak (soak.py) with fixed seeds, in single file and with threads and event loops.
2. The same model as a state machine: hypothesis looks for a short story that goes wrong.
3. What watches over the soak is watched: it says so when an answer is wrong, and only then.
4. Each rule that mutants.py breaks stands in the core as it says: it takes long to break them all.

For longer runs: python -m tests.soak --operations 20_000_000 --backend hosted --seed 7
"""

from __future__ import annotations

import errno
import tempfile
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import soak
from conftest import unavailable
from faulty import FaultyDisk
from gated import MS, US, Clock
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from linear import History, stale, unlinearizable
from mutants import MUTANTS, REPOSITORY
from oracle import (
    CONTENT,
    MADE,
    PENDING,
    READ,
    ROW,
    SENTINEL,
    SIZE,
    TRUNCATE,
    UNSURE,
    VOID,
    WRITE,
    Noted,
    OpsOracle,
)

import iolift

SHARES = 8
OPERATIONS = {"single": 8000, "shared": 2000}  # times SHARES, for each of three backends


@pytest.mark.parametrize("share", range(SHARES))
@pytest.mark.parametrize("mode", OPERATIONS)
@pytest.mark.parametrize("backend_name", soak.BACKENDS)
def test_soak(backend_name: str, mode: str, share: int, tmp_path: Path) -> None:
    if reason := unavailable(backend_name):
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(dir=soak.where(backend_name, tmp_path)) as directory:
        operations = OPERATIONS[mode]
        assert soak.soak(backend_name, share, operations, Path(directory), mode) >= operations


# ------------------------------------------------------------------------------ a state machine

PLACES = st.one_of(st.integers(0, 40), st.sampled_from([4090, 4096, 8191]))
LENGTHS = st.one_of(st.integers(0, 20), st.sampled_from([4095, 4096, 5000]))


class Story(RuleBasedStateMachine):
    """One file on a simulated disk, a clock that goes when it is told, and the model beside it."""

    @initialize(
        size=st.sampled_from([0, 10, 50, 5000]),
        order=st.sampled_from(["elevator", "fifo"]),
        gap=st.sampled_from([0, 5, "auto"]),
        max_io=st.sampled_from([1, 7, 4096, 1 << 20]),
        max_held_bytes=st.sampled_from([1, 100, 10_000, 1 << 20]),
        max_held_requests=st.sampled_from([1, 3, 100]),
        depth=st.sampled_from([1, 2, 100]),
        seed=st.integers(0, 5),
    )
    def begin(self, size: int, gap: Any, seed: int, **options: Any) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "data"
        content = bytes(k % 251 + 1 for k in range(size))
        self.path.write_bytes(content)
        self.oracle = OpsOracle(content)
        self.disk = FaultyDisk(seed=seed, queue=0.7, delay=2, reorder=True, hazards=gap == 0)
        self.clock = Clock()
        self.c = iolift.Coalescer(backend=self.disk, clock=self.clock, gap=gap, **options)
        self.f = self.c.open(self.path, "r+")
        self.count = 0

    def note(self, kind: int, offset: int, payload: Any, **more: Any) -> None:
        self.oracle.log.append(Noted(kind, offset, payload, **more))

    def held(self) -> list[Noted]:
        return [noted for noted in self.oracle.log if noted.fate == PENDING]

    @rule(offset=PLACES, n=LENGTHS, into=st.booleans())
    def submit_read(self, offset: int, n: int, into: bool) -> None:
        buffer = bytearray(n) if into else None
        ticket = self.f.submit_pread(n, offset, into=buffer)
        self.note(READ, offset, n, fate=PENDING, ticket=ticket, buffer=buffer)

    @rule(offset=PLACES, n=LENGTHS)
    def submit_write(self, offset: int, n: int) -> None:
        self.count += 1
        data = bytearray([self.count % 256]) * n
        ticket = self.f.submit_pwrite(data, offset)
        self.note(WRITE, offset, bytes(data), fate=PENDING, ticket=ticket)
        data[:] = bytes(n)

    @rule(offset=PLACES, n=LENGTHS)
    def pread(self, offset: int, n: int) -> None:
        self.note(READ, offset, n, answer=self.f.pread(n, offset))

    @rule(offset=PLACES, n=LENGTHS)
    def write(self, offset: int, n: int) -> None:
        self.count += 1
        data = bytes([self.count % 256]) * n
        self.f.seek(offset)
        assert self.f.write(data) == n
        self.note(WRITE, offset, data)
        assert self.f.tell() == offset + n

    @rule(size=PLACES)
    def truncate(self, size: int) -> None:
        assert self.f.truncate(size) == size
        self.note(TRUNCATE, 0, size)

    @rule()
    def end(self) -> None:
        self.note(SIZE, 0, 0, answer=self.f.seek(0, 2))

    def one_of_the_held(self, which: int) -> Noted | None:
        # Not drawn from them: how many there are depends on whether a cancel was in time.
        held = self.held()
        return held[which % len(held)] if held else None

    @rule(which=st.integers(0, 100))
    def cancel(self, which: int) -> None:
        noted = self.one_of_the_held(which)
        if noted is None:
            return
        if noted.ticket.cancel():
            noted.fate = VOID
            with pytest.raises(CancelledError):
                noted.ticket.result()
        else:
            assert noted.ticket.state in ("held", "flying", "done")

    @rule(which=st.integers(0, 100))
    def wait(self, which: int) -> None:
        noted = self.one_of_the_held(which)
        if noted is not None:
            self.take(noted)

    def take(self, noted: Noted) -> None:
        result = noted.ticket.result()
        noted.fate, noted.answer = MADE, result
        if noted.kind == WRITE:
            assert result == len(noted.payload)
        elif noted.buffer is not None:
            noted.answer = bytes(noted.buffer[:result])
            assert not any(noted.buffer[result:])

    @rule(ns=st.sampled_from([0, US, MS, 100 * MS]))
    def pass_time(self, ns: int) -> None:
        self.clock.advance(ns)
        self.c.tick()

    @rule(durable=st.booleans())
    def flush(self, durable: bool) -> None:
        (self.f.sync if durable else self.f.flush)()
        self.note(CONTENT, 0, 0, answer=self.path.read_bytes())
        for noted in self.held():
            assert noted.ticket.done() or noted.kind == READ
            self.take(noted)
        self.oracle.settle()

    @rule()
    def close(self) -> None:
        self.f.close()
        for noted in self.held():
            assert noted.ticket.done()
        self.f = self.c.open(self.path, "r+")
        self.flush(False)

    @invariant()
    def sound(self) -> None:
        if hasattr(self, "c"):
            self.c._check()

    def teardown(self) -> None:
        if hasattr(self, "c"):
            self.flush(False)
            self.c.close()
            self.disk.check()
            assert self.path.read_bytes() == self.oracle.data
            self.directory.cleanup()


TestStory = Story.TestCase
TestStory.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# ------------------------------------------------------------------------------- who watches whom


def settles(*log: Noted, before: bytes = b"abcdefgh") -> bool:
    oracle = OpsOracle(before)
    oracle.log += log
    try:
        oracle.settle()
    except AssertionError:
        return False
    return True


def write(offset: int, data: bytes, fate: int = MADE) -> Noted:
    return Noted(WRITE, offset, data, fate=fate)


def read(offset: int, n: int, answer: bytes) -> Noted:
    return Noted(READ, offset, n, answer)


@pytest.mark.parametrize(
    ("log", "right"),
    [
        ([read(2, 3, b"cde")], True),
        ([read(2, 3, b"cdX")], False),
        ([read(6, 5, b"gh")], True),
        ([read(6, 5, b"gh\0")], False),
        ([read(6, 5, b"g")], False),
        ([write(0, b"XY"), read(0, 3, b"XYc")], True),
        ([write(0, b"XY"), read(0, 3, b"abc")], False),
        ([read(0, 3, b"XYc"), write(0, b"XY")], False),
        ([write(0, b"XY", VOID), read(0, 3, b"abc")], True),
        ([write(0, b"XY", VOID), read(0, 3, b"XYc")], False),
        ([write(0, b"XY"), write(1, b"Z", VOID), read(0, 3, b"XYc")], True),
        ([write(10, b"X"), read(7, 9, b"h\0\0X")], True),
        ([write(10, b"X"), read(7, 9, b"hiiX")], False),
        ([write(0, b"XY", UNSURE), read(0, 3, b"aYc")], True),
        ([write(0, b"XY", UNSURE), read(0, 3, b"aZc")], False),
        ([write(0, b"XY", UNSURE), write(1, b"Z"), read(0, 3, b"XZc")], True),
        ([write(0, b"XY", UNSURE), write(1, b"Z"), read(0, 3, b"XYc")], False),
        ([write(8, b"XY", UNSURE), read(6, 9, b"gh")], True),
        ([write(8, b"XY", UNSURE), read(6, 9, b"ghX")], True),
        ([write(8, b"XY", UNSURE), read(6, 9, b"gh\0Y")], True),
        ([write(8, b"XY", UNSURE), read(6, 9, b"ghXYZ")], False),
        ([Noted(TRUNCATE, 0, 3), read(0, 9, b"abc")], True),
        ([Noted(TRUNCATE, 0, 3), Noted(TRUNCATE, 0, 5), read(0, 9, b"abc\0\0")], True),
        ([Noted(TRUNCATE, 0, 3), read(0, 9, b"abcd")], False),
        ([Noted(SIZE, 0, 0, 8)], True),
        ([Noted(SIZE, 0, 0, 9)], False),
        ([Noted(CONTENT, 0, 0, b"abcdefgh")], True),
        ([Noted(CONTENT, 0, 0, b"abcdefg")], False),
        ([Noted(CONTENT, 0, 0, b"abcdefghi")], False),
        ([Noted(ROW, 6, 4, b"gh" + bytes([SENTINEL]) * 2)], True),
        ([Noted(ROW, 6, 4, b"gh" + bytes([SENTINEL]) + b"i")], False),
        ([Noted(READ, 0, 1, b"a", fate=PENDING)], False),
    ],
)
def test_the_oracle_tells_right_from_wrong(log: list[Noted], right: bool) -> None:
    assert settles(*log) == right


X, Y = 0x11, 0x22


@pytest.mark.parametrize(
    ("deeds", "right"),
    [
        # (begin, end, "w" or "r", value): of one cell, which holds 0 at first.
        ([(0, 1, "w", X), (2, 3, "r", X)], True),
        ([(0, 1, "w", X), (2, 3, "r", 0)], False),
        ([(0, 3, "w", X), (1, 2, "r", 0)], True),
        ([(0, 3, "w", X), (1, 2, "r", X)], True),
        ([(2, 3, "w", X), (0, 1, "r", X)], False),
        ([(0, 1, "r", Y)], False),
        ([(0, 1, "w", X), (2, 3, "w", Y), (4, 5, "r", X)], False),
        ([(0, 1, "w", X), (2, 5, "w", Y), (3, 4, "r", X)], True),
        ([(0, 3, "w", X), (1, 4, "w", Y), (5, 6, "r", X)], True),
        ([(0, 3, "w", X), (1, 4, "w", Y), (5, 6, "r", X), (7, 8, "r", Y)], False),
        ([(0, 9, "w", X), (1, 2, "r", X), (3, 4, "r", 0)], False),
        ([(0, 9, "w", X), (1, 2, "r", 0), (3, 4, "r", X)], True),
        ([(0, 1, "w", X), (2, 9, "w", Y), (3, 4, "r", Y), (5, 6, "r", X)], False),
        ([(0, 1, "w", X), (4, 5, "w", Y), (2, 7, "r", X)], True),
        ([(0, 2, "w", X), (5, 6, "r", X), (3, 4, "w", Y)], False),
    ],
)
def test_linearizability_tells_right_from_wrong(deeds: list[Any], right: bool) -> None:
    history = History()
    for begin, end, kind, value in deeds:
        history.note(1, np.full(2, value, np.uint64), begin * 10, end * 10, kind == "w")
    assert (unlinearizable(history, 4) == "") == right


@pytest.mark.parametrize(
    ("looked", "at", "right"),
    [(X, 15, True), (Y, 15, True), (X, 65, False), (Y, 65, True), (0, 15, False), (0, 8, True)],
)
def test_a_look_at_the_file_tells_right_from_wrong(looked: int, at: int, right: bool) -> None:
    history, looks = History(), History()
    history.note(0, np.full(3, X, np.uint64), 1, 2, True)  # in the file from 10 on
    history.note(1, np.full(3, Y, np.uint64), 11, 20, True)  # and this one from 60 on
    looks.note(2, np.full(1, looked, np.uint64), at, at + 1, False)
    assert (stale(history, looks, np.array([10, 60]), 4) == "") == right


def test_a_lying_disk_is_caught(tmp_path: Path) -> None:
    """One write in many is dropped and said to be done: the soak must not miss it."""

    class Liar(FaultyDisk):
        def _run(self, op: Any) -> int:
            if op.kind == "write" and op.index % 7 == 5:
                return op.length
            return super()._run(op)

    r = soak.SingleRound("hosted", "2", 1000, tmp_path)
    r.fault, r.disk = "none", Liar(seed=1, max_ops=1 << 30, hazards=False)
    with pytest.raises(AssertionError, match="wrong from byte"):
        r.play()


def test_a_foreign_error_is_caught(tmp_path: Path) -> None:
    """A request that fails though no I/O of its bytes has failed."""
    r = soak.SingleRound("hosted", "2", 1000, tmp_path)
    r.fault, r.disk = "some", FaultyDisk(seed=1, max_ops=1 << 30, hazards=False)
    r.disk.fail(errno.EIO, at=10, times=3)
    failed_ops = r.failed_ops
    r.failed_ops = lambda *arguments: failed_ops(*arguments) - {errno.EIO}  # type: ignore
    with pytest.raises(AssertionError, match=r"has failed only|is nobody's"):
        r.play()


@pytest.mark.skipif(not (REPOSITORY / "ext").exists(), reason="no source tree")
@pytest.mark.parametrize("name", MUTANTS)
def test_each_mutant_can_be_made(name: str) -> None:
    source = REPOSITORY / "ext" / "iolift" / f"{MUTANTS[name].module}.pyx"
    assert source.read_text().count(MUTANTS[name].right) == 1
