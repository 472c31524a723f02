"""What do 64 threads gain that each write a block and sync it, again and again?

64 threads, each 20 times `pwrite` of 4 KiB into a file already full and then `sync()`, against the
same with os.pwrite and os.fdatasync, where the kernel lets concurrent syncs share a flush of the
device. The time is one thread's write and sync, divided by the number of threads.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np
import pytest
from _crowd import threads
from _measure import Ask, Count, Question, Side, Tally, benchmark_count, benchmark_side
from _work import MIB

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable

    from _work import Work

SIZE, BLOCK, THREADS, ROUNDS = 64 * MIB, 4096, 64, 20
DATA = np.random.default_rng(37).bytes(BLOCK)


def rounds(
    write: Callable[[bytes, int], object], sync: Callable[[], object]
) -> Callable[[], float]:
    """A run: every thread writes blocks of its own, each with a sync after it."""

    def caller(i: int) -> None:
        for block in range(i * ROUNDS, (i + 1) * ROUNDS):
            write(DATA, block * BLOCK)
            sync()

    return lambda: threads(THREADS, caller)


def build(work: Work) -> dict[str, Side]:
    """Both leave the same bytes."""
    path = work.file(SIZE, "sync")
    f = iolift.open(path, "r+")
    fd = f.fileno()
    sides = {
        "os.pwrite + os.fdatasync": rounds(
            lambda data, offset: os.pwrite(fd, data, offset), lambda: os.fdatasync(fd)
        ),
        "iolift": rounds(f.pwrite, f.sync),
    }
    for run in sides.values():
        os.pwrite(fd, bytes(len(DATA) * THREADS * ROUNDS), 0)
        run()
        assert os.pread(fd, BLOCK * THREADS * ROUNDS, 0) == DATA * (THREADS * ROUNDS)
    return {name: Side(THREADS * ROUNDS, run) for name, run in sides.items()}


def count_syncs(work: Work) -> Tally:
    """fdatasyncs issued, of those asked for."""
    f = iolift.open(work.file(SIZE, "sync"), "r+")
    before = f.coalescer.stats()
    rounds(f.pwrite, f.sync)()
    after = f.coalescer.stats()
    f.close()
    asked = after.syncs_asked - before.syncs_asked
    issued = after.syncs_issued - before.syncs_issued
    assert asked == THREADS * ROUNDS
    shown = f"1/{asked / max(1, issued):.1f}: {issued} for {asked}"
    return Tally(issued / asked, shown, f"os.fdatasync: {asked}")


QUESTIONS = [
    Question(
        "window_sync_threads",
        "64 threads, each pwrite 4 KiB + sync(), 20 rounds",
        build,
        (Ask("os.pwrite + os.fdatasync", at_least=1.5),),
    ),
    Count(
        "window_sync_issued",
        "the same: fdatasyncs issued of those asked",
        count_syncs,
        "<= 1/8",
        1 / 8,
    ),
]


def test_window_sync_threads(benchmark, side) -> None:
    """One side of the question."""
    benchmark_side(benchmark, side)


@pytest.mark.parametrize("question", QUESTIONS[1:], ids=lambda q: q.key)
def test_window_sync_issued(benchmark, work, question) -> None:
    """The number is in extra_info."""
    benchmark_count(benchmark, question, work)
