"""The file under a replay: where its bytes lie, what they are, how it is made, restored and hashed.

1. `AddressMap` moves the regions that a trace touches closer together. It is monotone, keeps every
   address modulo 1 MiB, and keeps a hole wider than `gap` wider than `gap`: the plan of a window is
   the same before and after. Regions begin and end at multiples of 4 KiB, so what O_DIRECT widens
   stays inside them, and holes that a read may span (up to `gap`) are part of a region.
2. The bytes of a file are a function of their address (`content`), no two MiB are alike, and the
   bytes of a write are a function of its index (`WriteData`): what lands in the wrong place, or in
   the wrong order, changes a hash.
3. A temporary file is gone when `prepared` is left, in whatever way. A file that was given is never
   written to unless the caller allowed it, and a given file that was made here but not completed is
   removed.
4. `file_hash` covers every byte of a file that can have changed.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import shutil
import stat
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MIB = 1 << 20
BLOCK = 4096
GRANULE = 1 << 16
MAX_END = 2**63 - 1
FREE_MARGIN = 64 * MIB

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


class ReplayError(Exception):
    """A replay that can't be done as it was asked for; the text says why."""


class Progress(Protocol):
    """Told `done` of `total` (in `unit`) of a stage, always outside of what is timed."""

    def __call__(self, stage: str, done: int, total: int, unit: str) -> None: ...


# --------------------------------------------------------------------------------------- addresses


@dataclass(frozen=True, eq=False)
class AddressMap:
    """Region i of the trace, [start[i], end[i]), lies in the file from moved[i] on.

    `last` is where the last request ends, in the trace.
    """

    start: Ints
    end: Ints
    moved: Ints
    last: int

    @classmethod
    def of(cls, offset: Ints, length: Ints, *, gap: int, compact: bool) -> AddressMap:
        """The map for the requests of a trace."""
        start, end = union(offset, length, gap=gap)
        last = int((offset + length)[length > 0].max(initial=0))
        if not compact or not len(start):
            return cls(start, end, start, last)
        hole = start - np.concatenate(([0], end[:-1]))
        kept = (gap // MIB + 1) * MIB
        shrunk = np.where(hole > kept + hole % MIB, kept + hole % MIB, hole)
        shrunk[0] = hole[0] % MIB
        return cls(start, end, start - np.cumsum(hole - shrunk), last)

    @property
    def file_start(self) -> Ints:
        return self.moved

    @property
    def file_end(self) -> Ints:
        return self.moved + (self.end - self.start)

    @property
    def size(self) -> int:
        """How long the file has to be."""
        return int(self.file_end[-1]) if len(self.moved) else 0

    @property
    def needed(self) -> int:
        """How long a file must be so that no request reaches past its end."""
        return self.size - int(self.end[-1]) + self.last if len(self.moved) else 0

    @property
    def bytes(self) -> int:
        """How much of it holds data."""
        return sum((self.end - self.start).tolist())

    def to_file(self, offset: Ints) -> Ints:
        """Trace addresses, each inside a region (or its end), to file addresses."""
        return offset + self._shift(self.start, offset)

    def to_trace(self, offset: Ints) -> Ints:
        """File addresses to trace addresses."""
        return offset - self._shift(self.moved, offset)

    def _shift(self, starts: Ints, offset: Ints) -> Ints:
        if not len(starts):
            return np.zeros(len(offset), np.int64)
        region = np.maximum(np.searchsorted(starts, offset, "right") - 1, 0)
        shift: Ints = (self.moved - self.start)[region]
        return shift


def union(offset: Ints, length: Ints, *, gap: int = 0, block: int = BLOCK) -> tuple[Ints, Ints]:
    """Starts and ends of the regions that requests touch: whole blocks, holes up to gap filled."""
    some = length > 0
    start, end = offset[some], (offset + length)[some]
    start = start - start % block
    end = np.where(end > MAX_END - block, MAX_END, end + -end % block)
    order = np.argsort(start, kind="stable")
    start, top = start[order], np.maximum.accumulate(end[order])
    first = np.ones(len(start), bool)
    first[1:] = start[1:] - top[:-1] > gap
    last = np.roll(first, -1)
    return start[first], top[last]


# ------------------------------------------------------------------------------------------- bytes


class Content:
    """The bytes that a prepared file holds: incompressible, and different in every MiB."""

    def __init__(self) -> None:
        self._words = _random(1, MIB).view(np.uint64)

    def at(self, offset: int, size: int) -> Bytes:
        """`size` bytes from `offset`, a multiple of 8, inside one MiB."""
        first, stamp = offset % MIB // 8, (offset // MIB * 0x9E3779B97F4A7C15) % 2**64
        words = self._words[first : first + -(-size // 8)] + np.uint64(stamp)
        return words.view(np.uint8)[:size]

    def fill(
        self, fd: int, starts: Ints, ends: Ints, stage: str, progress: Progress, limit: int
    ) -> None:
        """Write what belongs into the given regions, as far as they lie below `limit`."""
        total, done = int((ends - starts).sum()), 0
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            at, stop = start, min(end, limit)
            while at < stop:
                size = min(MIB - at % MIB, stop - at)
                write_all(fd, self.at(at, size), at)
                at += size
                done += size
                progress(stage, done, total, "B")
        progress(stage, total, total, "B")


@functools.cache
def _random(seed: int, size: int) -> Bytes:
    data = np.random.default_rng(seed).integers(0, 2**64, size // 8, np.uint64).view(np.uint8)
    data.flags.writeable = False
    return data


class WriteData:
    """The bytes that request i of a trace writes: a slice of a random pool that no other has."""

    SIZE, STEP = 1 << 24, 4099

    def __init__(self) -> None:
        self._pool = _random(2, self.SIZE + MIB).data

    def put(self, out: memoryview, index: Ints, at: Ints, length: Ints) -> None:
        """Place the bytes of each request at `at` in `out`."""
        pool, begins = self._pool, (index * self.STEP % self.SIZE).tolist()
        for begin, to, size in zip(begins, at.tolist(), length.tolist(), strict=True):
            if size <= MIB:
                out[to : to + size] = pool[begin : begin + size]
                continue
            for part in range(0, size, MIB):
                n, source = min(MIB, size - part), (begin + part // MIB * 7) % self.SIZE
                out[to + part : to + part + n] = pool[source : source + n]


def write_all(fd: int, data: Any, offset: int) -> None:
    """os.pwrite until all of it is written."""
    view = memoryview(data)
    while len(view):
        done = os.pwrite(fd, view, offset)
        if not done:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view, offset = view[done:], offset + done


# -------------------------------------------------------------------------------------------- file


@dataclass(frozen=True, eq=False)
class PreparedFile:
    """A file that holds what a replay needs. `restore` makes it so again, and cold."""

    path: str
    fd: int
    size: int
    temporary: bool
    writable: bool
    addresses: AddressMap
    written: tuple[Ints, Ints]
    content: Content

    def restore(self, progress: Progress) -> bool:
        """Undo what a run has written; True when the file is out of the page cache afterwards."""
        if self.writable:
            os.ftruncate(self.fd, self.size)
            self.content.fill(self.fd, *self.written, "restoring the data", progress, self.size)
            os.fsync(self.fd)
        return self.chill()

    def chill(self) -> bool:
        """Drop the file from the page cache."""
        if filesystem(self.path) in ("tmpfs", "ramfs") or not hasattr(os, "posix_fadvise"):
            return False
        if self.writable:
            os.fsync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return True

    def hash(self, stage: str, progress: Progress) -> str:
        """The hash of every byte that can have changed (all that a read-only trace touches)."""
        if self.writable:
            spans = list(data_spans(self.fd))
        else:
            ends = np.minimum(self.addresses.file_end, self.size)
            spans = list(zip(self.addresses.file_start.tolist(), ends.tolist(), strict=True))
        return file_hash(self.fd, spans, stage, progress)


@contextmanager
def prepared(
    path: str | None,
    addresses: AddressMap,
    written: tuple[Ints, Ints],
    *,
    overwrite: bool,
    progress: Progress,
) -> Iterator[PreparedFile]:
    """The file for a replay: a temporary one, or `path`, made if it doesn't exist."""
    content = Content()
    made = path is None or not os.path.lexists(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    fd = -1
    keep = not made
    writable = made or bool(len(written[0]))
    try:
        if path is None:
            fd, name = tempfile.mkstemp(prefix="iolift-replay-")
        else:
            name = path
            if not made:
                flags = (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC
                _refuse_unfit(path, addresses.needed, writable, overwrite)
            fd = os.open(path, flags, 0o600)
        size = addresses.size if made else os.lseek(fd, 0, os.SEEK_END)
        if made or writable:
            _check_space(name, fd, addresses.bytes)
            os.ftruncate(fd, size)
            spans = addresses.file_start, addresses.file_end
            content.fill(fd, *spans, "preparing the data", progress, size)
            os.fsync(fd)
        yield PreparedFile(name, fd, size, path is None, writable, addresses, written, content)
        keep = path is not None
    finally:
        if fd >= 0:
            if not keep:
                os.unlink(name)
            os.close(fd)


def _refuse_unfit(path: str, size: int, writes: bool, overwrite: bool) -> None:
    """A given file has to be big enough, and is overwritten only with leave."""
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode) and (writes or not stat.S_ISBLK(status.st_mode)):
        raise ReplayError(f"{path} is not a regular file")
    if writes and not overwrite:
        raise ReplayError(
            f"{path} exists and the trace writes: give --overwrite to let the replay "
            "destroy what is in it, or name a file that doesn't exist"
        )
    have = status.st_size
    if stat.S_ISBLK(status.st_mode):
        with open(path, "rb", buffering=0) as device:
            have = device.seek(0, os.SEEK_END)
    if have < size:
        raise ReplayError(
            f"{path} has {have} bytes, fewer than the {size} under the trace: give a bigger "
            "file, or one that doesn't exist"
        )


def _check_space(path: str, fd: int, needed: int) -> None:
    """Refuse before the disk fills up rather than after."""
    folder = os.path.dirname(os.path.abspath(path))
    missing = max(0, needed - os.fstat(fd).st_blocks * 512)
    free = shutil.disk_usage(folder).free
    if missing and missing + FREE_MARGIN > free:
        raise ReplayError(
            f"the trace touches {needed / MIB:.0f} MiB, and {folder} has {free / MIB:.0f} MiB "
            f"free ({FREE_MARGIN // MIB} MiB are left alone): name a file elsewhere with --file, "
            "or set TMPDIR"
        )


def filesystem(path: str) -> str:
    """The type of the file system that holds `path`, or "unknown"."""
    real, best, found = os.path.realpath(path), "", "unknown"
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                left, _, right = line.partition(" - ")
                point = left.split()[4].replace("\\040", " ")
                inside = real == point or real.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, found = point, right.split()[0]
    except (OSError, IndexError):
        pass
    return found


# -------------------------------------------------------------------------------------------- hash


def data_spans(fd: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that aren't holes."""
    end, at = os.fstat(fd).st_size, 0
    if not hasattr(os, "SEEK_DATA"):
        yield 0, end
        return
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        stop = os.lseek(fd, at, os.SEEK_HOLE)
        yield at, stop
        at = stop


def file_hash(fd: int, spans: Iterable[tuple[int, int]], stage: str, progress: Progress) -> str:
    """Hash of all blocks of 64 KiB that meet `spans` (ascending) and aren't all zero.

    Each block goes in with its address, so a block that is a hole in one file and holds zeros in
    another makes no difference, and any other byte does.
    """
    blocks: list[tuple[int, int]] = []
    for start, end in spans:
        start, end = start // GRANULE, -(-end // GRANULE)
        if blocks and start < blocks[-1][1]:
            start = blocks[-1][1]
        if end > start:
            blocks.append((start, end))
    digest = hashlib.blake2b(digest_size=16)
    total, done = sum(b - a for a, b in blocks) * GRANULE, 0
    for start, end in blocks:
        for at in range(start * GRANULE, end * GRANULE, MIB):
            data = np.frombuffer(os.pread(fd, min(MIB, end * GRANULE - at), at), np.uint8)
            for part in range(0, len(data), GRANULE):
                block = data[part : part + GRANULE]
                if block.any():
                    digest.update((at + part).to_bytes(8, "little"))
                    digest.update(block.data)
            done += min(MIB, end * GRANULE - at)
            progress(stage, done, total, "B")
    digest.update(os.fstat(fd).st_size.to_bytes(8, "little"))
    return digest.hexdigest()


def human(size: float) -> str:
    """Bytes with a unit and four digits or so."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} PiB"
