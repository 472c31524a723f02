"""Goal: a whole file with a journal, on a disk that can crash.

`Stack` opens a file whose backend and whose journal both end on one recording disk
(modeldisk.Recorder), beside a real file that the core asks for its size. After each operation the
power may go; the journal is then opened by itself, as a recovery would.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

from modeldisk import Recorder

import iolift

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

SEGMENT = 32 << 10


class Backend:
    """Everything is done at once, on the real file and on the disk (iolift._hosted)."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk

    def submit(self, token: int, kind: str, fd: int, offset: int, buffers: Any) -> int:
        if kind == "read":
            return os.preadv(fd, buffers, offset)
        if kind == "sync":
            self.disk.sync(fd)
            return 0
        data = b"".join(bytes(buffer) for buffer in buffers)
        with self.disk.lock_of_log:
            self.disk.write(0, data, offset)
            return os.pwrite(fd, data, offset)

    def reap(self, wait: bool) -> list[tuple[int, int]]:
        return []


class Disk(Recorder):
    """The recorder as a journal's storage, for one target: the descriptor of the real file stands
    for it."""

    def __init__(self) -> None:
        super().__init__(1)
        self.lock_of_log = threading.RLock()

    def _target(self, handle: int) -> int:
        return handle if handle == 0 or handle >= 1000 else 0

    def write(self, handle: int, data: Any, offset: int) -> int:
        with self.lock_of_log:
            return super().write(self._target(handle), data, offset)

    def sync(self, handle: int) -> None:
        with self.lock_of_log:
            super().sync(self._target(handle))

    def truncate(self, handle: int, size: int) -> None:
        with self.lock_of_log:
            super().truncate(self._target(handle), size)

    def identity(self, handle: int) -> bytes:
        return super().identity(self._target(handle))

    def note(self, *what: Any) -> None:
        with self.lock_of_log:
            super().note(*what)


class Stack:
    """A file with a journal on a Disk."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, disk: Disk | None = None, **options: Any
    ) -> None:
        self.disk = disk or Disk()
        path = folder / "data"
        path.write_bytes(b"")
        options = {"journal_segment_bytes": SEGMENT, "journal_max_bytes": 6 * SEGMENT, **options}
        options["backend"] = Backend(self.disk)
        self.file = iolift.open(path, "r+", journal=self.disk, **options)
        real = os.ftruncate
        fd = self.file.fileno()

        def both(handle: int, size: int) -> None:
            with self.disk.lock_of_log:
                if handle == fd:
                    self.disk.truncate(0, size)
                real(handle, size)

        patch.setattr(os, "ftruncate", both)
        self.content = bytearray()

    def asked(self) -> None:
        self.disk.note("asked", (bytes(self.content),))

    def write(self, offset: int, data: bytes) -> Any:
        self.content.extend(bytes(max(0, offset + len(data) - len(self.content))))
        self.content[offset : offset + len(data)] = data
        self.asked()
        return self.file.submit_pwrite(data, offset)

    def truncate(self, size: int) -> None:
        self.content[size:] = b""
        self.content.extend(bytes(size - len(self.content)))
        self.asked()
        self.file.truncate(size)
