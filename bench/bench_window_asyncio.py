"""What does each of 2000 concurrent warm reads cost on asyncio, against caio and threads?

256 MiB file in the page cache, random 4 KiB blocks, 2000 tasks gathered at once, each with one
`await`, ten times over on one event loop; the loop's start is not counted. "bare tasks" are the
same tasks around `await asyncio.sleep(0)`: what asyncio itself takes, whatever is read. "one task"
submits the 2000 reads and then awaits them, without a task around each. caio has the same 2000
tasks, and what it did best of what was tried: 256 tasks, each with one read after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

import numpy as np
from _crowd import tasks
from _measure import Ask, Question, Side, benchmark_side
from _work import MIB

import iolift

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from _work import Work

SIZE, BLOCK, TASKS, ROUNDS = 256 * MIB, 4096, 2000, 10


def peers(fd: int, offsets: list[int]) -> dict[str, Side]:
    """asyncio's own ways."""

    async def hop(offset: int) -> bytes:
        return await asyncio.to_thread(os.pread, fd, BLOCK, offset)

    async def bare(offset: int) -> None:
        await asyncio.sleep(0)

    n = TASKS * ROUNDS
    sides = {
        "to_thread(os.pread)": Side(TASKS, lambda: tasks(lambda: [hop(o) for o in offsets])),
        "bare tasks": Side(n, lambda: tasks(lambda: [bare(o) for o in offsets], ROUNDS)),
    }
    with contextlib.suppress(ImportError):
        sides["caio"] = caio(fd, offsets, TASKS)
        sides["caio, 256 workers"] = caio(fd, offsets, 256)
    return sides


def caio(fd: int, offsets: list[int], workers: int) -> Side:
    """The workers share the offsets of one round."""
    from caio.linux_uring_asyncio import AsyncioContext

    async def main() -> float:
        context = AsyncioContext(max_requests=TASKS, sqpoll=False, deferred=True)
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(ROUNDS):
            todo = iter(offsets)

            async def worker(todo=todo) -> None:
                for offset in todo:
                    await context.read(BLOCK, fd, offset)

            await asyncio.gather(*(worker() for _ in range(workers)))
        seconds = loop.time() - began
        context.close()
        return seconds

    return Side(TASKS * ROUNDS, lambda: asyncio.run(main()))


def build(work: Work) -> dict[str, Side]:
    """All read the same blocks; results are dropped after the round."""
    path = work.file(SIZE)
    work.warm(path)
    rng = np.random.default_rng(29)
    offsets = (rng.integers(0, SIZE // BLOCK, TASKS) * BLOCK).tolist()
    f = iolift.open(path)

    async def read(offset: int) -> bytes:
        return await f.submit_pread(BLOCK, offset)

    async def read_all() -> list[bytes]:
        tickets = [f.submit_pread(BLOCK, offset) for offset in offsets]
        return [await ticket for ticket in tickets]

    def each() -> list[Coroutine[None, None, object]]:
        return [read(offset) for offset in offsets]

    async def agree() -> None:
        expected = [os.pread(f.fileno(), BLOCK, offset) for offset in offsets]
        assert await asyncio.gather(*each()) == expected
        assert await read_all() == expected

    asyncio.run(agree())
    n = TASKS * ROUNDS
    return {
        "iolift": Side(n, lambda: tasks(each, ROUNDS)),
        "one task": Side(n, lambda: tasks(lambda: [read_all()], ROUNDS)),
        **peers(f.fileno(), offsets),
    }


QUESTIONS = [
    Question(
        "window_asyncio",
        "asyncio, 2000 concurrent warm 4 KiB reads",
        build,
        (
            Ask("bare tasks", within=4e-6),
            Ask("caio", at_least=6),
            Ask("to_thread(os.pread)", at_least=15),
            Ask("bare tasks", us="one task"),
            Ask("caio, 256 workers"),
            Ask("caio", us="one task"),
        ),
    )
]


def test_window_asyncio(benchmark, side) -> None:
    """One side of the question."""
    benchmark_side(benchmark, side)
