"""Does gap="auto" find what the best fixed gap is worth, whatever is read and from where?

Four workloads, each 4096 reads of 4 KiB in batches of 256, other ones in every round: from the page
cache, from the disk through it, and with O_DIRECT. Every fixed gap of GAPS and "auto" take turns,
and "auto" is compared with the fixed gap whose median is the best of all: a peer that nobody can
know beforehand. `max_waste` is 8 for all, so that it is the gap that decides. "auto" has what it
learnt in the turns before, as it would in a program that goes on.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from _measure import Ask, Question, Row, Side, benchmark_side, show
from _work import MIB, page_aligned

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from _work import Work

SIZE, BLOCK = 1024 * MIB, 4096
BLOCKS = SIZE // BLOCK
BATCH, BATCHES = 256, 16
GAPS = {"0": 0, "4K": 4096, "16K": 16384, "64K": 65536, "256K": 262144, "1M": MIB}
WITHIN = 1.1


def dense(rng: np.random.Generator) -> Any:
    """A quarter of the blocks of 4 MiB: holes of three blocks, on average."""
    first = rng.integers(0, BLOCKS - 1024)
    return first + rng.choice(1024, BATCH, replace=False)


def sparse(rng: np.random.Generator) -> Any:
    """Blocks of the whole file: holes of 4 MiB, on average."""
    return rng.choice(BLOCKS, BATCH, replace=False)


def clustered(rng: np.random.Generator) -> Any:
    """Sixteen places with sixteen blocks each, of the 64 that lie there."""
    places = rng.choice(BLOCKS // 64, 16, replace=False) * 64
    return np.concatenate([place + rng.choice(64, 16, replace=False) for place in places])


def strided(rng: np.random.Generator) -> Any:
    """Every eighth block: holes of 28 KiB."""
    return rng.integers(0, BLOCKS - 8 * BATCH) + 8 * np.arange(BATCH)


class Reader:
    """BATCHES batches of this round; `again` is a side's `before`."""

    def __init__(self, work: Work, path: Path, choose: Any, cold: bool) -> None:
        self._work, self._path, self._choose, self._cold = work, path, choose, cold
        self._rng = np.random.default_rng(5)
        self._rows = page_aligned(BATCH, BLOCK)
        self._batches: list[Any] = []

    def again(self) -> None:
        """Other blocks, none of them cached where it is to be cold."""
        self._batches = [self._choose(self._rng).astype(np.int64) * BLOCK for _ in range(BATCHES)]
        if self._cold:
            self._work.drop(self._path)

    def side(self, **options: Any) -> Side:
        """One gap."""
        f = iolift.open(self._path, max_waste=8, **options)

        def run() -> None:
            for offsets in self._batches:
                f.read_ranges(offsets, BLOCK, out=self._rows)

        return Side(BATCH * BATCHES, run, self.again)


def build(choose: Callable[[np.random.Generator], Any], cold: bool, direct: bool) -> Any:
    """The sides, by gap."""

    def sides(work: Work) -> dict[str, Side]:
        path = work.file(SIZE)
        if not cold:
            work.warm(path)
        reader = Reader(work, path, choose, cold and not direct)
        made = {name: reader.side(gap=gap, direct=direct) for name, gap in GAPS.items()}
        return {**made, "auto": reader.side(gap="auto", direct=direct)}

    return sides


@dataclass
class BestOf(Question):
    """A question whose peer is the best of all other sides."""

    def rows(self, work: Work, rounds: int) -> list[Row]:
        """One line: "auto" beside the best, with all the others' ratios to that."""
        sides = self.sides(work)
        times: dict[str, list[float]] = {name: [] for name in sides}
        try:
            for turn in range(rounds + 1):
                for name, side in sides.items():
                    seconds = side.per_request()
                    if turn:
                        times[name].append(seconds)
        finally:
            self.close()
        medians = {name: statistics.median(values) for name, values in times.items()}
        best = min(GAPS, key=lambda name: medians[name])
        ratio = medians["auto"] / medians[best]
        others = ", ".join(f"{name} {medians[name] / medians[best]:.2f}x" for name in GAPS)
        return [
            Row(
                self.what,
                f"<= {WITHIN:g}x the time of the best fixed gap",
                f"{ratio:.2f}x the time: {show(medians['auto'])}",
                f"gap {best}: {show(medians[best])} ({others})",
                ratio <= WITHIN,
            )
        ]


WORKLOADS = {"dense": dense, "sparse": sparse, "clustered": clustered, "strided": strided}
PLACES = {"warm": (False, False), "cold": (True, False), "direct": (True, True)}

QUESTIONS = [
    BestOf(
        f"gap_{place}_{name}",
        f'gap="auto", {place}, {name}',
        build(choose, *how),
        tuple(Ask(gap, us="auto") for gap in GAPS),
    )
    for place, how in PLACES.items()
    for name, choose in WORKLOADS.items()
]


def test_gap(benchmark, side) -> None:
    """One side of one question."""
    benchmark_side(benchmark, side)
