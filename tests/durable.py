"""Goal: whole files with a journal, on a disk that can crash.

`Stack` opens files whose backend and whose journal all end on one recording disk
(modeldisk.Recorder), beside real files that the core asks for their sizes. After each operation the
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
            self.disk.write(fd, data, offset)
            return os.pwrite(fd, data, offset)

    def reap(self, wait: bool) -> list[tuple[int, int]]:
        return []


class Disk(Recorder):
    """The recorder as a journal's storage: descriptors of real files stand for its targets, in the
    order in which they are first seen."""

    def __init__(self, targets: int = 1) -> None:
        super().__init__(targets)
        self.lock_of_log = threading.RLock()
        self.descriptors: list[int] = []

    def _target(self, handle: int) -> int:
        if handle < len(self.targets) or handle >= 1000:
            return handle
        if handle not in self.descriptors:
            self.descriptors.append(handle)
        return self.descriptors.index(handle)

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
    """Files with one journal on a Disk."""

    def __init__(
        self,
        folder: Path,
        patch: pytest.MonkeyPatch,
        disk: Disk | None = None,
        count: int = 1,
        **options: Any,
    ) -> None:
        self.disk: Any = disk or Disk(count)
        paths = [folder / f"data{i}" for i in range(count)]
        for path in paths:
            path.write_bytes(b"")
        options = {"journal_segment_bytes": SEGMENT, "journal_max_bytes": 6 * SEGMENT, **options}
        options["backend"] = Backend(self.disk)
        if count == 1:
            self.files = iolift.Files([iolift.open(paths[0], "r+", journal=self.disk, **options)])
        else:
            self.files = iolift.open_together(paths, "r+", journal=self.disk, **options)
        self.file = self.files[0]
        real = os.ftruncate
        descriptors = [file.fileno() for file in self.files]

        def both(handle: int, size: int) -> None:
            with self.disk.lock_of_log:
                if handle in descriptors:
                    self.disk.truncate(handle, size)
                real(handle, size)

        patch.setattr(os, "ftruncate", both)
        self.contents = [bytearray() for _ in paths]

    def asked(self) -> None:
        self.disk.note("asked", tuple(bytes(content) for content in self.contents))

    def write(self, offset: int, data: bytes, which: int = 0) -> Any:
        content = self.contents[which]
        content.extend(bytes(max(0, offset + len(data) - len(content))))
        content[offset : offset + len(data)] = data
        self.asked()
        return self.files[which].submit_pwrite(data, offset)

    def truncate(self, size: int, which: int = 0) -> None:
        content = self.contents[which]
        content[size:] = b""
        content.extend(bytes(size - len(content)))
        self.asked()
        self.files[which].truncate(size)
