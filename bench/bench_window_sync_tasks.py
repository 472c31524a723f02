"""What do 1000 asyncio tasks gain that each write a block and await that it is on the device?

1000 tasks, each `submit_pwrite` of 4 KiB and `await submit_sync()`, against the same two calls, in
asyncio's threads: os.pwrite and os.fdatasync in one hop, its best case, or each in its own. The
file is already full.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import numpy as np
from _crowd import tasks
from _measure import Ask, Question, Side, benchmark_side
from _work import MIB

import iolift

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from _work import Work

SIZE, BLOCK, TASKS = 64 * MIB, 4096, 1000
DATA = np.random.default_rng(41).bytes(BLOCK)


def build(work: Work) -> dict[str, Side]:
    """All leave the same bytes."""
    path = work.file(SIZE, "sync")
    f = iolift.open(path, "r+")
    fd = f.fileno()

    async def ours(offset: int) -> None:
        f.submit_pwrite(DATA, offset)
        await f.submit_sync()

    async def two_hops(offset: int) -> None:
        await asyncio.to_thread(os.pwrite, fd, DATA, offset)
        await asyncio.to_thread(os.fdatasync, fd)

    def both(offset: int) -> None:
        os.pwrite(fd, DATA, offset)
        os.fdatasync(fd)

    async def one_hop(offset: int) -> None:
        await asyncio.to_thread(both, offset)

    def gathered(one: Callable[[int], Coroutine[None, None, None]]) -> Callable[[], float]:
        return lambda: tasks(lambda: [one(i * BLOCK) for i in range(TASKS)])

    sides = {
        "iolift": gathered(ours),
        "to_thread, one hop": gathered(one_hop),
        "to_thread, two hops": gathered(two_hops),
    }
    for run in sides.values():
        os.pwrite(fd, bytes(BLOCK * TASKS), 0)
        run()
        assert os.pread(fd, BLOCK * TASKS, 0) == DATA * TASKS
    return {name: Side(TASKS, run) for name, run in sides.items()}


QUESTIONS = [
    Question(
        "window_sync_tasks",
        "1000 tasks, each submit_pwrite 4 KiB + await submit_sync()",
        build,
        (
            Ask("to_thread, two hops", at_least=10),
            Ask("to_thread, one hop", at_least=10),
        ),
    )
]


def test_window_sync_tasks(benchmark, side) -> None:
    """One side of the question."""
    benchmark_side(benchmark, side)
