"""What does recording every request and I/O cost the reads of window_asyncio?

The same 2000 concurrent reads of 4 KiB, warm, on a coalescer that records and on one that does not;
"one task" awaits them all itself, so that tasks do not hide what a read costs.
"""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from _crowd import tasks
from _measure import Ask, Question, Side, benchmark_side
from _work import MIB

import iolift

if TYPE_CHECKING:
    from pathlib import Path

    from _work import Work

SIZE, BLOCK, TASKS, ROUNDS = 256 * MIB, 4096, 2000, 10


def sides(path: Path, offsets: list[int], **options: Any) -> tuple[Side, Side]:
    """A task a read, and one for all."""
    f = iolift.open(path, **options)

    async def read(offset: int) -> bytes:
        return await f.submit_pread(BLOCK, offset)

    async def read_all() -> list[bytes]:
        tickets = [f.submit_pread(BLOCK, offset) for offset in offsets]
        return [await ticket for ticket in tickets]

    async def agree() -> None:
        assert await read_all() == [os.pread(f.fileno(), BLOCK, offset) for offset in offsets]

    asyncio.run(agree())
    n = TASKS * ROUNDS
    return (
        Side(n, lambda: tasks(lambda: [read(offset) for offset in offsets], ROUNDS)),
        Side(n, lambda: tasks(lambda: [read_all()], ROUNDS)),
    )


def build(work: Work) -> dict[str, Side]:
    """With a ring that is overwritten once a round, so that each page of it is written."""
    path = work.file(SIZE)
    work.warm(path)
    rng = np.random.default_rng(29)
    offsets = (rng.integers(0, SIZE // BLOCK, TASKS) * BLOCK).tolist()
    plain, plain_one = sides(path, offsets)
    recorded, recorded_one = sides(path, offsets, trace=TASKS)
    return {
        "not recording": plain,
        "not recording, one task": plain_one,
        "iolift": recorded,
        "one task": recorded_one,
    }


QUESTIONS = [
    Question(
        "recording",
        "recording, asyncio, 2000 concurrent warm 4 KiB reads",
        build,
        (
            Ask("not recording", at_most=1.05),
            Ask("not recording, one task", us="one task"),
        ),
    )
]


def test_recording(benchmark, side) -> None:
    """One side of the question."""
    benchmark_side(benchmark, side)
