"""LiftStore: a zarr v3 store over a local directory, whose inner chunks are read in one batch.

    zarr -> get, get_ranges -> _Files (a File by path) -> Coalescer -> disk
    zarr -> set -> a temporary file beside it -> rename

1. It is zarr's LocalStore (keys, errors, listing, deleting), but for what moves bytes.
2. A value is replaced as a whole: a reader has opened the old file or the new one, never a mix.
3. Ranges of one value are one batch, merged by the coalescer's own `gap`. Each result has bytes of
   its own, and keeps nothing else alive. Between the file and the results is at most SCRATCH bytes.
4. A file stays open for the next read, but only the file that the path names *now* is read: an
   open file's inode number can't be given to another, so equal numbers mean the same file.
5. A pickled or forked store uses the coalescer of the process it wakes up in.
6. On an event loop nothing larger than INLINE bytes is copied and no disk is waited for; paths are
   looked up there.

Who may call: any thread, any event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import itertools
import os
import shutil
import threading
import uuid
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ._coalescer import Coalescer
from ._file import File
from ._scratch import SCRATCH, borrowed_scratch
from .errors import RangeError, ShortReadError

try:
    from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
    from zarr.core.buffer import Buffer, default_buffer_prototype
    from zarr.storage import LocalStore
except ImportError as error:
    raise ImportError("iolift.zarr needs zarr >= 3.1: pip install 'iolift[zarr]'") from error

if TYPE_CHECKING:
    import mmap
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import BufferPrototype

__all__ = ["LiftStore"]

INLINE = 256 << 10  # copying more from the page cache takes longer than a hop to a thread
MAX_AWAITED = 64  # reads that tasks await, each with its file open; others go to threads
LARGE = 1 << 20  # read to where it stays, not through the scratch memory
NO_VALUE = (FileNotFoundError, IsADirectoryError, NotADirectoryError)


class LiftStore(LocalStore):
    """A directory as a zarr store, read and written through one iolift.Coalescer.

    root: the directory, made unless read_only.
    coalescer: an iolift.Coalescer to share, in this process; pickled and forked copies have that
    of their own process. Otherwise stores with the same options share one per process.
    max_open_files: files that stay open to be read again; 0: none does.
    **options: of iolift.Coalescer (gap, max_waste, depth, ...); hashable.

    Values are replaced atomically, and not synced to the device, as LocalStore does it. Pickles.
    Raises ValueError or TypeError for a bad option.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        read_only: bool = False,
        coalescer: Coalescer | None = None,
        max_open_files: int = 32,
        **options: Any,
    ) -> None:
        super().__init__(root, read_only=read_only)
        if isinstance(max_open_files, bool) or not isinstance(max_open_files, int):
            raise TypeError(f"max_open_files must be an int, not {max_open_files!r}")
        if max_open_files < 0:
            raise ValueError(f"max_open_files must not be negative, not {max_open_files}")
        if coalescer is not None and options:
            raise TypeError(f"{sorted(options)} can't be set: the coalescer given has its own")
        if coalescer is not None and not isinstance(coalescer, Coalescer):
            raise TypeError(f"coalescer must be an iolift.Coalescer, not {coalescer!r}")
        self._settings = max_open_files, dict(sorted(options.items()))
        files = self._shared_files() if coalescer is None else _Files(coalescer, max_open_files)
        self._own: tuple[int, _Files] | None = (os.getpid(), files)

    @classmethod
    async def open(
        cls,
        root: Path | str,
        *,
        read_only: bool = False,
        mode: str | None = None,
        **options: Any,
    ) -> Self:
        """Make and open a store; arguments as of the class.

        mode: with "r" or "r+" the directory must exist; read_only alone says what may be written.
        Raises FileNotFoundError.
        """
        must_exist = read_only if mode is None else mode in ("r", "r+")
        store = cls(root, read_only=must_exist, **options)
        await store._open()
        store = store.with_read_only(read_only)
        await store._open()
        return store

    def with_read_only(self, read_only: bool = False) -> Self:
        """The same store, not open yet, with the same coalescer and files, read-only or not."""
        store = object.__new__(type(self))
        store.__dict__.update(self.__dict__, _read_only=read_only, _is_open=False)
        return store

    @property
    def coalescer(self) -> Coalescer:
        """The Coalescer of this store in this process."""
        return self._files.coalescer

    @property
    def _files(self) -> _Files:
        if self._own is None or self._own[0] != os.getpid():
            self._own = (os.getpid(), self._shared_files())
        return self._own[1]

    def _shared_files(self) -> _Files:
        max_open_files, options = self._settings
        return _shared(max_open_files, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_own": None}

    def __repr__(self) -> str:
        return f"LiftStore('{self}')"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and bool(self.root == other.root)

    def close(self) -> None:
        """Close the store and its idle files; what asks for them again opens them again."""
        super().close()
        self._files.forget_below(self.root)

    def _open_here(self) -> None:
        # Not _open: that raises where two are about to open the same store.
        if not self._is_open:
            if not self.read_only:
                self.root.mkdir(parents=True, exist_ok=True)
            if not self.root.exists():
                raise FileNotFoundError(f"{self.root} does not exist")
            self._is_open = True

    # ------------------------------------------------------------------------------------- reading

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The value, or the part of it that there is; None where there is no such value.

        Raises OSError; TypeError or ValueError, naming it, for a bad byte_range.
        """
        self._open_here()
        try:
            file, size = self._files.find(self.root / key)
        except NO_VALUE:
            return None
        start, n = _span(byte_range, size)
        if n <= INLINE and self._files.awaited < MAX_AWAITED:
            with self._files.awaiting():
                return _buffer(prototype, await file.submit_pread(n, start))
        # It is opened there: no more files are than threads, however many tasks ask.
        del file
        return await asyncio.to_thread(
            self.get_sync, key, prototype=prototype, byte_range=byte_range
        )

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """As get, without an event loop."""
        self._open_here()
        try:
            file, size = self._files.find(self.root / key)
        except NO_VALUE:
            return None
        start, n = _span(byte_range, size)
        return _buffer(prototype, file.pread(n, start))

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """One answer for each (key, range), as of get; the ranges of a key are one batch."""
        self._open_here()
        asked = list(key_ranges)
        places: dict[str, list[int]] = {}
        for i, (key, _) in enumerate(asked):
            places.setdefault(key, []).append(i)
        reads = (self._read(key, [asked[i][1] for i in at]) for key, at in places.items())
        answers: list[Buffer | None] = [None] * len(asked)
        for at, found in zip(places.values(), await asyncio.gather(*reads), strict=True):
            if found is not None:
                for i, data in zip(at, found, strict=True):
                    answers[i] = _buffer(prototype, data)
        return answers

    async def get_ranges(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        max_concurrency: int | None = None,
        max_gap_bytes: int | None = None,
        max_coalesced_bytes: int | None = None,
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Yields all answers at once, as (index, Buffer): the ranges are one batch.

        max_concurrency, max_gap_bytes and max_coalesced_bytes are zarr's plan for a store that
        reads one range at a time, and not used: depth, gap, max_waste and max_io of the coalescer
        say how the batch is read.

        Raises ExceptionGroup of what get would raise, or of FileNotFoundError for no such value.
        """
        self._open_here()
        if byte_ranges:
            with _grouped(key):
                found = await self._read(key, byte_ranges)
                if found is None:
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
            yield [(i, _buffer(prototype, data)) for i, data in enumerate(found)]

    def get_ranges_sync(
        self,
        key: str,
        byte_ranges: Sequence[ByteRequest | None],
        *,
        prototype: BufferPrototype,
        max_gap_bytes: int | None = None,
        max_coalesced_bytes: int | None = None,
    ) -> Sequence[tuple[int, Buffer | None]]:
        """As get_ranges, without an event loop."""
        self._open_here()
        if not byte_ranges:
            return []
        with _grouped(key):
            found = self._read_here(key, byte_ranges)
            if found is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
        return [(i, _buffer(prototype, data)) for i, data in enumerate(found)]

    async def _read(self, key: str, asked: Sequence[ByteRequest | None]) -> list[bytes] | None:
        try:
            file, size = self._files.find(self.root / key)
        except NO_VALUE:
            return None
        spans = _spans(asked, size)
        if len(spans) == 1 and spans[0][1] <= INLINE and self._files.awaited < MAX_AWAITED:
            start, n = spans[0]
            with self._files.awaiting():
                return [await file.submit_pread(n, start)]
        del file
        return await asyncio.to_thread(self._read_here, key, asked)

    def _read_here(self, key: str, asked: Sequence[ByteRequest | None]) -> list[bytes] | None:
        try:
            file, size = self._files.find(self.root / key)
        except NO_VALUE:
            return None
        return _read_many(file, _spans(asked, size))

    # ------------------------------------------------------------------------------------- writing

    def set_sync(self, key: str, value: Buffer) -> None:
        """Replace the value as a whole. Raises OSError, TypeError; ValueError if read_only."""
        self._put(*self._check_set(key, value), os.replace)

    async def set(self, key: str, value: Buffer) -> None:
        """As set_sync, in a thread."""
        await asyncio.to_thread(self._put, *self._check_set(key, value), os.replace)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """As set, but a value that is there stays, also one that comes at the same time."""
        path, data = self._check_set(key, value)
        try:
            await asyncio.to_thread(self._put, path, data, os.link)
        except FileExistsError:
            return

    def _check_set(self, key: str, value: Buffer) -> tuple[Path, memoryview]:
        self._open_here()
        self._check_writable()
        if not isinstance(value, Buffer):
            raise TypeError(f"value must be a zarr Buffer, not {type(value).__name__}")
        return self.root / key, value.as_numpy_array().data

    def _put(self, path: Path, data: memoryview, publish: Callable[[str, str], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = os.fspath(path.with_suffix(f".{uuid.uuid4().hex}.partial"))
        files = self._files
        try:
            with files.coalescer.open(temporary, "x") as f:
                f.pwrite(data, 0)
            publish(temporary, os.fspath(path))
        finally:
            # Renamed, there is nothing; linked, or failed, it has to go.
            _unlink(temporary)
        files.forget(path)

    # ------------------------------------------------------------------------------------ deleting

    def delete_sync(self, key: str) -> None:
        """Remove a value, or a directory of them; neither need be there."""
        self._open_here()
        self._check_writable()
        _remove(self.root / key)
        self._files.forget_below(self.root / key)

    async def delete(self, key: str) -> None:
        """As delete_sync, in a thread."""
        self._check_writable()
        await asyncio.to_thread(_remove, self.root / key)
        self._files.forget_below(self.root / key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove all values below a directory. Raises ValueError where prefix is a value."""
        await super().delete_dir(prefix)
        self._files.forget_below(self.root / prefix)

    async def clear(self) -> None:
        """Remove all values."""
        await super().clear()
        self._files.forget_below(self.root)

    async def move(self, dest_root: Path | str) -> None:
        """Move the directory to where nothing is. Raises FileExistsError."""
        before = self.root
        await super().move(dest_root)
        self._files.forget_below(before)


class _Shared(File):
    """Closed by whoever lets go of it last, and so without a warning."""

    def _dealloc_warn(self, source: object) -> None:
        pass


class _Open(NamedTuple):
    file: File
    device: int
    inode: int


class _Files:
    """Files open for reading, by path: at most `limit` idle ones, the latest used.

    A file that is dropped is closed when its last user lets go of it. What another process
    deletes or replaces keeps its room on the disk until then.
    """

    def __init__(self, coalescer: Coalescer, limit: int) -> None:
        self.coalescer = coalescer
        self._limit = limit
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._lock = threading.RLock()  # a signal handler may come in between; over no system call
        self.awaited = 0  # reads that tasks await, each with its file; about, where loops race

    @contextlib.contextmanager
    def awaiting(self) -> Iterator[None]:
        """While a task awaits a read."""
        self.awaited += 1
        try:
            yield
        finally:
            self.awaited -= 1

    def find(self, path: Path) -> tuple[File, int]:
        """The file that path names now, and its size in bytes. Raises OSError."""
        name = os.fspath(path)
        with self._lock:
            known = self._open.get(name)
            if known is not None:
                self._open.move_to_end(name)
        if known is not None:
            try:
                status = os.stat(name)
            except OSError:
                self.forget(path)
                raise
            if (status.st_dev, status.st_ino) == known[1:]:
                return known.file, status.st_size
        try:
            file = _Shared(name, coalescer=self.coalescer)
        except OSError:
            self.forget(path)
            raise
        status = os.fstat(file.fileno())
        if self._limit:
            dropped = [known]  # closed after the lock
            with self._lock:
                self._open[name] = _Open(file, status.st_dev, status.st_ino)
                self._open.move_to_end(name)
                while len(self._open) > self._limit:
                    dropped.append(self._open.popitem(last=False)[1])
        return file, status.st_size

    def forget(self, path: Path) -> None:
        """Keep the file at path no longer."""
        with self._lock:
            dropped = self._open.pop(os.fspath(path), None)
        del dropped  # closed here, after the lock

    def forget_below(self, path: Path) -> None:
        """Keep none of the files at and below path. O(files kept)."""
        name = os.fspath(path)
        with self._lock:
            below = [each for each in self._open if each == name or each.startswith(name + os.sep)]
            dropped = [self._open.pop(each) for each in below]
        dropped.clear()


@functools.lru_cache(maxsize=32, typed=True)
def _shared(max_open_files: int, **options: Any) -> _Files:
    return _Files(Coalescer(**options), max_open_files)


os.register_at_fork(after_in_child=_shared.cache_clear)


def _span(byte_range: ByteRequest | None, size: int) -> tuple[int, int]:
    # (start, length) of what there is of it, in a value of `size` bytes.
    match byte_range:
        case None:
            start, end = 0, size
        case RangeByteRequest(start, end):
            pass
        case OffsetByteRequest(start):
            end = max(start, size)
        case SuffixByteRequest(suffix) if suffix >= 0:
            start, end = max(0, size - suffix), size
        case SuffixByteRequest():
            raise ValueError(f"Unexpected byte_range, got {byte_range}: it is negative.")
        case _:
            raise TypeError(f"Unexpected byte_range, got {byte_range}.")
    if start < 0 or end < start:
        raise ValueError(f"Unexpected byte_range, got {byte_range}: it ends before it starts.")
    start = min(start, size)
    return start, min(end, size) - start


def _spans(asked: Sequence[ByteRequest | None], size: int) -> list[tuple[int, int]]:
    # What an inner chunk is asked for with is a quarter of the price here.
    return [
        (each.start, each.end - each.start)
        if type(each) is RangeByteRequest and 0 <= each.start <= each.end <= size
        else _span(each, size)
        for each in asked
    ]


def _buffer(prototype: BufferPrototype | None, data: bytes) -> Buffer:
    return (prototype or default_buffer_prototype()).buffer.from_bytes(data)


@contextlib.contextmanager
def _grouped(key: str) -> Iterator[None]:
    # As zarr's own get_ranges reports it, for `except*`.
    try:
        yield
    except NO_VALUE:
        missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), key)
        raise ExceptionGroup(f"no value {key!r}", [missing]) from None
    except Exception as error:
        raise ExceptionGroup(f"can't read ranges of {key!r}", [error]) from None


def _read_many(file: File, spans: Sequence[tuple[int, int]]) -> list[bytes]:
    """The bytes of each (start, length), in order, each an object of its own.

    Fewer where the file has been cut meanwhile. Raises OSError of the first range that fails.
    O(n log n) time.
    """
    found: list[bytes] = [b""] * len(spans)
    large = [i for i, (_, n) in enumerate(spans) if n > LARGE]
    tickets = [file.submit_pread(spans[i][1], spans[i][0]) for i in large]
    small = [(start, n, i) for i, (start, n) in enumerate(spans) if 0 < n <= LARGE]
    if sum(n for _, n, _ in small) > SCRATCH:
        small.sort()  # neighbours go to the same batch
    at = 0
    with borrowed_scratch() as scratch:
        while at < len(small):
            at = _read_small(file, small, at, scratch, found)
    for i, ticket in zip(large, tickets, strict=True):
        found[i] = ticket.result()
    return found


def _read_small(
    file: File, asked: list[tuple[int, int, int]], at: int, scratch: mmap.mmap, found: list[bytes]
) -> int:
    # From `at`, as many as the scratch memory takes, as one batch; returns where the next begins.
    ends: list[int] = []
    total = 0
    for _, n, _ in itertools.islice(asked, at, None):
        total += n
        if total > SCRATCH:
            break
        ends.append(total)
    batch = asked[at : at + len(ends)]
    starts, lengths = [start for start, _, _ in batch], [n for _, n, _ in batch]
    try:
        with memoryview(scratch)[: ends[-1]] as memory:
            file.read_ranges(starts, lengths, out=memory)
    except (RangeError, ShortReadError):
        # It was cut meanwhile, or the device has bad places: then each range is on its own.
        for start, n, i in batch:
            found[i] = file.pread(n, start)
    else:
        for (_, n, i), end in zip(batch, ends, strict=True):
            found[i] = scratch[end - n : end]
    return at + len(batch)


def _unlink(name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
