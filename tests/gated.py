"""Goal: stop time and the disk at will, and see what is held, what flies and what waits for whom.

`Clock` is the time that a coalescer goes by: it stands still until it is told to go on.
`GatedDisk` is a simulated disk that lets no operation end that its gate is closed for.
`Rig` is a coalescer on both, with files; it opens the gate when the test is over, passed or not.

A test that waits for the disk waits for operations to arrive (`arrived`), never for time.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from faulty import FaultyDisk, Op

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

READ_WINDOW_US = 1000
WRITE_WINDOW_MS = 10
US, MS = 1000, 1_000_000
NEVER = 1 << 60


class Clock:
    """Nanoseconds; they pass when `advance` says so."""

    def __init__(self) -> None:
        self.now = 1000 * 1000 * MS

    def __call__(self) -> int:
        return self.now

    def advance(self, ns: int) -> None:
        self.now += ns


class GatedDisk(FaultyDisk):
    """An operation for which `closed(op)` is true when it comes stays until `open()`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.closed: Callable[[Op], bool] = lambda op: False
        # Whoever waits on a condition of the lock lets go of it: others may submit meanwhile.
        self.arrivals = threading.Condition(self.lock)
        self.endings = threading.Condition(self.lock)

    def close(self, kind: str | None = None, within: tuple[int, int] | None = None) -> None:
        """From now on nothing ends that is of this kind, or overlaps these bytes."""
        with self.lock:
            self.closed = self._matcher(None, kind, within)

    def open(self, fd: int | None = None) -> None:
        """For all, or for one file only."""
        with self.lock:
            self.closed = lambda op: fd not in (None, op.fd)
            for op in self.queued:
                if not self.closed(op):
                    op.ready = 0
            self.endings.notify_all()

    def arrived(self, count: int, kind: str | None = None) -> list[tuple[str, int, int]]:
        """Wait until so many operations were submitted; all of them."""
        with self.arrivals:
            self.arrivals.wait_for(lambda: len(self.ops(kind)) >= count)
            return self.ops(kind)

    def submit(self, token: int, kind: str, fd: int, offset: int, buffers: Any) -> int | str:
        with self.lock:
            answer = super().submit(token, kind, fd, offset, buffers)
            if answer == "queued" and self.closed(self.queued[-1]):
                self.queued[-1].ready = NEVER
            self.arrivals.notify_all()
            return answer

    def reap(self, wait: bool) -> list[tuple[int, int]]:
        with self.lock:
            if wait and self.queued and self._stuck():
                self.endings.wait()
            done = super().reap(wait and not self._stuck())
            if done:
                self.endings.notify_all()  # it may have been another one's
            return done

    def _stuck(self) -> bool:
        return all(op.ready == NEVER for op in self.queued)


class Rig:
    """A coalescer on a gated disk and a clock that stands still."""

    def __init__(self, directory: Path, *, clock: bool = True, **options: Any) -> None:
        self.directory = directory
        self.clock = Clock()
        # Reads through gaps may pass over bytes that are being written: they throw them away.
        hazards = options.get("gap", 0) == 0
        self.disk = GatedDisk(seed=1, hazards=hazards, max_ops=1 << 30)
        options = {"read_window_us": READ_WINDOW_US, "write_window_ms": WRITE_WINDOW_MS,
                   "gap": 0, **options}  # fmt: skip
        if clock:
            options["clock"] = self.clock
        self.c = iolift.Coalescer(backend=self.disk, **options)
        self.files: list[Any] = []
        self.occupier: Any = None

    def open(self, content: bytes, name: str = "data", mode: str = "r+") -> Any:
        path = self.directory / name
        path.write_bytes(content)
        # Kept: a file that is dropped closes itself, and would wait for the gate.
        self.files.append(self.c.open(path, mode))
        return self.files[-1]

    def path(self, name: str = "data") -> Path:
        return self.directory / name

    def occupy(self) -> None:
        """The device is busy: a read of another file that does not end."""
        if self.occupier is None:
            self.occupier = self.open(bytes(1), "other")
            fd = self.occupier.fileno()
            self.disk.closed = lambda op: op.fd == fd
            before = len(self.disk.ops())
            self.busy = self.occupier.submit_pread(1, 0)
            self.disk.arrived(before + 1)
            self.disk.log.clear()

    def pass_time(self, ns: int) -> None:
        self.clock.advance(ns)
        self.c.tick()

    def end(self) -> None:
        self.disk.open()
        self.c.close()
        self.disk.check()
