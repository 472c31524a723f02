"""Goal: a second opinion that is too simple to be wrong.

1. `naive_plan`: the planning rule in plain Python integers, one request after the other, quadratic.
2. `fast_plan`: the elevator rule again, by numpy's lexsort and searchsorted, for many requests.
3. `FileOracle`: a file that is a bytearray, on which requests run one by one in index order, and
   on which any request that touches a bad sector fails, having done nothing.
4. `same_reads`, `same_writes`: run a bulk call on a file and on its oracle, and compare every
   request's own outcome (bytes, short, errno), the exception and its attributes.
5. `OpsOracle`: the same file for requests that are held: they are noted as they are submitted,
   and executed one by one when it is known which of them were cancelled and which have failed.

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


# ------------------------------------------------------------------------------ held requests

READ, ROW, WRITE, TRUNCATE, SIZE, CONTENT = range(6)
PENDING, MADE, UNSURE, VOID = range(4)


class Noted:
    """A request that was submitted, and what became of it.

    offset, payload: READ and ROW: the length; WRITE: the bytes; TRUNCATE: the size.
    answer: READ: bytes; ROW: the whole row, with SENTINEL where the file had nothing; SIZE: the
        size; CONTENT: the whole file, as another descriptor reads it.
    fate: MADE: it was executed, so its answer is the oracle's; UNSURE: it failed, so each of its
        bytes may be there or not; VOID: as if it had never been made (cancelled, or a read that
        nobody asked about any more).
    ticket, buffer: for whoever submitted it.
    """

    __slots__ = ("answer", "buffer", "fate", "kind", "offset", "payload", "ticket")

    def __init__(
        self,
        kind: int,
        offset: int,
        payload: Any,
        answer: Any = None,
        fate: int = MADE,
        ticket: Any = None,
        buffer: Any = None,
    ) -> None:
        self.kind, self.offset, self.payload = kind, offset, payload
        self.answer, self.fate, self.ticket, self.buffer = answer, fate, ticket, buffer

    @property
    def length(self) -> int:
        return len(self.payload) if self.kind == WRITE else int(self.payload or 0)

    def __repr__(self) -> str:
        kind = ("read", "row", "write", "truncate", "size", "content")[self.kind]
        fate = ("pending", "made", "unsure", "void")[self.fate]
        return f"<{kind} [{self.offset}, {self.offset + self.length}) {fate}>"


class OpsOracle:
    """One file; requests are executed in the order in which they were noted.

    data: the bytes that are certain, high: the largest size that is possible, unsure: what failed
    writes may have brought, as (offset, bytes), until other bytes are written there.
    """

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.high = len(self.data)
        self.unsure: list[tuple[int, bytes]] = []
        self.log: list[Noted] = []

    def settle(self) -> None:
        """Execute all that was noted; AssertionError at the first answer that is not the file's."""
        log, self.log = self.log, []
        for index, noted in enumerate(log):
            kind, fate = noted.kind, noted.fate
            if fate == VOID:
                continue
            assert fate != PENDING, f"{index}: nobody said what became of {noted}"
            if kind == WRITE:
                self._write(noted.offset, noted.payload, fate == MADE)
            elif kind == TRUNCATE:
                self._truncate(noted.payload)
            elif fate == MADE and not self._agrees(noted):
                raise AssertionError(self._story(log, index))

    def adopt(self, found: bytes) -> None:
        """The file as it is: nothing is unsure any more."""
        self.data[:] = found
        self.high = len(found)
        self.unsure = []

    def _write(self, offset: int, data: bytes, sure: bool) -> None:
        if not data:
            return
        end = offset + len(data)
        self.high = max(self.high, end)
        if not sure:
            self.unsure.append((offset, data))
            return
        if len(self.data) < offset:
            self.data.extend(bytes(offset - len(self.data)))
        self.data[offset:end] = data
        if self.unsure:
            self._forget(offset, end)

    def _truncate(self, size: int) -> None:
        del self.data[size:]
        self.data.extend(bytes(size - len(self.data)))
        self._forget(size, self.high)
        self.high = size

    def _forget(self, begin: int, end: int) -> None:
        kept = []
        for offset, data in self.unsure:
            if offset + len(data) <= begin or end <= offset:
                kept.append((offset, data))
                continue
            if offset < begin:
                kept.append((offset, data[: begin - offset]))
            if end < offset + len(data):
                kept.append((end, data[end - offset :]))
        self.unsure = kept

    def _agrees(self, noted: Noted) -> bool:
        kind, answer, offset = noted.kind, noted.answer, noted.offset
        if kind == READ:
            got, n = answer, noted.payload
        elif kind == SIZE:
            return len(self.data) <= answer <= self.high
        elif kind == CONTENT:
            got, n, offset = answer, max(self.high, len(answer)), 0
        else:
            # What is in a row past the end of the file was there before.
            n = noted.payload
            there = min(max(len(self.data) - offset, 0), n)
            possible = min(max(self.high - offset, 0), n)
            if answer.count(SENTINEL, possible) < n - possible:
                return False
            got = answer[:there]
            n = there
        if got == self.data[offset : offset + n]:
            return True
        return bool(self.unsure) and self._possible(got, offset, n)

    def _possible(self, got: bytes, offset: int, n: int) -> bool:
        least, most = (min(max(size - offset, 0), n) for size in (len(self.data), self.high))
        if not least <= len(got) <= most:
            return False
        actual = np.frombuffer(got, np.uint8)
        certain = np.zeros(len(got), np.uint8)
        certain[:least] = np.frombuffer(self.data[offset : offset + least], np.uint8)
        right = certain == actual
        for begin, data in self.unsure:
            first, last = max(begin, offset), min(begin + len(data), offset + len(got))
            if first < last:
                brought = np.frombuffer(data, np.uint8)[first - begin : last - begin]
                here = slice(first - offset, last - offset)
                right[here] |= brought == actual[here]
        return bool(right.all())

    def _story(self, log: list[Noted], index: int) -> str:
        """What is wrong with an answer, where, and who wrote there before."""
        noted = log[index]
        if noted.kind == SIZE:
            return f"{index}: size {noted.answer}, but it is {len(self.data)} to {self.high}"
        begin = 0 if noted.kind == CONTENT else noted.offset
        n = len(noted.answer) if noted.kind == CONTENT else noted.length
        wanted, got = bytes(self.data[begin : begin + n]), bytes(noted.answer)
        pairs = enumerate(zip(wanted, got, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(wanted), len(got)))
        lines = [
            f"{index}: {noted}: {len(got)} bytes, wanted {len(wanted)}; wrong from byte "
            f"{begin + at}: {got[at : at + 16].hex(' ')}, wanted {wanted[at : at + 16].hex(' ')}"
        ]
        for k, other in enumerate(log):
            touches = other.offset <= begin + at < other.offset + other.length
            if other.kind == WRITE and (touches or got[at : at + 8] in other.payload):
                when = "before" if k < index else "after"
                brings = got[at : at + 8] in other.payload and len(got) >= at + 8
                lines.append(f"  {when}, {k}: {other}{', which has these bytes' * brings}")
            elif other.kind == TRUNCATE:
                lines.append(f"  {k}: {other}")
        return "\n".join(lines)


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
