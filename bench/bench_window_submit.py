"""What does one thread pay to submit a request it doesn't wait for?

10k requests in a row, their tickets kept, then all of them waited for outside the clock: what fits
into the bounds, so that no submit waits for room. Reads are of 4 KiB blocks in the page cache,
writes of one 4 KiB `bytes`. The peer hands the same calls to an executor.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from _measure import Ask, Question, Side, benchmark_side
from _work import MIB

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable

    from _work import Work

SIZE, BLOCK, REQUESTS = 256 * MIB, 4096, 10_000
AT_MOST_S = 400e-9


def timed(submit: Callable[[int], object], offsets: list[int]) -> Callable[[], float]:
    """A run that returns the seconds of the submits alone."""

    def run() -> float:
        tickets = []
        keep = tickets.append
        began = time.perf_counter()
        for offset in offsets:
            keep(submit(offset))
        seconds = time.perf_counter() - began
        for ticket in tickets:
            ticket.result()
        return seconds

    return run


def build(work: Work) -> dict[str, Side]:
    """The same offsets for all, warm."""
    path = work.file(SIZE)
    work.warm(path)
    rng = np.random.default_rng(53)
    offsets = (rng.integers(0, SIZE // BLOCK, REQUESTS) * BLOCK).tolist()
    data = rng.bytes(BLOCK)
    f = iolift.open(path, "r+")
    fd, pool = f.fileno(), ThreadPoolExecutor(8)
    runs = {
        "submit_pread": timed(lambda offset: f.submit_pread(BLOCK, offset), offsets),
        "submit_pwrite": timed(lambda offset: f.submit_pwrite(data, offset), offsets),
        "executor.submit(os.pread)": timed(
            lambda offset: pool.submit(os.pread, fd, BLOCK, offset), offsets
        ),
        "executor.submit(os.pwrite)": timed(
            lambda offset: pool.submit(os.pwrite, fd, data, offset), offsets
        ),
    }
    return {name: Side(REQUESTS, run) for name, run in runs.items()}


QUESTIONS = [
    Question(
        "window_submit",
        "submit, one thread, nobody waits",
        build,
        (
            Ask("executor.submit(os.pread)", within=AT_MOST_S, us="submit_pread"),
            Ask("executor.submit(os.pwrite)", within=AT_MOST_S, us="submit_pwrite"),
        ),
    )
]


def test_window_submit(benchmark, side) -> None:
    """One side of the question."""
    benchmark_side(benchmark, side)
