"""How a figure is made: sides that do the same work, run in turns, and the ratio of each pair.

1. A `Side` does one thing and is timed doing it: `before()` is outside the clock; what is made
   once is made by the question's builder. A side that has its own clock (fio) returns its
   seconds, a float, instead.
2. Sides are compared in turns: peer, us, peer, us, ... A machine that slows down slows both;
   the figure is the median of the rounds' ratios, never a ratio of two far-apart medians. The
   first turn of each is not counted.
3. Nothing here asserts a time. A miss is a row that says so. Where a time itself was asked for
   (`within`), the peer still stands beside it.
4. A `Count` is a figure that no clock makes (reads per block, wake-ups): the median of its rounds.
"""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from _work import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _work import Work


def nothing() -> None:
    """The `before` of a side that needs none."""


@dataclass
class Side:
    """One way of doing the work: `run` moves `n` requests."""

    n: int
    run: Callable[[], object]
    before: Callable[[], object] = nothing
    loops: int = 1  # runs per measurement, where one alone is too short for the clock

    def per_request(self) -> float:
        """Seconds per request of one measurement."""
        self.before()
        began = time.perf_counter()
        for _ in range(self.loops):
            result = self.run()
        seconds = time.perf_counter() - began
        return result / self.n if isinstance(result, float) else seconds / (self.n * self.loops)


@dataclass
class Row:
    """One line of the table; `good` is None where nothing was asked."""

    what: str
    asked: str
    measured: str
    peer: str
    good: bool | None = None

    def cells(self) -> list[str]:
        """As the table shows it."""
        miss = " **(missed)**" if self.good is False else ""
        return [self.what, self.asked, self.measured + miss, self.peer]


@dataclass
class Ask:
    """`us` against `peer`: at most that much of its time, at least so many times its speed."""

    peer: str
    at_most: float | None = None
    at_least: float | None = None
    within: float | None = None  # seconds per request, whatever the peer takes
    us: str = "iolift"
    note: str = ""

    def asked(self) -> str:
        """The target in words."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}x the time of {self.peer}"
        if self.at_least is not None:
            return f">= {self.at_least:g}x the speed of {self.peer}"
        if self.within is not None:
            return f"<= {show(self.within)}"
        return "-"

    def row(self, what: str, times: Sequence[tuple[float, float]]) -> Row:
        """The line for the rounds' (peer, us) seconds per request."""
        ratio = statistics.median(us / peer for peer, us in times)
        peer, us = (statistics.median(side) for side in zip(*times, strict=True))
        if self.at_most is not None:
            measured, good = f"{ratio:.2f}x the time", ratio <= self.at_most
        else:
            measured = f"{1 / ratio:.2f}x the speed"
            good = None if self.at_least is None else 1 / ratio >= self.at_least
        if self.within is not None:
            good = us <= self.within
        label = f"{what}{'' if self.us == 'iolift' else f' ({self.us})'}"
        return Row(
            label,
            self.asked(),
            f"{measured}: {show(us)}",
            f"{self.peer}{self.note}: {show(peer)}",
            good,
        )


@dataclass
class Question:
    """A question and its sides; `build(work)` makes them and checks that their bytes agree."""

    key: str
    what: str
    build: Callable[[Work], dict[str, Side]]
    asks: tuple[Ask, ...]
    slow: bool = False  # left out by --quick
    most_rounds: int = 100  # where a turn takes seconds and swings little
    _sides: dict[str, Side] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Every side that an ask mentions, in that order."""
        return list(dict.fromkeys(name for ask in self.asks for name in (ask.us, ask.peer)))

    def sides(self, work: Work) -> dict[str, Side]:
        """The sides, built at the first call."""
        if not self._sides:
            self._sides = self.build(work)
        return self._sides

    def close(self) -> None:
        """Lets go of buffers and files."""
        self._sides = {}
        gc.collect()

    def rows(self, work: Work, rounds: int) -> list[Row]:
        """Measures each ask in turns: its lines of the table."""
        try:
            sides = self.sides(work)
            return [self._row(ask, sides, rounds) for ask in self.asks]
        except UnavailableError as why:
            return [Row(self.what, self.asks[0].asked(), "not measured", str(why))]
        finally:
            self.close()

    def _row(self, ask: Ask, sides: dict[str, Side], rounds: int) -> Row:
        for name in (ask.us, ask.peer):
            if name not in sides:
                return Row(self.what, ask.asked(), "not measured", f"{name}: not on this machine")
        pair = sides[ask.peer], sides[ask.us]
        for side in pair:
            side.per_request()
        gc.collect()
        gc.disable()
        try:
            times = [
                (pair[0].per_request(), pair[1].per_request())
                for _ in range(min(rounds, self.most_rounds))
            ]
        finally:
            gc.enable()
        return ask.row(self.what, times)


@dataclass
class Tally:
    """What a `Count` counted: the number, how the table shows it, and the peer's."""

    value: float
    shown: str
    peer: str


@dataclass
class Count:
    """A question whose answer is a number of things; `at_most` is None where none was asked."""

    key: str
    what: str
    count: Callable[[Work], Tally]
    asked: str = "-"
    at_most: float | None = None
    slow: bool = False
    most_rounds: int = 3

    def rows(self, work: Work, rounds: int) -> list[Row]:
        """The line of the round with the median number."""
        try:
            tallies = [self.count(work) for _ in range(min(rounds, self.most_rounds))]
        except UnavailableError as why:
            return [Row(self.what, self.asked, "not measured", str(why))]
        tally = sorted(tallies, key=lambda tally: tally.value)[len(tallies) // 2]
        good = None if self.at_most is None else tally.value <= self.at_most
        return [Row(self.what, self.asked, tally.shown, tally.peer, good)]


def show(seconds: float) -> str:
    """A time per request with a readable unit."""
    return f"{seconds * 1e9:.1f} ns" if seconds < 2e-7 else f"{seconds * 1e6:.2f} us"


def benchmark_side(benchmark: Any, side: Side, rounds: int = 5) -> None:
    """One side under pytest-benchmark, with the same `before` outside its clock."""
    own: list[float] = []

    def run() -> None:
        for _ in range(side.loops):
            result = side.run()
            if isinstance(result, float):
                own.append(result)

    def before() -> None:
        side.before()

    benchmark.extra_info["requests"] = side.n * side.loops
    benchmark.pedantic(run, setup=before, rounds=rounds, warmup_rounds=1)
    if own:
        benchmark.extra_info["own_seconds"] = own
    elif benchmark.stats is not None:
        median = benchmark.stats.stats.median
        benchmark.extra_info["ns_per_request"] = median / (side.n * side.loops) * 1e9


def benchmark_count(benchmark: Any, count: Count, work: Work) -> None:
    """A count under pytest-benchmark: timed as a whole (it means little), its number beside."""
    tally = benchmark.pedantic(count.count, args=(work,), rounds=1)
    benchmark.extra_info.update(value=tally.value, shown=tally.shown, peer=tally.peer)
