"""Goal: rounds of random requests from one thread, each answer held against the oracle's.

A round makes a coalescer with options by chance and a few files on it, submits some hundred
requests of every kind, waits for some, cancels and drops others, and then:

1. every ticket's result is what it would be if the requests had been executed one by one in the
   order of their submission, without those that were cancelled;
2. the file, read by another descriptor, is the oracle's after each flush, sync and close;
3. a request has failed only if the simulated disk has failed an I/O that overlaps it, with that
   errno; its bytes are the old ones or the new ones, all others are certain;
4. the error of a write that nobody holds a ticket for comes at the next flush, sync or close;
5. a read's buffer is not touched once it was cancelled, nor where the file has nothing;
6. all that is promised of `_check()`, `stats()` and the simulated disk holds.
"""

from __future__ import annotations

import errno
import os
import random
from typing import TYPE_CHECKING, Any

import numpy as np
from faulty import FaultyDisk
from gated import Clock
from oracle import CONTENT, MADE, READ, SENTINEL, UNSURE, WRITE, Noted, OpsOracle

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SIZES = np.array([0, 1, 7, 64, 100, 511, 512, 513, 4095, 4096, 4097, 12_288, 20_000, 65_536,
                  200_000])  # fmt: skip
SIZE_ODDS = np.array([3, 6, 8, 16, 16, 8, 8, 8, 6, 10, 6, 2.5, 1.5, 0.7, 0.3])
POOL = random.Random(0).randbytes(1 << 20)
FILL = bytes([SENTINEL]) * 200_001
LUCK = 1 << 30
FAULTS = ["none"] * 6 + ["bad", "bad", "some", "some", "short", "short", "again", "sync"]


class Subject:
    """An open file, its double, and the requests whose tickets are still held."""

    def __init__(self, path: Path, content: bytes, direct: bool) -> None:
        self.path, self.direct = path, direct
        # A new file: ext4 sends one that is cut to nothing and written again to the device.
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        self.look = os.open(path, os.O_RDONLY)
        self.oracle = OpsOracle(content)
        self.log = self.oracle.log
        self.live: list[Noted] = []
        self.behind: list[Noted] = []
        self.cancelled: list[tuple[Noted, bytes]] = []
        self.position = 0
        self.f: Any = None


def draw_options(chance: random.Random) -> dict[str, Any]:
    return {
        "order": chance.choice(["elevator", "elevator", "elevator", "fifo"]),
        "gap": chance.choice(["auto", "auto", 0, 1, 100, 4096, 100_000]),
        "max_waste": chance.choice([0.0, 0.25, 0.25, 1.0, float("inf")]),
        "max_io": chance.choice([1, 100, 4096, 10_000, 100_000, 1 << 20, 1 << 20]),
        "depth": chance.choice([1, 2, 3, 8, 64, 128]),
        "read_window_us": chance.choice([0, 50, 1000, 10_000_000]),
        "write_window_ms": chance.choice([0, 1, 100, 10_000]),
        "max_held_bytes": chance.choice([4096, 20_000, 1 << 18, 1 << 20, 64 << 20, 64 << 20]),
        "max_held_requests": chance.choice([1, 2, 30, 1000, 131_072, 131_072]),
    }


def draw_disk(chance: random.Random, gap: Any, direct: bool) -> FaultyDisk:
    """A simulated disk: honest, late, shuffling or busy; faults come when the files are open."""
    return FaultyDisk(
        seed=chance.randrange(1 << 30),
        queue=chance.choice([0.0, 0.5, 1.0, 1.0]),
        delay=chance.randint(0, 5),
        reorder=chance.random() < 0.7,
        capacity=chance.choice([1, 3, 1000, 1000]),
        busy_rate=chance.choice([0, 0, 0, 0.2]),
        align=4096 if direct else 1,
        hazards=gap == 0,
        max_ops=1 << 40,
    )


def add_faults(chance: random.Random, disk: FaultyDisk, kind: str, direct: bool) -> None:
    unit = 4096 if direct else 1
    for _ in range(chance.randint(1, 4) if kind == "bad" else 0):
        begin = chance.randrange(100_000) // unit * unit
        disk.bad(begin, begin + unit * chance.choice([1, 3, 100 if unit == 1 else 1]),
                 chance.choice([errno.EIO, errno.ENOSPC]),
                 partial=chance.random() < 0.5)  # fmt: skip
    for _ in range(chance.randint(1, 20) if kind == "some" else 0):
        disk.fail(chance.choice([errno.EIO, errno.ENOSPC]), at=chance.randrange(200),
                  times=chance.randint(1, 3),
                  kind=chance.choice(["read", "write"]))  # fmt: skip
    if kind == "short":
        disk.shorten("random", times=chance.choice([3, 50, 1000]))
    for _ in range(chance.randint(1, 5) if kind == "again" else 0):
        disk.fail(chance.choice([errno.EINTR, errno.EAGAIN]), at=chance.randrange(100),
                  times=5, kind=chance.choice(["read", "write"]))  # fmt: skip
    if kind == "sync":
        disk.fail(errno.EIO, kind="sync", times=1)


class Round:
    """One coalescer, a few files and `count` operations; `play()` raises what is wrong."""

    def __init__(self, backend: str, seed: str, count: int, directory: Path) -> None:
        self.chance = chance = random.Random(seed)
        self.count, self.directory, self.backend = count, directory, backend
        self.direct = chance.random() < 0.3 and takes_direct(directory)
        self.options = draw_options(chance)
        self.fault = chance.choice(FAULTS) if backend == "hosted" else "none"
        self.disk = None
        if backend == "hosted":
            self.disk = draw_disk(chance, self.options["gap"], self.direct)
        self.clock = Clock() if chance.random() < 0.5 else None
        self.check_every = chance.choice([1, 1, 8, 64])
        self.span = chance.choice([3000, 30_000, 300_000])
        self.subjects: list[Subject] = []
        self.c: Any = None

    def __str__(self) -> str:
        said = f"{self.options}, direct={self.direct}, faults: {self.fault}"
        return f"{said}, {len(self.subjects)} files, fake clock: {self.clock is not None}"

    def begin(self) -> None:
        options = {**self.options, "backend": self.disk or self.backend}
        if self.clock is not None:
            options["clock"] = self.clock
        self.c = iolift.Coalescer(**options)
        for k in range(self.chance.choice([1, 1, 1, 2, 4])):
            size = self.chance.choice([0, 1, 1000, 4096, 30_000, self.span])
            s = Subject(self.directory / f"{k}", self.chance.randbytes(size), self.direct)
            s.f = self.c.open(s.path, "r+", direct=self.direct)
            self.subjects.append(s)
        if self.disk is not None:
            add_faults(self.chance, self.disk, self.fault, self.direct)

    def bounds(self) -> None:
        stats = self.c.stats()
        most = self.options["max_held_bytes"]
        # A request that is larger than the bound is let in when nothing else is held.
        assert stats.held_bytes <= max(most, SIZES[-1]), stats
        assert stats.held_requests <= self.options["max_held_requests"], stats

    def finish(self) -> None:
        for s in self.subjects:
            self.flushed(s, s.f.flush)
            for noted in s.live:
                done = noted.ticket.done() or noted.kind == READ
                assert done, f"{noted} after a flush: {noted.ticket.explain()}"
            self.settle(s)
        self.c._check()
        for s in self.subjects:
            s.f.close()
        # Also the reads that nobody waited for are over.
        stats = self.c.stats()
        assert (stats.held_requests, stats.held_bytes, stats.batches_in_flight) == (0, 0, 0), stats
        self.c.close()
        if self.disk is not None:
            self.disk.check()
        for s in self.subjects:
            assert s.path.read_bytes() == s.oracle.data

    def close(self) -> None:
        for s in self.subjects:
            os.close(s.look)
        if self.c is not None:
            self.c.close()

    def settle(self, s: Subject) -> None:
        """All answers are asked for, and held against the oracle's."""
        for noted in s.live:
            self.collect(s, noted)
        s.live.clear()
        s.oracle.settle()
        s.log = s.oracle.log
        if self.fault != "none":
            s.oracle.adopt(self.content(s))
        for noted, then in s.cancelled:
            assert noted.buffer == then, f"{noted} touched its buffer"
        s.cancelled.clear()

    # ------------------------------------------------------------------------------- outcomes

    def collect(self, s: Subject, noted: Noted) -> None:
        """The result of a ticket, which must be an answer or an error of its own."""
        ticket, noted.ticket = noted.ticket, None
        try:
            answer = ticket.result()
        except OSError as error:
            self.blame(s, noted.kind, noted.offset, noted.length, error)
            noted.fate = UNSURE
            return
        noted.fate = MADE
        if noted.kind == WRITE:
            assert answer == len(noted.payload), f"{answer} of {noted}"
        elif noted.kind == READ:
            buffer = noted.buffer
            if buffer is not None:
                noted.answer = bytes(buffer[:answer])
                rest = buffer[answer:]
                assert rest == FILL[: len(rest)], f"{noted} wrote past the file's end"
            else:
                noted.answer = answer
        else:
            assert answer is None, f"the result of a sync is {answer!r}"

    def failed_ops(self, s: Subject, kind: int, offset: int, n: int) -> set[int]:
        """The errnos for good that the disk has given to I/Os that overlap a request."""
        if self.disk is None:
            return set()
        # A direct write of ragged ends may have to read what lies around them.
        kinds = ("write", "read") if s.direct else ("write",)
        kinds = kinds if kind == WRITE else ("read",)
        slack = 4096 if s.direct else 0
        begin, end = offset - slack, offset + n + slack
        with self.disk.lock:
            return {
                -(op.result or 0)
                for op in self.disk.failed
                if op.offset < end and begin < op.end and op.kind in kinds
            } - {errno.EINTR, errno.EAGAIN}

    def blame(self, s: Subject, kind: int, offset: int, n: int, error: OSError) -> None:
        """It has failed by its own bytes, with the disk's errno."""
        if kind == WRITE and self.fault == "sync" and isinstance(error, iolift.PoisonedError):
            return
        possible = self.failed_ops(s, kind, offset, n)
        assert error.errno in possible, (
            f"{error!r} of the {'write' if kind == WRITE else 'read'} [{offset}, {offset + n}): "
            f"of what overlaps it the disk has failed only {possible}"
        )

    def must_fail(self, s: Subject, noted: Noted) -> bool:
        """The disk has failed an I/O of just its bytes, for good, and no later write hid it."""
        if self.disk is None or self.fault != "bad" or s.direct:
            return False
        end = noted.offset + noted.length
        with self.disk.lock:
            alone = any(
                (op.kind, op.offset, op.end) == ("write", noted.offset, end)
                for op in self.disk.failed
            )
        writes = [o for o in s.log if o.kind == WRITE and o.offset < end]
        return alone and not any(
            noted.offset < o.offset + o.length for o in writes if o is not noted
        )

    def flushed(self, s: Subject, flush: Callable[[], Any], durable: bool = False) -> None:
        """What a flush, sync or close says about the writes that nobody holds a ticket for."""
        failure: OSError | None = None
        try:
            flush()
        except OSError as error:
            failure = error
        errnos = set()
        for noted in s.behind:
            suspects = self.failed_ops(s, WRITE, noted.offset, noted.length)
            errnos |= suspects
            if failure is None:
                assert not self.must_fail(s, noted), f"the error of {noted} was lost"
            noted.fate = UNSURE if failure is not None and suspects else MADE
        poisoned = failure is not None and self.fault == "sync" and durable
        if failure is not None and not poisoned:
            assert failure.errno in errnos, f"{failure!r} is nobody's: {s.behind}"
        s.behind.clear()
        s.log.append(Noted(CONTENT, 0, 0, self.content(s)))
        if poisoned:
            self.revive(s)

    def revive(self, s: Subject) -> None:
        """A sync has failed: no write is accepted any more, until the file is opened again."""
        try:
            s.f.pwrite(b"x", 0)
        except iolift.PoisonedError:
            pass
        else:
            raise AssertionError("a poisoned file has taken a write")
        try:
            s.f.close()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        self.open_again(s)

    def open_again(self, s: Subject) -> None:
        for noted in s.live:
            assert noted.ticket.done(), f"{noted} after close: {noted.ticket.state}"
        s.log.append(Noted(CONTENT, 0, 0, self.content(s)))
        self.settle(s)
        s.f = self.c.open(s.path, "r+", direct=self.direct)
        s.position = 0

    def content(self, s: Subject) -> bytes:
        return os.pread(s.look, os.fstat(s.look).st_size + 1, 0)


def takes_direct(directory: Path) -> bool:
    path = directory / "direct"
    path.touch()
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True
