"""LiftFileSystem: local files for fsspec, protocol "lift", whose ranges are read in batches.

1. It is fsspec's local file system, but for what moves bytes: `cat_file`, `cat_ranges` and what
   `open` returns go through iolift.
2. `cat_ranges` reads all ranges of a file as one batch: merged, sorted, each byte once. Every range
   has its own answer, bytes of its own or an exception, in the order asked, identical ones too.
3. Instances of a process that are made with the same options share a Coalescer. A forked child
   makes its own, and an unpickled instance uses that of the process it wakes up in.
4. Between the file and the results is at most SCRATCH bytes: what is smaller is copied out of
   there, what is larger is read to where it stays.

Who may call: any thread. An open file belongs to the process that opened it, as iolift.File does.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import tempfile
from collections import defaultdict
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from ._coalescer import Coalescer
from ._file import File
from ._scratch import SCRATCH, borrowed_scratch
from .errors import ForkedError, RangeError, ShortReadError

try:
    from fsspec.compression import compr
    from fsspec.implementations.local import LocalFileOpener, LocalFileSystem
except ImportError as error:
    raise ImportError("iolift.fsspec needs fsspec: pip install 'iolift[fsspec]'") from error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["LiftFile", "LiftFileSystem"]

# What AbstractFileSystem and its metaclass take: everything else is for the Coalescer.
FSSPEC_OPTIONS = {
    *("asynchronous", "batch_size", "loop", "listings_expiry_time", "max_paths"),
    *("skip_instance_cache", "use_listings_cache"),
}


@functools.lru_cache(maxsize=32, typed=True)
def _shared_for(**options: Any) -> Coalescer:
    return Coalescer(**options)


def _shared_coalescer(options: dict[str, Any]) -> Coalescer:
    return _shared_for(**dict(sorted(options.items())))


os.register_at_fork(after_in_child=_shared_for.cache_clear)


class LiftFileSystem(LocalFileSystem):  # type: ignore[misc]
    """fsspec.filesystem("lift"): local files, ranges of them in batches.

    auto_mkdir: whether opening, copying or moving to a path makes its directory first.
    direct: whether files are read and written past the page cache (O_DIRECT).
    **options: of iolift.Coalescer (gap, depth, max_io, backend, ...); hashable, and the same
    ones mean the same Coalescer.

    Raises ValueError or TypeError for a bad option. Pickles.
    """

    protocol = "lift"

    def __init__(self, auto_mkdir: bool = False, direct: bool = False, **options: Any) -> None:
        own = {name: options.pop(name) for name in FSSPEC_OPTIONS & options.keys()}
        super().__init__(auto_mkdir=auto_mkdir, **own)
        self._direct = bool(direct)
        self._options = options
        _shared_coalescer(options)  # a bad option is an error now

    @property
    def coalescer(self) -> Coalescer:
        """The Coalescer of this process for these options."""
        return _shared_coalescer(self._options)

    def _open_raw(self, path: str, mode: str, max_gap: int | None = None) -> File:
        gap = {} if max_gap is None else {"gap": int(max_gap)}
        coalescer = _shared_coalescer(self._options | gap)
        return _Raw(path, mode, direct=self._direct, coalescer=coalescer)

    def _open(self, path: Any, mode: str = "rb", block_size: Any = None, **kwargs: Any) -> LiftFile:
        path = self._strip_protocol(path)
        if self.auto_mkdir and "r" not in mode:
            self.makedirs(self._parent(path), exist_ok=True)
        return LiftFile(path, mode, fs=self, **kwargs)

    def cat_file(
        self, path: Any, start: int | None = None, end: int | None = None, **kwargs: Any
    ) -> bytes:
        """The bytes [start, end) of a file; None and negative limits as in a slice.

        Fewer where the file ends before. kwargs: as of open, such as compression; the file is
        then read through open. Raises OSError; ValueError where the range ends before it starts.
        """
        if kwargs:
            return bytes(super().cat_file(path, start, end, **kwargs))
        with self._open_raw(self._strip_protocol(path), "r") as f:
            return _read_one(f, start, end)

    def pipe_file(self, path: Any, value: Any, mode: str = "overwrite", **kwargs: Any) -> None:
        """Write a file of just these bytes. mode "create": FileExistsError if it is there."""
        if mode not in ("overwrite", "create"):
            raise ValueError(f"mode must be 'overwrite' or 'create', not {mode!r}")
        if mode == "create" and self._intrans:  # only what is open for "w" waits for the commit
            super().pipe_file(path, value, mode, **kwargs)
            return
        with self.open(path, "xb" if mode == "create" else "wb", **kwargs) as f:
            f.write(value)

    def cat_ranges(
        self,
        paths: list[Any],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[Any]:
        """The bytes [starts[i], ends[i]) of paths[i], for all i: one batch for each file.

        paths: a list. starts, ends: a list of as many limits, or one limit for all; a limit is an
        int or None, and means what it does to cat_file.
        max_gap: the widest hole, in bytes, that is read through rather than around, in place of
        the option gap; all holes together are at most max_waste of what was asked, as ever.
        on_error: "return": a range that fails has its exception in its place; "raise": the
        first one, by index, is raised.
        kwargs: as of open; the ranges are then read through open, one by one.

        Returns a list of bytes, in the order of paths. TypeError or ValueError for a bad argument;
        of a range: OSError, or as of cat_file. O(n log n) time; at most SCRATCH bytes beside the
        results, and 100 a range.
        """
        starts, ends = _check_ranges(paths, starts, ends, max_gap, on_error)
        if kwargs and max_gap is None:
            return list(super().cat_ranges(paths, starts, ends, on_error=on_error, **kwargs))
        if kwargs:
            raise ValueError(f"max_gap = {max_gap} can't be had together with {sorted(kwargs)}")
        places: defaultdict[Any, list[int]] = defaultdict(list)
        for i, path in enumerate(paths):
            places[path].append(i)
        answers: list[Any] = [None] * len(paths)
        for path, chosen in places.items():
            found: Sequence[Any]
            try:
                with self._open_raw(self._strip_protocol(path), "r", max_gap) as f:
                    found = _read_many(f, [starts[i] for i in chosen], [ends[i] for i in chosen])
            except Exception as error:
                found = [_bare(error)] * len(chosen)
            for i, answer in zip(chosen, found, strict=True):
                answers[i] = answer
        if on_error == "raise":
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        return answers


class _Raw(File):
    """Not write-behind: what compresses into a file never closes it, and would not hear of an error
    that comes late."""

    _is_write_behind = False


class LiftFile(LocalFileOpener):  # type: ignore[misc]
    """What LiftFileSystem.open returns: a buffered file over an iolift.File, its `raw`.

    Pickles when opened for reading. With autocommit=False the bytes go to a temporary file, and
    to the path with commit().
    """

    f: Any

    def _open(self) -> None:
        if self.f is not None and not self.f.closed:
            return
        target = self.path
        if "w" in self.mode and not self.autocommit:
            handle, target = tempfile.mkstemp()
            os.close(handle)
            self.temp = target
        if "a" in self.mode and not self.fs._direct:
            # There is nothing to merge, and only the kernel knows the end where several append.
            self.raw: io.RawIOBase = io.FileIO(target, self.mode)
        else:
            self.raw = self.fs._open_raw(target, self.mode)
        self.f = _buffered(self.raw, self.mode)
        if self.compression:
            self.f = compr[self.compression](self.f, mode=self.mode)
        if "w" not in self.mode:
            self.size = self.f.seek(0, os.SEEK_END)
            self.f.seek(0)
            self.f.size = self.size

    def flush(self) -> None:
        """Return when all that was written so far is in the file."""
        self.f.flush()
        self.raw.flush()

    def close(self) -> None:
        """Write what is buffered, and close. In a forked child it only closes."""
        with contextlib.suppress(ForkedError):
            self.f.close()

    def __exit__(self, *exception: object) -> None:
        self._incontext = False
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        del state["raw"]
        return state


def _buffered(raw: io.RawIOBase, mode: str) -> Any:
    if "+" in mode:
        return io.BufferedRandom(raw)  # type: ignore[type-var, unused-ignore]
    return io.BufferedReader(raw) if "r" in mode else io.BufferedWriter(raw)


def _check_ranges(
    paths: Any, starts: Any, ends: Any, max_gap: Any, on_error: Any
) -> tuple[list[Any], list[Any]]:
    if not isinstance(paths, list):
        raise TypeError(f"paths must be a list, not {type(paths).__name__}")
    starts = starts if isinstance(starts, list) else [starts] * len(paths)
    ends = ends if isinstance(ends, list) else [ends] * len(paths)
    for name, limits in (("starts", starts), ("ends", ends)):
        if len(limits) != len(paths):
            raise ValueError(f"{name} has {len(limits)} limits for {len(paths)} paths")
    if max_gap is not None and (
        isinstance(max_gap, bool)
        or not isinstance(max_gap, Integral)
        or not 0 <= int(max_gap) < 2**63
    ):
        raise ValueError(f"max_gap must be a number of bytes or None, not {max_gap!r}")
    if on_error not in ("return", "raise"):
        raise ValueError(f"on_error must be 'return' or 'raise', not {on_error!r}")
    return starts, ends


def _read_one(f: File, start: int | None, end: int | None) -> bytes:
    size = f.seek(0, os.SEEK_END)
    first = 0 if start is None else start if start >= 0 else max(0, size + start)
    last = size if end is None else end if end >= 0 else size + end
    if end is not None and last < first:
        raise ValueError(f"the range ends before it starts: start {start!r}, end {end!r}")
    if last < size:
        return f.pread(last - first, first)
    # To the end, wherever that is now: files of /proc have no size, and others grow.
    f.seek(first)
    return f.readall() if end is None else _read_until(f, last - first)


def _read_until(f: File, n: int) -> bytes:
    parts: list[bytes] = []
    while n > 0:
        part = f.read(min(n, 1 << 20))
        if not part:
            break
        parts.append(part)
        n -= len(part)
    return b"".join(parts)


def _read_many(f: File, starts: list[Any], ends: list[Any]) -> list[Any]:
    size = f.seek(0, os.SEEK_END)
    first, last = _positions(starts, 0, size), _positions(ends, size, size)
    if len(starts) == 1 or first is None or last is None or size == 0:
        return [_outcome(f, *limits) for limits in zip(starts, ends, strict=True)]
    np.maximum(first, 0, out=first)
    reversed_ = np.flatnonzero(last < first).tolist()
    np.minimum(first, size, out=first)
    lengths = np.clip(last, first, size) - first
    is_large = lengths > SCRATCH
    large, small = np.flatnonzero(is_large).tolist(), np.flatnonzero(~is_large)
    tickets = [f.submit_pread(int(lengths[i]), int(first[i])) for i in large]
    small = small[np.argsort(first[small], kind="stable")]
    answers: list[Any] = [None] * len(starts)
    _read_small(f, small, first[small], lengths[small], answers)
    for i, ticket in zip(large, tickets, strict=True):
        answers[i] = ticket.exception() or ticket.result()
    for i in reversed_:  # each has its own complaint
        answers[i] = _outcome(f, starts[i], ends[i])
    return answers


def _read_small(
    f: File, places: NDArray[Any], first: NDArray[Any], lengths: NDArray[Any], answers: list[Any]
) -> None:
    # In ascending order, as many at a time as the scratch memory takes.
    ends = np.cumsum(lengths)
    begins = ends - lengths
    at = 0
    with borrowed_scratch() as scratch:
        while at < len(places):
            base = int(begins[at])
            to = int(np.searchsorted(ends, base + SCRATCH, "right"))
            part, at = slice(at, to), to
            chosen, starts, stops = places[part], begins[part] - base, ends[part] - base
            if _fill(f, first[part], lengths[part], memoryview(scratch)[: int(stops[-1])]):
                rows = zip(chosen.tolist(), starts.tolist(), stops.tolist(), strict=True)
                for i, start, stop in rows:
                    answers[i] = scratch[start:stop]
            else:
                asked = first[part].tolist(), lengths[part].tolist()
                for i, start, n in zip(chosen.tolist(), *asked, strict=True):
                    answers[i] = _outcome(f, start, start + n)


def _fill(f: File, first: NDArray[Any], lengths: NDArray[Any], memory: memoryview) -> bool:
    # False where the file has shrunk or the device has bad places: then each range is on its own.
    try:
        f.read_ranges(first, lengths, out=memory)
    except (RangeError, ShortReadError):
        return False
    return True


def _outcome(f: File, start: Any, end: Any) -> Any:
    try:
        return _read_one(f, start, end)
    except Exception as error:
        return _bare(error)


def _bare(error: Exception) -> Exception:
    # A traceback's frames would keep the other ranges' bytes alive for as long as the error is.
    return error.with_traceback(None)


def _positions(limits: list[Any], default: int, size: int) -> NDArray[np.int64] | None:
    # Bytes from the beginning; None where one of them is no int64.
    array = np.array([default if limit is None else limit for limit in limits])
    if array.dtype.kind != "i" or array.ndim != 1:
        return None
    array = array.astype(np.int64)
    array[array < 0] += size
    return array
