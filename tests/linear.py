"""Goal: say whether reads and writes of many threads can be explained by some order of them.

A file is an array of cells of eight bytes. Each write brings a value that no other write brings,
so a read says which write it saw. `History` takes notes, by one counter that all threads share;
`unlinearizable` and `stale` name the first cell whose values no order explains.

Nothing here looks at iolift's code.
"""

from __future__ import annotations

import numpy as np

CELL = 8


class History:
    """Reads and writes of cells by many threads: who, when (by one common counter), what.

    A write brings one value, that no other write brings, to a run of cells; 0 is what all begin
    with. An operation takes effect at some moment after `begin` and before `end`.
    """

    def __init__(self) -> None:
        self.cells: list[np.ndarray] = []
        self.values: list[np.ndarray] = []
        self.spans: list[tuple[int, int, int, bool]] = []

    def note(self, first: int, values: np.ndarray, begin: int, end: int, write: bool) -> None:
        self.cells.append(np.arange(first, first + len(values)))
        self.values.append(values)
        self.spans.append((len(values), begin, end, write))

    def table(self, cells: int) -> tuple[np.ndarray, ...]:
        """cell, value, begin, end, write of each cell of each operation, and of the beginning."""
        spans = np.array([(cells, -2, -1, 1), *self.spans], np.int64)
        repeats = spans[:, 0]
        return (
            np.concatenate([np.arange(cells), *self.cells]),
            np.concatenate([np.zeros(cells, np.uint64), *self.values]),
            np.repeat(spans[:, 1], repeats),
            np.repeat(spans[:, 2], repeats),
            np.repeat(spans[:, 3], repeats).astype(bool),
        )


def unlinearizable(history: History, cells: int) -> str:
    """Why the history can't have happened one by one, cell by cell; empty if it can.

    Gibbons and Korach, "Testing shared memories" (1997): the operations of one value of one cell
    are a cluster. It lasts at least from its first end to its last begin, if these are so ordered:
    then no other cluster can be active in between, neither a part of another such one, nor the
    whole of one whose operations all overlap.
    """
    cell, value, begin, end, write = history.table(cells)
    order = np.lexsort((value, cell))
    cell, value, begin, end, write = (a[order] for a in (cell, value, begin, end, write))
    fresh = (np.diff(cell, prepend=-1) != 0) | (np.diff(value, prepend=value[:1]) != 0)
    fresh[0] = True
    first = np.flatnonzero(fresh)
    cluster = np.cumsum(fresh) - 1
    writes = np.add.reduceat(write.astype(np.int64), first)
    if (writes != 1).any():
        k = first[np.argmax(writes != 1)]
        return f"cell {cell[k]}: {value[k]:#x} was read and never written there (or twice)"
    born = np.empty(len(first), np.int64)
    born[cluster[write]] = begin[write]
    early = end < born[cluster]
    if early.any():
        k = np.argmax(early)
        return f"cell {cell[k]}: {value[k]:#x} read by {end[k]}, written after {born[cluster[k]]}"
    low, high = np.minimum.reduceat(end, first), np.maximum.reduceat(begin, first)
    where, what = cell[first], value[first]
    step = int(end.max()) + 4
    base = where * step + 2
    forward = low < high
    a, b = base[forward] + low[forward], base[forward] + high[forward]
    order = np.argsort(a)
    a, b, names = a[order], b[order], np.flatnonzero(forward)[order]

    def story(one: int, other: int) -> str:
        lines = [f"cell {where[one]}: {what[one]:#x} and {what[other]:#x} exclude each other"]
        for k in np.flatnonzero((cluster == one) | (cluster == other)):
            verb = "written" if write[k] else "read"
            lines.append(f"  {value[k]:#x} was {verb} from {begin[k]} to {end[k]}")
        return "\n".join(lines)

    crossing = a[1:] < b[:-1]
    if crossing.any():
        k = int(np.argmax(crossing))
        return story(names[k], names[k + 1])
    inner, outer = base[~forward] + high[~forward], base[~forward] + low[~forward]
    around = np.searchsorted(a, inner) - 1
    swallowed = (around >= 0) & (outer < b[around]) if len(a) else np.zeros(len(inner), bool)
    if swallowed.any():
        k = int(np.argmax(swallowed))
        return story(names[around[k]], np.flatnonzero(~forward)[k])
    return ""


def stale(history: History, looks: History, there: np.ndarray, cells: int) -> str:
    """Why what was seen in the file itself is older than it must be; empty if it is not.

    looks: reads past iolift, by another descriptor. there: for each operation of history, from
    when on its bytes have to be in the file (a write whose result was seen, or that a flush has
    covered), else -1. A look may see more than that, but never an older value than these.
    """
    if not looks.spans:
        return ""
    cell, value, begin, end, write = history.table(cells)
    since = np.concatenate([np.full(cells, -1), np.repeat(there, [s[0] for s in history.spans])])
    cell, value, begin, end, since = (a[write] for a in (cell, value, begin, end, since))
    step = int(max(end.max(), since.max(), max(s[2] for s in looks.spans))) + 4
    order = np.argsort(value, kind="stable")
    # 0 is the beginning of every cell; each other value was written by one operation.
    known = (value[order], end[order], begin[order])

    certain = np.flatnonzero(since >= 0)
    at = cell[certain] * step + since[certain]
    certain = certain[np.argsort(at)]
    at = np.sort(at)
    # The latest begin among those certain until then, of this cell: the cells are in order.
    latest = np.maximum.accumulate(cell[certain] * step + begin[certain])

    seen, what, when, until, _ = (a[cells:] for a in looks.table(cells))
    place = np.minimum(np.searchsorted(known[0], what), len(known[0]) - 1)
    torn = known[0][place] != what  # it was being written, and a look takes no lock
    finished, started = known[1][place], known[2][place]
    k = np.searchsorted(at, seen * step + when) - 1
    bound = np.where(k >= 0, latest[np.maximum(k, 0)] - seen * step, -1)
    wrong = ~torn & ((bound > finished) | (started > until))
    if wrong.any():
        k = np.argmax(wrong)
        return (
            f"cell {seen[k]}: the file had {what[k]:#x} (written {started[k]} to {finished[k]}) "
            f"from {when[k]} to {until[k]}, and a write begun at {bound[k]} must have been there"
        )
    return ""
