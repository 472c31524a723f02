"""How does the cost of a request grow with the number of those already held?

Writes of 64 bytes into random slots of a 64 MiB file, with bounds wide enough and a window that
does not end by itself: 100, 10k or 1M are held. "submit" is one more beside them (a tenth more of
them, timed alone, after a check that the others are held); "submit and flush" is all of them, from
the first submit to the last byte in the file. Reads are 64 bytes each, cached, submitted together
and then waited for; an idle device takes the first at once.
"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from _measure import Ask, Question, Side, benchmark_side
from _work import MIB

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable

    from _work import Work

SIZE, ROW = 64 * MIB, 64
HELD = {"100 held": 100, "10k held": 10_000, "1M held": 1_000_000}
MOST = 1_200_000
WIDE = {"max_held_requests": 2 * MOST, "max_held_bytes": 1024 * MIB}


def draw() -> list[int]:
    """Places of MOST rows, each of the file's slots at most twice."""
    rng = np.random.default_rng(59)
    slots = np.concatenate([rng.permutation(SIZE // ROW), rng.permutation(SIZE // ROW)])
    return (slots[:MOST] * ROW).tolist()


def one_more(f: Any, offsets: list[int], held: int) -> Callable[[], float]:
    """A run: seconds of held / 10 submits beside `held` requests."""
    data, more = bytes(range(ROW)), held // 10

    def run() -> float:
        for offset in offsets[:held]:
            f.submit_pwrite(data, offset)
        assert f.coalescer.stats().held_requests >= 0.99 * held
        began = time.perf_counter()
        for offset in offsets[held : held + more]:
            f.submit_pwrite(data, offset)
        seconds = time.perf_counter() - began
        f.flush()
        return seconds

    return run


def write_all(f: Any, offsets: list[int], held: int) -> Callable[[], None]:
    """A run: `held` submits and a flush."""
    data = bytes(range(ROW))

    def run() -> None:
        for offset in offsets[:held]:
            f.submit_pwrite(data, offset)
        f.flush()

    return run


def read_all(f: Any, offsets: list[int], held: int) -> Callable[[], None]:
    """A run: `held` submits and all their results."""

    def run() -> None:
        tickets = [f.submit_pread(ROW, offset) for offset in offsets[:held]]
        for ticket in tickets:
            ticket.result()

    return run


def build(
    work: Work, make: Callable[[Any, list[int], int], Callable[[], Any]], own_clock: bool
) -> dict[str, Side]:
    """A side per number of requests held; the small ones are repeated."""
    path = work.file(SIZE, "rows")
    work.warm(path)
    offsets = draw()
    f = iolift.open(path, "r+", write_window_ms=60_000, **WIDE)
    sides = {}
    for name, held in HELD.items():
        run = make(f, offsets, held)
        repeats = max(1, 10_000 // held)
        if own_clock:
            sides[name] = Side(repeats * (held // 10), partial(total, run, repeats))
        else:
            sides[name] = Side(held, run, loops=repeats)
    return sides


def total(run: Callable[[], float], repeats: int) -> float:
    """The sum of the run's own seconds."""
    return sum(run() for _ in range(repeats))


QUESTIONS = [
    Question(
        f"window_growth_{key}",
        f"growth: {what}",
        partial(build, make=make, own_clock=own_clock),
        (Ask("100 held", us="10k held"), Ask("100 held", us="1M held")),
        slow=True,
        most_rounds=3,
    )
    for key, what, make, own_clock in (
        ("submit", "submit beside those held", one_more, True),
        ("write", "submit and flush a write", write_all, False),
        ("read", "submit and await a read", read_all, False),
    )
]


def test_window_growth(benchmark, side) -> None:
    """One side of one question."""
    benchmark_side(benchmark, side, rounds=3)
