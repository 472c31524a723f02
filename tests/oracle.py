"""Goal: a second opinion that is too simple to be wrong.

1. `naive_plan`: the planning rule in plain Python integers, one request after the other, quadratic.
2. `fast_plan`: the elevator rule again, by numpy's lexsort and searchsorted, for many requests.
3. `FileOracle`: a file that is a bytearray, on which requests run one by one in index order, and
   on which any request that touches a bad sector fails, having done nothing.
4. `same_reads`, `same_writes`: run a bulk call on a file and on its oracle, and compare every
   request's own outcome (bytes, short, errno), the exception and its attributes.

Nothing here looks at iolift's code; only (4) knows its exceptions.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_OFFSET = 2**63 - 1
SENTINEL = 0xA5


# ---------------------------------------------------------------------------------------- plans


@dataclass
class PlanAnswer:
    """What a plan has to say, with lists for arrays."""

    offsets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    count: list[int] = field(default_factory=list)
    bytes_asked: int = 0
    bytes_unique: int = 0
    bytes_moved: int = 0
    duplicates: int = 0


def union_size(ranges: Sequence[tuple[int, int]]) -> int:
    """Bytes in the union of [start, end) ranges."""
    total, reached = 0, -1
    for start, end in sorted(ranges):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def naive_plan(
    offsets: Sequence[int],
    lengths: Sequence[int] | int,
    gap: int = 0,
    max_io: int = 1 << 20,
    order: str = "elevator",
    start: int = 0,
) -> PlanAnswer:
    """The rule, read aloud. An extent is [begin, end, run]; a run never goes backwards."""
    sizes = [lengths] * len(offsets) if isinstance(lengths, int) else list(lengths)
    requests = [(o, o + n, i) for i, (o, n) in enumerate(zip(offsets, sizes, strict=True)) if n]
    if order == "elevator":
        requests.sort(key=lambda r: (r[0], -r[1], r[2]))
    extents: list[list[int]] = []
    run_of: dict[int, int] = {}
    previous, run = -1, 0
    for s, e, index in requests:
        if s < previous:
            run += 1
        if not extents or s < previous or s > extents[-1][1] + gap:
            extents.append([s, e, run])
        else:
            a, b, _ = extents[-1]
            if e <= b:
                pass
            elif e - a <= max_io:
                extents[-1][1] = e
            else:
                extents.append([b if s < b else s, e, run])
        run_of[index] = run
        previous = s
    carriers = {
        i: [k for k, (a, b, r) in enumerate(extents) if r == run_of[i] and a < e and s < b]
        for s, e, i in requests
    }
    if order == "elevator":
        pivot = _pivot(extents, carriers, start)
        m = len(extents)
        extents = extents[pivot:] + extents[:pivot]
        carriers = {i: [(k - pivot) % m for k in ks] for i, ks in carriers.items()}
    pairs = [(s, e) for s, e, _ in requests]
    return PlanAnswer(
        offsets=[a for a, _, _ in extents],
        lengths=[b - a for a, b, _ in extents],
        first=[carriers[i][0] if i in carriers else 0 for i in range(len(sizes))],
        count=[len(carriers.get(i, ())) for i in range(len(sizes))],
        bytes_asked=sum(sizes),
        bytes_unique=union_size(pairs),
        bytes_moved=sum(b - a for a, b, _ in extents),
        duplicates=len(pairs) - len(set(pairs)),
    )


def _pivot(extents: list[list[int]], carriers: dict[int, list[int]], start: int) -> int:
    """The first extent at or after `start` that shares no request with the one before it."""
    for k, (a, _, _) in enumerate(extents):
        if a >= start and not any(k - 1 in ks and k in ks for ks in carriers.values()):
            return k
    return 0


def fast_plan(
    offsets: np.ndarray, lengths: np.ndarray, gap: int = 0, max_io: int = 1 << 20, start: int = 0
) -> dict[str, Any]:
    """The elevator rule for many requests: sorted by numpy, swept over lists, looked up again."""
    offsets, lengths = offsets.astype(np.int64), lengths.astype(np.int64)
    real = np.flatnonzero(lengths)
    real = real[np.lexsort((real, -lengths[real], offsets[real]))]
    begins, ends = offsets[real], offsets[real] + lengths[real]
    out_a: list[int] = []
    out_b: list[int] = []
    a = b = -1
    for s, e in zip(begins.tolist(), ends.tolist(), strict=True):
        if b >= 0 and s <= b + gap:
            if e <= b:
                continue
            if e - a <= max_io:
                b = out_b[-1] = e
                continue
            s = max(s, b)
        a, b = s, e
        out_a.append(a)
        out_b.append(b)
    ext_a, ext_b = np.array(out_a, dtype=np.int64), np.array(out_b, dtype=np.int64)
    lo = np.searchsorted(ext_a, begins, side="right") - 1
    hi = np.searchsorted(ext_a, ends - 1, side="right") - 1
    m = len(out_a)
    shared = np.zeros(m + 1, dtype=np.int64)  # shared[k] > 0: a request crosses from k-1 to k
    np.add.at(shared, lo + 1, 1)
    np.add.at(shared, hi + 1, -1)
    able = np.flatnonzero((np.cumsum(shared)[:m] == 0) & (ext_a >= start))
    pivot = int(able[0]) if len(able) else 0
    first, count = np.zeros(len(offsets), np.int64), np.zeros(len(offsets), np.int64)
    first[real] = (lo - pivot) % max(m, 1)
    count[real] = hi - lo + 1
    reach = np.maximum.accumulate(ends) if len(ends) else ends
    fresh = ends - np.maximum(begins, np.concatenate(([-1], reach[:-1]))) if len(ends) else ends
    same = (np.diff(begins) == 0) & (np.diff(ends) == 0)
    return {
        "offsets": np.roll(ext_a, -pivot),
        "lengths": np.roll(ext_b - ext_a, -pivot),
        "first": first,
        "count": count,
        "bytes_asked": int(lengths.sum()),
        "bytes_unique": int(np.maximum(fresh, 0).sum()),
        "bytes_moved": int((ext_b - ext_a).sum()),
        "duplicates": int(same.sum()),
    }


# ----------------------------------------------------------------------------------------- files


class FileOracle:
    """A file of bytes in memory; every request runs whole, alone and at once."""

    def __init__(self, data: bytes = b"", bad: Sequence[tuple[int, int]] = ()) -> None:
        self.data = bytearray(data)
        self.bad = list(bad)

    def _touch(self, n: int, offset: int) -> None:
        if n and any(a < offset + n and offset < b for a, b in self.bad):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def pread(self, n: int, offset: int) -> bytes:
        self._touch(n, offset)
        return bytes(self.data[offset : offset + n])

    def pwrite(self, data: bytes, offset: int) -> int:
        self._touch(len(data), offset)
        if data:
            self.data.extend(bytes(max(0, offset - len(self.data))))
            self.data[offset : offset + len(data)] = data
        return len(data)

    def truncate(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))

    def read_ranges(
        self, offsets: Sequence[int], lengths: Sequence[int]
    ) -> tuple[list[bytes], dict[int, int]]:
        """Each request's bytes (b"" where it failed), and the errno of each that failed."""
        pieces, errnos = [], {}
        for i, (offset, n) in enumerate(zip(offsets, lengths, strict=True)):
            try:
                pieces.append(self.pread(n, offset))
            except OSError as error:
                pieces.append(b"")
                errnos[i] = error.errno
        return pieces, errnos

    def write_ranges(self, offsets: Sequence[int], rows: Sequence[bytes]) -> dict[int, int]:
        errnos = {}
        for i, (offset, row) in enumerate(zip(offsets, rows, strict=True)):
            try:
                self.pwrite(row, offset)
            except OSError as error:
                errnos[i] = error.errno
        return errnos


# ----------------------------------------------------------------------------------- comparisons


def _same_range_error(
    error: Any, errnos: dict[int, int], offsets: Sequence[int], lengths: Sequence[int]
) -> None:
    assert dict(error.errnos) == errnos
    index = min(errnos)
    assert (error.index, error.errno) == (index, errnos[index])
    assert (error.offset, error.length) == (offsets[index], lengths[index])


def placed(n: int, shift: int) -> np.ndarray:
    """n bytes of memory that begin `shift` bytes past a page: what goes straight depends on it."""
    memory = np.full(n + shift + 4096, SENTINEL, dtype=np.uint8)
    begin = -memory.ctypes.data % 4096 + shift
    return memory[begin : begin + n]


def same_reads(
    f: Any,
    oracle: FileOracle,
    offsets: Sequence[int],
    lengths: Sequence[int],
    errnos: dict[int, int] | None = None,
    shift: int = 0,
) -> None:
    """read_ranges on both. `errnos` replaces the oracle's own list of failures, if given."""
    import iolift

    pieces, expected = oracle.read_ranges(offsets, lengths)
    expected = expected if errnos is None else errnos
    out = placed(sum(lengths), shift)
    caught: Any = None
    try:
        assert f.read_ranges(offsets, lengths, out=out) is out
    except (iolift.ShortReadError, iolift.RangeError) as error:
        caught = error
    short = [i for i, p in enumerate(pieces) if i not in expected and len(p) < lengths[i]]
    if expected:
        assert isinstance(caught, iolift.RangeError), f"{caught!r}, wanted errnos {expected}"
        _same_range_error(caught, expected, offsets, lengths)
    elif short:
        assert isinstance(caught, iolift.ShortReadError), f"{caught!r}, wanted short {short}"
        i = short[0]
        got = (caught.index, caught.offset, caught.length, caught.got)
        assert got == (i, offsets[i], lengths[i], len(pieces[i]))
    elif caught is not None:
        raise caught
    at = 0
    for i, (piece, n) in enumerate(zip(pieces, lengths, strict=True)):
        if i not in expected:
            row = out[at : at + n].tobytes()
            assert row == piece + bytes([SENTINEL]) * (n - len(piece)), f"request {i}"
        at += n


def same_writes(
    f: Any,
    oracle: FileOracle,
    offsets: Sequence[int],
    rows: Sequence[bytes],
    errnos: dict[int, int] | None = None,
    shift: int = 0,
) -> None:
    """write_ranges on both; `errnos`, if given: those requests fail in the oracle instead."""
    import iolift

    lengths = [len(row) for row in rows]
    if errnos is None:
        errnos = oracle.write_ranges(offsets, rows)
    else:
        for i, (offset, row) in enumerate(zip(offsets, rows, strict=True)):
            if i not in errnos:
                oracle.pwrite(row, offset)
    data = placed(sum(lengths), shift)
    data[:] = np.frombuffer(b"".join(rows), dtype=np.uint8)
    try:
        assert f.write_ranges(offsets, data, lengths=lengths) == sum(lengths)
    except iolift.RangeError as error:
        if not errnos:
            raise
        _same_range_error(error, errnos, offsets, lengths)
    else:
        assert not errnos, f"wanted errnos {errnos}"
