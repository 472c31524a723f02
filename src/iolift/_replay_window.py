"""The windows of a replay, and who gets bytes from whom in one. Pure: no file, no clock.

1. A window is up to `size` requests and WINDOW_BYTES; a sync ends it. A request longer than
   WINDOW_BYTES has a window of its own.
2. `overlaps` finds every (read, older write) pair whose bytes the read shows, with a few numpy
   calls per window; a Python loop runs over nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .traces import READ, SYNC, WRITE, Trace

if TYPE_CHECKING:
    from collections.abc import Iterator

MIB = 1 << 20
WINDOW_BYTES = 256 * MIB
PAIRS_AT_ONCE = 1 << 21

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Window:
    """Requests first .. first + len(kind) - 1 (counted without syncs), and if a sync ends them."""

    first: int
    index: Ints
    kind: NDArray[np.uint8]
    offset: Ints
    length: Ints
    sync: bool

    def of(self, kind: int) -> Ints:
        """Positions in the window of its reads or writes."""
        return np.flatnonzero(self.kind == kind)


def windows(trace: Trace, offset: Ints, size: int) -> Iterator[Window]:
    """The trace in windows of up to `size` requests and WINDOW_BYTES."""
    ends = np.cumsum(trace.length)
    syncs = np.append(np.flatnonzero(trace.kind == SYNC), len(trace))
    first = start = s = 0
    while start < len(trace):
        stop = min(start + size, int(syncs[s]))
        if stop > start:
            before = int(ends[start - 1]) if start else 0
            fit = int(np.searchsorted(ends, before + WINDOW_BYTES, "right"))
            stop = min(stop, max(fit, start + 1))
        sync = bool(stop == syncs[s] and stop < len(trace))
        part = slice(start, stop)
        index = np.arange(start, stop)
        yield Window(first, index, trace.kind[part], offset[part], trace.length[part], sync)
        first += stop - start
        start = stop + sync
        s += sync


def overlaps(window: Window) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """(reads, writes, covered): reads[k] gets bytes from the older writes[k], writes ascending
    within a read; covered[r] if read r gets all of its bytes so. Reads and writes are counted
    among the reads and among the writes of the window. Writes hidden entirely are left out.
    """
    reads, writes = window.of(READ), window.of(WRITE)
    covered = np.zeros(len(reads), bool)
    none = np.zeros(0, np.int64)
    if not len(reads) or not len(writes) or reads[-1] < writes[0]:
        return none, none, covered
    begin, end = window.offset[reads], window.offset[reads] + window.length[reads]
    order = np.argsort(window.offset[writes], kind="stable")
    w_begin = window.offset[writes]
    w_end = w_begin + window.length[writes]
    # In order of their starts, the writes that can meet [begin, end) are those from the first whose
    # end, or the end of one before it, is beyond begin, to the last that starts before end.
    low = np.searchsorted(np.maximum.accumulate(w_end[order]), begin, "right")
    high = np.searchsorted(w_begin[order], end, "left")
    count = np.where(end > begin, np.maximum(high - low, 0), 0)
    some = np.flatnonzero(count)
    if not len(some):
        return none, none, covered
    found: list[tuple[Ints, Ints]] = []
    steps = np.flatnonzero(np.diff(np.cumsum(count[some]) // PAIRS_AT_ONCE)) + 1
    for part in np.split(some, steps):
        n = count[part]
        r = np.repeat(part, n)
        w = order[np.arange(len(r)) + np.repeat(low[part] - np.cumsum(n) + n, n)]
        real = (writes[w] < reads[r]) & (w_begin[w] < end[r]) & (w_end[w] > begin[r])
        real &= w_end[w] > w_begin[w]
        r, w = r[real], w[real]
        whole = (w_begin[w] <= begin[r]) & (w_end[w] >= end[r])
        last = np.full(len(reads), -1)
        np.maximum.at(last, r[whole], w[whole])
        seen = w >= last[r]
        found.append((r[seen], w[seen]))
    r, w = (np.concatenate(columns) for columns in zip(*found, strict=True))
    by_read = np.lexsort((w, r))
    r, w = r[by_read], w[by_read]
    starts = np.maximum(w_begin[w], begin[r]) - begin[r]
    stops = np.minimum(w_end[w], end[r]) - begin[r]
    _mark_covered(covered, r, starts, stops, end - begin)
    return r, w, covered


def _mark_covered(
    covered: NDArray[np.bool_], r: Ints, starts: Ints, stops: Ints, length: Ints
) -> None:
    """Set covered[i] where the pieces [starts, stops) with r == i leave out nothing of it."""
    if not len(r):
        return
    order = np.lexsort((starts, r))
    r, starts, stops = r[order], starts[order], stops[order]
    # One running maximum for all reads: no piece is longer than 2**30, so read r's pieces lie
    # above all of read r - 1's after a shift by r * 2**31.
    base = r << 31
    reach = np.maximum.accumulate(base + stops)
    before = np.concatenate(([-1], reach[:-1]))
    open_ = base + starts > np.maximum(before, base)
    covered[r] = True
    covered[r[open_]] = False
    final = np.append(r[1:] != r[:-1], True)
    short = final & (reach - base < length[r])
    covered[r[short]] = False
