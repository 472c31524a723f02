"""Do 4096 asyncio tasks, each waiting for its own read, keep a disk as busy as fio at depth 32?

2 GiB file, O_DIRECT, 20k distinct random 4 KiB blocks of it, other ones in every round. 4096 tasks,
each with one read after the other until none is left; results are `bytes`. "into=" reads into
page-aligned rows, where nothing is copied.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

from _cold import BLOCK, REQUESTS, SIZE, Draw, fio
from _crowd import tasks
from _measure import Ask, Question, Side, benchmark_side
from _work import page_aligned

import iolift

if TYPE_CHECKING:
    from pathlib import Path

    from _work import Work

IN_FLIGHT = 4096


def ours(path: Path, draw: Draw, rows: Any = None, **options: Any) -> Side:
    """The tasks; the first run's results are compared with os.pread."""
    f = iolift.open(path, direct=True, **options)

    def run(into: dict[int, bytes] | None = None) -> float:
        todo = iter(enumerate(draw.offsets.tolist()))

        async def worker() -> None:
            for i, offset in todo:
                if rows is not None:
                    await f.submit_pread(BLOCK, offset, into=rows[i])
                    data = rows[i] if into is not None else None
                else:
                    data = await f.submit_pread(BLOCK, offset)
                if into is not None:
                    into[offset] = bytes(data)

        return tasks(lambda: [worker() for _ in range(IN_FLIGHT)])

    draw.again()
    results: dict[int, bytes] = {}
    run(results)
    with path.open("rb") as plain:
        for offset in draw.offsets.tolist()[::97]:
            assert results[offset] == os.pread(plain.fileno(), BLOCK, offset), offset
    return Side(REQUESTS, run, draw.again)


def build(work: Work) -> dict[str, Side]:
    """Our own default depth, and fio's."""
    path = work.file(SIZE)
    draw = Draw(work, path)
    sides = {
        "iolift": ours(path, draw),
        "into=": ours(path, draw, page_aligned(REQUESTS, BLOCK)),
        "depth 32": ours(path, draw, depth=32),
    }
    if shutil.which("fio"):
        for depth in (32, 128):
            sides[f"fio depth {depth}"] = fio(path, depth, draw, direct=True)
    return sides


QUESTIONS = [
    Question(
        "window_cold",
        "asyncio, cold, O_DIRECT, 4096 reads of 4 KiB in flight",
        build,
        (
            Ask("fio depth 32", at_least=0.9),
            Ask("fio depth 32", us="depth 32"),
            Ask("fio depth 32", us="into="),
            Ask("fio depth 128"),
        ),
    )
]


def test_window_cold(benchmark, side) -> None:
    """One side of the question."""
    benchmark_side(benchmark, side, rounds=3)
