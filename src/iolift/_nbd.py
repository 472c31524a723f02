"""Disks: what the nbdkit plugin (nbdkit.py) serves, without nbdkit itself.

1. All connections share one disk, which is one iolift.File: what one has written and been answered
   for, all read, and a flush on any of them covers the writes of all. That is `can_multi_conn`.
2. `Disk`: a write is answered when it is in the file, a flush when all that was answered before it
   is on the device (concurrent ones share one fdatasync), and FUA is both.
3. `JournalledDisk`: a write is answered when it is held, and seen by every read; a flush waits for
   all of them to be received by the journal, FUA for its own. Only the journal changes the file: no
   trim, and zeros are written as such.
4. NBD leaves requests that are in flight together unordered. A zero or a trim goes past iolift
   straight to the file system: its answer waits until no read that is older is under way, so that
   no later one joins it and gets what was there before.
5. A failed flush is for good, as everywhere in iolift. A held write that failed, which was answered
   already, is told to the next flush of every connection.

Who may call: any thread.
"""

from __future__ import annotations

import ctypes
import errno
import io
import os
import threading
from typing import TYPE_CHECKING, Any

from ._file import File

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 0x01, 0x02, 0x10
EXTENT_HOLE, EXTENT_ZERO = 1, 2
MAX_JOURNALLED_BYTES = 4 << 20  # of one record: a large request is several, and atomic in none
PREFERRED_BLOCK = 4096
NO_LIMIT = 0xFFFFFFFF
# What fallocate says where it can't; a device also of a range that is not of whole blocks.
UNABLE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _boolean(text: str) -> bool:
    if text.lower() not in ("1", "true", "yes", "on", "0", "false", "no", "off"):
        raise ValueError("must be true or false")
    return text.lower() in ("1", "true", "yes", "on")


def _number(text: str) -> int:
    """A whole number, perhaps with the suffix K, M or G (powers of 1024)."""
    scale = {"K": 10, "M": 20, "G": 30}.get(text[-1:].upper(), 0)
    digits = text[:-1] if scale else text
    if not (digits.isascii() and digits.isdigit()):
        raise ValueError("must be a whole number, perhaps with K, M or G")
    return int(digits) << scale


def _number_or_auto(text: str) -> int | str:
    return text if text == "auto" else _number(text)


KEYS: Mapping[str, Callable[[str], Any]] = {
    # nbdkit goes to / when it becomes a daemon
    "file": os.path.abspath,
    "journal": os.path.abspath,
    "direct": _boolean,
    "readonly": _boolean,
    "journal_segment_bytes": _number,
    "journal_max_bytes": _number,
    "keep_segments": _boolean,
    "backend": str,
    "order": str,
    "gap": _number_or_auto,
    "max_io": _number,
    "max_waste": float,
    "depth": _number_or_auto,
    "read_window_us": float,
    "write_window_ms": float,
    "max_held_bytes": _number,
    "max_held_requests": _number,
    "max_iops": float,
    "max_bytes_per_s": _number,
}


def parse_setting(key: str, text: str) -> Any:
    """The value of a plugin's parameter key=text.

    Raises ValueError for a key that is none, naming those there are, or for a bad value.
    """
    if key not in KEYS:
        raise ValueError(f"unknown parameter {key!r}: there are {', '.join(KEYS)}")
    if not text:
        raise ValueError(f"{key}= is empty")
    try:
        return KEYS[key](text)
    except ValueError as error:
        raise ValueError(f"{key}={text}: {error}") from None


def open_disk(settings: Mapping[str, Any]) -> Disk:
    """The disk that these settings, by key, ask for.

    Raises ValueError or TypeError for settings that are missing or don't go together, OSError
    where the file or the journal can't be opened.
    """
    options = dict(settings)
    path = options.pop("file", None)
    if path is None:
        raise ValueError("file=PATH is missing")
    readonly = options.pop("readonly", False)
    if options.get("journal") is None:
        for key in ("journal_segment_bytes", "journal_max_bytes", "keep_segments"):
            if key in options:
                raise ValueError(f"{key}= needs journal=")
        return Disk(path, "r" if readonly else "r+", options)
    if readonly:
        raise ValueError("readonly= and journal= exclude each other: a journal is written to")
    return JournalledDisk(path, "r+", options)


class Connection:
    """What the plugin knows of one client."""

    def __init__(self) -> None:
        self.failures_heard = 0
        self.threads: list[int] = []


class Disk:
    """A file as a disk of a fixed size. `options` go to iolift.open."""

    def __init__(self, path: str, mode: str, options: Mapping[str, Any]) -> None:
        self.file = File(path, mode, **options)
        try:
            core = self.file._core
            assert core is not None
            self._core = core
            self._descriptor = self.file.fileno()
            # Of a device, fstat says nothing.
            self.size = os.lseek(self._descriptor, 0, os.SEEK_END)
        except BaseException:
            self.file.close()
            raise
        # Batches of direct writes gain. A batch into the page cache stands still where one of its
        # pages is on its way to the device, and all that come after it with it.
        self._gathers = self.file.direct
        # The count that was read, which only the plugin's own check looks at: a call less.
        self.read_into = core.pread_into

    @property
    def writable(self) -> bool:
        """Whether anything may change it."""
        return self.file.writable()

    @property
    def can_trim(self) -> bool:
        """Whether `trim` and `zero` may be called."""
        return self.writable

    @property
    def can_extents(self) -> bool:
        """Whether the file system tells data from holes."""
        try:
            os.lseek(self._descriptor, 0, os.SEEK_HOLE)
        except OSError as error:
            # ENXIO: there is not even a first byte.
            return error.errno == errno.ENXIO
        return True

    @property
    def block_size(self) -> tuple[int, int, int]:
        """(minimum, preferred, maximum), bytes. Whatever is less than preferred works, slower."""
        return 1, max(PREFERRED_BLOCK, self.file.alignment[1]), NO_LIMIT

    def short(self, got: int, count: int, offset: int) -> OSError:
        """The error of a read that the file has ended under."""
        text = f"the file ends within the disk: {got} of {count} bytes at offset {offset}"
        return OSError(errno.EIO, text, self.file.name)

    def write(self, data: Any, offset: int, fua: bool) -> None:
        """Write all of data, a buffer; it is in the file, with fua on the device."""
        if self._gathers:
            written = self.file.pwrite(data, offset)
        else:
            written = self.file.pwritev((data,), offset)
        if written != len(data):
            text = f"only {written} of {len(data)} bytes were written at offset {offset}"
            raise OSError(errno.EIO, text, self.file.name)
        if fua:
            self.file.sync()

    def flush(self, connection: Connection) -> None:
        """Return when all that was answered before is on the device."""
        self.file.sync()

    def trim(self, count: int, offset: int, fua: bool) -> None:
        """Let go of the room of count bytes. Where that can't be done, nothing happens."""
        self._allocate(FALLOC_PUNCH_HOLE, count, offset)
        if fua:
            self.file.sync()

    def zero(self, count: int, offset: int, *, may_trim: bool, fua: bool) -> None:
        """Make count bytes zeros, without writing them.

        Raises OSError; EOPNOTSUPP where that can't be: then zeros are to be written.
        """
        done = may_trim and self._allocate(FALLOC_PUNCH_HOLE, count, offset)
        if not done and not self._allocate(FALLOC_ZERO_RANGE, count, offset):
            text = "zeros have to be written here"
            raise OSError(errno.EOPNOTSUPP, text, self.file.name)
        if fua:
            self.file.sync()

    def extents(self, count: int, offset: int) -> Iterator[tuple[int, int, int]]:
        """(offset, length, type) of data (0) and holes in [offset, offset + count), in order."""
        at, end = offset, offset + count
        # Of a file that was cut the rest is no hole: who reads it gets an error.
        there = max(at, min(end, os.lseek(self._descriptor, 0, os.SEEK_END)))
        yield from self._extents_of(at, there)
        if there < end:
            yield there, end - there, 0

    def _extents_of(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        while at < end:
            data = self._seek(at, os.SEEK_DATA, end)
            if data > at:
                yield at, data - at, EXTENT_HOLE | EXTENT_ZERO
            if data == end:
                return
            at = self._seek(data, os.SEEK_HOLE, end)
            yield data, at - data, 0

    def close(self) -> None:
        """Close the file; with a journal, all of it is in the file then."""
        self.file.close()

    def _seek(self, offset: int, whence: int, end: int) -> int:
        try:
            return min(os.lseek(self._descriptor, offset, whence), end)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return end

    def _allocate(self, mode: int, count: int, offset: int) -> bool:
        # False where that can't be done.
        self._core.check_poison()
        if _fallocate(self._descriptor, mode | FALLOC_KEEP_SIZE, offset, count):
            number = ctypes.get_errno()
            if number in UNABLE:
                return False
            raise OSError(number, os.strerror(number), self.file.name)
        self._core.outlast()  # reads that are under way, with which others could share
        return True


class JournalledDisk(Disk):
    """A file that only its journal changes."""

    def __init__(self, path: str, mode: str, options: Mapping[str, Any]) -> None:
        super().__init__(path, mode, options)
        journal = self.file._journal
        assert journal is not None
        self._max_write = min(MAX_JOURNALLED_BYTES, journal.max_request)
        # Rounds of flushes: so many have begun, and ended; at most one is under way.
        self._rounds = threading.Condition()
        self._begun = self._ended = 0
        self._failures = 0
        self._failure: BaseException = OSError()

    @property
    def can_trim(self) -> bool:
        """No: the journal has no record of it."""
        return False

    @property
    def can_extents(self) -> bool:
        """No: what is held is not in the file, which would tell of holes there."""
        return False

    def write(self, data: Any, offset: int, fua: bool) -> None:
        """Write all of data, a buffer; it is held, with fua received."""
        step = self._max_write
        submit = self.file.submit_pwrite
        if len(data) <= step:
            tickets = [submit(data, offset)]
        else:
            starts = range(0, len(data), step)
            tickets = [submit(data[at : at + step], offset + at) for at in starts]
        if fua:
            for ticket in tickets:
                ticket.received()

    def flush(self, connection: Connection) -> None:
        """Return when all that was answered before is received by the journal."""
        with self._rounds:
            mine = self._begun + 1
            self._rounds.wait_for(lambda: self._ended >= mine or self._ended == self._begun)
            leads = self._ended < mine
            self._begun += leads
        if leads:
            self._lead()
        if connection.failures_heard < self._failures:
            connection.failures_heard = self._failures
            raise self._failure

    def _lead(self) -> None:
        # A round: one sync for all who came before it. What it hears of lost writes, which the file
        # tells only once, is for all of them, and for the next flush of every other connection.
        try:
            self.file.sync()
        except BaseException as error:  # also of no memory: the others of the round must hear it
            self._failure = error
            self._failures += 1
        finally:
            with self._rounds:
                self._ended = self._begun
                self._rounds.notify_all()

    def trim(self, count: int, offset: int, fua: bool) -> None:
        """Raises io.UnsupportedOperation."""
        raise io.UnsupportedOperation("a file with a journal can't be trimmed")

    def zero(self, count: int, offset: int, *, may_trim: bool, fua: bool) -> None:
        """Raises OSError (EOPNOTSUPP): zeros are to be written."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), self.file.name)
