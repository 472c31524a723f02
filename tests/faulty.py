"""Goal: a disk that does to iolift what disks do, on purpose, at a chosen operation, repeatably.

`FaultyDisk` implements the hosted backend (`submit`, `reap`) on the file's real descriptor. An
operation has an index: how many were accepted before it. By index, byte range or seed it can be
failed, shortened, delayed, reordered, or refused as busy. A queued operation runs when it is
reaped, not when it is submitted, so two operations that overlap and are queued together would
really run in the wrong order.

Invariants of the caller, kept by `check()`; a breach is noted when it happens, as an exception
thrown into the caller could be swallowed there:
1. a token is queued once;                      4. a write's bytes do not change while it is queued;
2. never more than `depth` operations queued;   5. of two queued that overlap, none is a write;
3. 1 to 1024 buffers, none empty, writable      6. nothing is queued at the end;
   for a read;                                  7. it gives up on a disk that never gets better.
"""

from __future__ import annotations

import os
import random
import threading
import zlib
from dataclasses import dataclass, field
from errno import EIO
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

IOV_MAX = 1024


@dataclass
class Op:
    """One accepted operation. `buffers` is empty again once it is complete."""

    index: int
    token: int
    kind: str
    fd: int
    offset: int
    length: int
    buffers: list[Any] = field(repr=False)
    ready: int = 0
    checksum: int = 0
    result: int | None = None

    @property
    def end(self) -> int:
        return self.offset + self.length

    @property
    def key(self) -> tuple[str, int, int]:
        return self.kind, self.offset, self.length


@dataclass
class Fault:
    """A result for some operations: a negative errno, or a limit on the bytes moved."""

    matches: Callable[[Op], bool]
    errno: int = 0
    limit: Callable[[Op], int] | None = None
    times: int | None = None

    def take(self, op: Op) -> bool:
        if self.times == 0 or not self.matches(op):
            return False
        if self.times is not None:
            self.times -= 1
        return True


class FaultyDisk:
    """The simulated disk. All chances come from `seed`; without faults it is an honest disk.

    queue: the share of operations that are queued (the others are done at once).
    delay: a queued operation completes after 0 to `delay` later reaps.
    reorder: completions come out shuffled, a few at a time.
    capacity: busy when that many are queued. busy_rate: busy by chance, also when idle.
    align: shortened results are multiples of it (a direct file never sees others).
    depth: what the coalescer was told; more in the queue is a breach.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        queue: float = 1.0,
        delay: int = 0,
        reorder: bool = False,
        capacity: int = 1 << 30,
        busy_rate: float = 0.0,
        align: int = 1,
        depth: int = 1 << 30,
        hazards: bool = True,
        max_ops: int = 100_000,
    ) -> None:
        self.random = random.Random(seed)
        self.queue, self.delay, self.reorder = queue, delay, reorder
        self.capacity, self.busy_rate, self.align = capacity, busy_rate, align
        self.depth, self.hazards, self.max_ops = depth, hazards, max_ops
        self.faults: list[Fault] = []
        self.log: list[Op] = []
        self.failed: list[Op] = []
        self.queued: list[Op] = []
        self.violations: list[str] = []
        self.reaps = 0
        self.busy_answers = 0
        self.deepest = 0
        self.most_bytes = 0
        self.lock = threading.RLock()

    # ------------------------------------------------------------------------------ making faults

    @staticmethod
    def _matcher(
        at: int | None, kind: str | None, within: tuple[int, int] | None
    ) -> Callable[[Op], bool]:
        def matches(op: Op) -> bool:
            if at is not None and op.index < at:
                return False
            if kind is not None and op.kind != kind:
                return False
            return within is None or (op.offset < within[1] and within[0] < op.end)

        return matches

    def fail(
        self,
        errno: int,
        *,
        at: int | None = None,
        times: int | None = 1,
        kind: str | None = None,
        within: tuple[int, int] | None = None,
    ) -> None:
        """Fail `times` operations (None: for ever) from index `at` on, of a kind, in a range."""
        self.faults.append(Fault(self._matcher(at, kind, within), errno, times=times))

    def bad(self, begin: int, end: int, errno: int = EIO, *, partial: bool = False) -> None:
        """Bad sectors: whatever touches [begin, end) fails, always. partial: what comes before
        them is moved first, and only an operation that begins on them fails."""
        touches = self._matcher(None, None, (begin, end))
        if not partial:
            self.faults.append(Fault(touches, errno))
            return
        before = Fault(lambda op: op.offset < begin and touches(op))
        before.limit = lambda op: begin - op.offset
        self.faults += [before, Fault(lambda op: op.offset >= begin and touches(op), errno)]

    def shorten(
        self,
        to: int | str,
        *,
        at: int | None = None,
        times: int | None = 1,
        kind: str | None = None,
    ) -> None:
        """Move at most `to` bytes: a number, "half", or "random" (at least one)."""

        def limit(op: Op) -> int:
            if isinstance(to, int):
                return to
            n = op.length // 2 if to == "half" else self.random.randint(1, max(op.length, 1))
            return max(n - n % self.align, self.align)

        matches = self._matcher(at, kind, None)
        self.faults.append(
            Fault(lambda op: op.kind != "sync" and matches(op), limit=limit, times=times)
        )

    # -------------------------------------------------------------------------------- the protocol

    def submit(
        self, token: int, kind: str, fd: int, offset: int, buffers: list[memoryview]
    ) -> int | str:
        with self.lock:
            full = len(self.queued) >= self.capacity
            if full or (self.busy_rate and self.random.random() < self.busy_rate):
                self.busy_answers += 1
                return "busy"
            op = self._accept(token, kind, fd, offset, buffers)
            if self.random.random() >= self.queue:
                return self._complete(op)
            op.ready = self.reaps + self.random.randint(0, self.delay)
            self.queued.append(op)
            self.deepest = max(self.deepest, len(self.queued))
            self.most_bytes = max(self.most_bytes, sum(op.length for op in self.queued))
            if len(self.queued) > self.depth:
                self._breach(f"{len(self.queued)} queued, depth {self.depth}")
            return "queued"

    def reap(self, wait: bool) -> list[tuple[int, int]]:
        with self.lock:
            self.reaps += 1
            if wait and self.queued:
                self.reaps = max(self.reaps, min(op.ready for op in self.queued))
            ready = [op for op in self.queued if op.ready <= self.reaps]
            if self.reorder and ready:
                self.random.shuffle(ready)
                ready = ready[: self.random.randint(1, len(ready))]
            done = []
            for op in ready:
                self.queued.remove(op)
                done.append((op.token, self._complete(op)))
            return done

    # ----------------------------------------------------------------------------------- the inside

    def _accept(self, token: int, kind: str, fd: int, offset: int, buffers: Any) -> Op:
        buffers = list(buffers or ())
        length = sum(memoryview(b).nbytes for b in buffers)
        op = Op(len(self.log), token, kind, fd, offset, length, buffers)
        self.log.append(op)
        if len(self.log) == self.max_ops:
            self._breach(f"no end after {self.max_ops} operations")
        if kind not in ("read", "write", "sync"):
            self._breach(f"unknown kind {kind!r}")
        if any(o.token == token for o in self.queued):
            self._breach(f"token {token} is queued twice")
        if kind == "sync":
            return op
        if not 1 <= len(buffers) <= IOV_MAX or not length:
            self._breach(f"{len(buffers)} buffers of {length} bytes in {op}")
        if any(memoryview(b).nbytes == 0 for b in buffers):
            self._breach(f"an empty buffer in {op}")
        if not 0 <= offset <= 2**63 - 1 - length:
            self._breach(f"bad offset in {op}")
        if kind == "read" and any(memoryview(b).readonly for b in buffers):
            self._breach(f"a read into a read-only buffer in {op}")
        if kind == "write":
            op.checksum = self._checksum(op)
        for other in self.queued if self.hazards else ():
            overlap = other.offset < op.end and op.offset < other.end and other.fd == fd
            if overlap and "write" in (kind, other.kind) and other.kind != "sync":
                self._breach(f"{op} while {other} is queued")
        return op

    def _complete(self, op: Op) -> int:
        if op.kind == "write" and self._checksum(op) != op.checksum:
            self._breach(f"the bytes of {op} changed while it was queued")
        op.result = result = self._run(op)
        op.buffers = []
        if result < 0:
            self.failed.append(op)
        return result

    def _run(self, op: Op) -> int:
        if op.index >= self.max_ops:
            return -EIO
        buffers = op.buffers
        for fault in self.faults:
            if not fault.take(op):
                continue
            if fault.errno:
                self._scribble(op)
                return -fault.errno
            if fault.limit is not None:
                buffers = clip(buffers, fault.limit(op))
                if not buffers:
                    return 0
        try:
            if op.kind == "sync":
                os.fdatasync(op.fd)
                return 0
            move = os.preadv if op.kind == "read" else os.pwritev
            return move(op.fd, buffers, op.offset)
        except OSError as error:
            return -int(error.errno or EIO)

    def _scribble(self, op: Op) -> None:
        """A read that fails may have moved anything into its own buffers before, but nothing to
        where the file has nothing."""
        if op.kind == "read":
            there = os.fstat(op.fd).st_size - op.offset
            for b in clip(op.buffers, max(0, there)):
                view = memoryview(b).cast("B")
                view[:] = self.random.randbytes(len(view))

    @staticmethod
    def _checksum(op: Op) -> int:
        value = 0
        for b in op.buffers:
            value = zlib.crc32(b, value)
        return value

    def _breach(self, what: str) -> None:
        if len(self.violations) < 20:
            self.violations.append(what)

    # ---------------------------------------------------------------------------------- afterwards

    def ops(self, kind: str | None = None) -> list[tuple[str, int, int]]:
        """(kind, offset, length) of all accepted operations, in order."""
        return [op.key for op in self.log if kind in (None, op.kind)]

    def check(self) -> None:
        """Every invariant of the top of this file."""
        assert not self.violations, "\n".join(self.violations)
        assert not self.queued, f"left in the queue: {self.queued}"
        assert all(op.result is not None and not op.buffers for op in self.log)


def clip(buffers: list[Any], limit: int) -> list[memoryview]:
    """The first `limit` bytes of a list of buffers."""
    clipped = []
    for b in buffers:
        view = memoryview(b).cast("B")[:limit]
        if len(view):
            clipped.append(view)
        limit -= len(view)
    return clipped
